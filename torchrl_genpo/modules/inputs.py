# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What policies and losses read of a tensordict."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import NestedKey, TensorDictBase
from tensordict.utils import unravel_key
from torch import Tensor

__all__ = ["as_keys", "read"]


def as_keys(keys: str | Sequence[NestedKey]) -> list[NestedKey]:
    """A list of keys; one alone may be a string, as for every TensorDict module.

    Examples:
        >>> as_keys("observation"), as_keys([("agent", "observation"), "goal"])
        (['observation'], [('agent', 'observation'), 'goal'])
    """
    return [unravel_key(key) for key in ([keys] if isinstance(keys, str) else keys)]


def read(tensordict: TensorDictBase, *keys: NestedKey) -> list[Tensor]:
    """The tensors of these keys, or a ``KeyError`` that names those that are not there.

    Examples:
        >>> import torch
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
