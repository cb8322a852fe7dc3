# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Encoders: the modules between the observation and the head of a policy, which its critic shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import nn
from torchrl.envs import InitTracker, Transform
from torchrl.modules import MLP, ConvNet, GRUModule, LSTMModule

__all__ = ["FEATURES", "PIXELS", "RECURRENT", "make_encoder", "make_mlp", "recurrent_transforms"]

PIXELS, FEATURES = "pixels", "features"
RECURRENT: dict[str, type[GRUModule | LSTMModule]] = {"gru": GRUModule, "lstm": LSTMModule}
STATES = {"gru": ("recurrent_state",), "lstm": ("recurrent_state_h", "recurrent_state_c")}
CONVOLUTIONS = {"num_cells": [32, 64, 64], "kernel_sizes": [8, 4, 3], "strides": [4, 2, 1]}  # Mnih et al., 2015
SMALLEST_PICTURE = 36


def make_mlp(
    in_features: int, sizes: Sequence[int], activation_class: type[nn.Module], gain: float, activate: bool = False
) -> MLP:
    """An MLP with orthogonal weights, zero biases and the given gain of the last layer.

    Args:
        in_features (int): the size of the input.
        sizes (sequence of int): the widths of the layers, that of the output last.
        activation_class (type): the activation between the layers.
        gain (float): of the last layer's weights.
        activate (bool, optional): whether the activation follows the last layer, too. Defaults to ``False``.
    """
    mlp = MLP(
        in_features=in_features,
        out_features=sizes[-1],
        num_cells=list(sizes[:-1]),
        activation_class=activation_class,
        activate_last_layer=activate,
    )
    linears = [module for module in mlp if isinstance(module, nn.Linear)]
    for layer in linears:
        nn.init.orthogonal_(layer.weight, gain if layer is linears[-1] else 2**0.5)
        nn.init.zeros_(layer.bias)
    return mlp


def make_encoder(
    kind: str, sizes: Sequence[int], activation_class: type[nn.Module], in_key: str, shape: Sequence[int]
) -> list[TensorDictModuleBase]:
    """Builds the modules that turn an observation into ``features`` ``[..., sizes[-1]]``.

    Args:
        kind (str): ``mlp``; ``cnn``, of pictures; ``gru`` or ``lstm``, which remember, with an MLP before them where
            there are several sizes.
        sizes (sequence of int): the widths of the layers, behind the convolutions of ``cnn``.
        activation_class (type): the activation.
        in_key (str): of the observation.
        shape (sequence of int): of one observation.

    Raises:
        ValueError: if a picture is too small for the convolutions.
    """
    if kind == "cnn":
        if min(shape[-2:]) < SMALLEST_PICTURE:
            raise ValueError(
                f"policy.encoder=cnn needs pictures of at least {SMALLEST_PICTURE} pixels a side, got {list(shape)}."
            )
        convolutions = ConvNet(in_features=shape[-3], activation_class=activation_class, **CONVOLUTIONS)
        flat = convolutions(torch.zeros(*shape)).shape[-1]
        mlp = make_mlp(flat, sizes, activation_class, 2**0.5, activate=True)
        return [TensorDictModule(nn.Sequential(convolutions, mlp), in_keys=[in_key], out_keys=[FEATURES])]
    mlp_sizes = sizes if kind == "mlp" else sizes[:-1]
    modules: list[TensorDictModuleBase] = []
    key, size = in_key, shape[-1]
    if mlp_sizes:
        mlp = make_mlp(size, mlp_sizes, activation_class, 2**0.5, activate=True)
        key, size = FEATURES if kind == "mlp" else "embedding", mlp_sizes[-1]
        modules.append(TensorDictModule(mlp, in_keys=[in_key], out_keys=[key]))
    if kind in RECURRENT:
        states = STATES[kind]
        modules.append(
            RECURRENT[kind](
                input_size=size,
                hidden_size=sizes[-1],
                in_keys=[key, *states],
                out_keys=[FEATURES, *(("next", state) for state in states)],
            )
        )
    return modules


def recurrent_transforms(kind: str | None, hidden_size: int) -> list[Transform]:
    """What an environment needs for a policy that remembers: ``is_init``, and states of 0 where an episode begins."""
    if kind not in RECURRENT:
        return []
    (module,) = make_encoder(kind, [hidden_size], nn.Tanh, "observation", [1])
    return [InitTracker(), module.make_tensordict_primer()]  # type: ignore[operator]
