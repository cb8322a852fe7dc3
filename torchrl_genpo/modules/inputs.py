# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What policies and losses read of a tensordict."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.utils import unravel_key
from torch import Tensor, nn

from torchrl_genpo.flow import Velocity

__all__ = ["as_keys", "network_dtype", "read"]


def as_keys(keys: str | Sequence[NestedKey]) -> list[NestedKey]:
    """A list of keys; one alone may be a string, as for every TensorDict module.

    Examples:
        >>> as_keys("observation"), as_keys([("agent", "observation"), "goal"])
        (['observation'], [('agent', 'observation'), 'goal'])
    """
    return [unravel_key(key) for key in ([keys] if isinstance(keys, str) else keys)]


def network_dtype(network: nn.Module | Velocity, like: Tensor) -> torch.dtype:
    """The dtype that a network computes in: of its first parameter, or else of ``like``.

    Examples:
        >>> network_dtype(nn.Linear(2, 2).double(), torch.zeros(2, dtype=torch.uint8))
        torch.float64
    """
    for parameter in network.parameters():  # type: ignore[union-attr]  # a velocity is a module
        if parameter.is_floating_point():
            return parameter.dtype
    return like.dtype if like.is_floating_point() else torch.get_default_dtype()


def read(tensordict: TensorDictBase, *keys: NestedKey) -> list[Tensor]:
    """The tensors of these keys, or a ``KeyError`` that names those that are not there.

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
