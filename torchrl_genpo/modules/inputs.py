# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""How policies and losses read a tensordict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.utils import unravel_key
from torch import Tensor, nn

from torchrl_genpo.flow import Velocity
from torchrl_genpo.modules.sequence import encode

__all__ = ["as_keys", "condition", "network_dtype", "read"]


def as_keys(keys: NestedKey | Sequence[NestedKey]) -> list[NestedKey]:
    """Makes a list of keys; a string or a tuple is a single one, as for every TensorDict module.

    Examples:
        >>> as_keys("observation"), as_keys(("agent", "observation")), as_keys([("agent", "observation"), "goal"])
        (['observation'], [('agent', 'observation')], [('agent', 'observation'), 'goal'])
    """
    return [unravel_key(key) for key in ([keys] if isinstance(keys, (str, tuple)) else keys)]


def network_dtype(network: nn.Module | Velocity, like: Tensor) -> torch.dtype:
    """The dtype that a network computes in, which is that of its first parameter, or else that of ``like``.

    Examples:
        >>> network_dtype(nn.Linear(2, 2).double(), torch.zeros(2, dtype=torch.uint8))
        torch.float64
    """
    for parameter in network.parameters():  # type: ignore[union-attr]  # a velocity is a module
        if parameter.is_floating_point():
            return parameter.dtype
    return like.dtype if like.is_floating_point() else torch.get_default_dtype()


def read(tensordict: TensorDictBase, *keys: NestedKey) -> list[Tensor]:
    """Reads the tensors of these keys, or raises a ``KeyError`` that names those that are missing.

    Examples:
        >>> from tensordict import TensorDict
        >>> read(TensorDict(observation=torch.zeros(2)), "observation")
        [tensor([0., 0.])]
        >>> read(TensorDict(observation=torch.zeros(2)), "observation", "action")
        Traceback (most recent call last):
        ...
        KeyError: "The data has no 'action'; it has 'observation'."
    """
    values = [tensordict.get(key, None) for key in keys]
    missing = [key for key, value in zip(keys, values, strict=True) if value is None]
    if missing:
        names = [", ".join(map(repr, found)) for found in (missing, tensordict.keys())]
        raise KeyError(f"The data has no {names[0]}; it has {names[1] or 'nothing'}.")
    return values


def condition(policy: nn.Module, tensordict: TensorDictBase) -> tuple[Any, Any]:
    """The velocity of a policy and its context for the observations of a tensordict.

    Args:
        policy (nn.Module): a module with a ``velocity`` and ``in_keys``, or a sequence with one such member, of which
            the modules before that member are run.
        tensordict (TensorDictBase): the data with the observations; it is left as it is.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_genpo import ReversibleFlowActor, VelocityMLP
        >>> actor = ReversibleFlowActor(VelocityMLP(in_features=4, action_dim=2, num_cells=(32,)))
        >>> velocity, context = condition(actor, TensorDict(observation=torch.zeros(8, 4), batch_size=[8]))
        >>> context.shape
        torch.Size([8, 32])
    """
    flow, seen = encode(policy, tensordict)
    return flow.velocity, flow.velocity.condition(*read(seen, *flow.in_keys))
