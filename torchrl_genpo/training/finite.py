# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Guards against numbers that are not finite: they are found where they appear, named, and undone."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_genpo.training.ranks import Ranks

__all__ = ["DivergedError", "LastGood", "check_data", "check_finite"]

SHOWN = 8  # names or indices in a message


class DivergedError(RuntimeError):
    """Training met a number that is not finite; the message says where."""


def _some(values: Iterable[object]) -> str:
    shown = [str(value) for value in values]
    more = len(shown) - SHOWN
    return ", ".join(shown[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def check_finite(tensors: Mapping[str, Tensor], where: str, ranks: Ranks | None = None) -> None:
    """Raises :class:`DivergedError`, with the names, if a tensor is not finite; on all ranks if on one.

    Examples:
        >>> import torch
        >>> from torchrl_genpo.training import check_finite
        >>> check_finite({"loss": torch.tensor(1.0), "grad_norm": torch.tensor(float("inf"))}, "the loss")
        Traceback (most recent call last):
        ...
        torchrl_genpo.training.finite.DivergedError: Not finite in the loss: grad_norm.
    """
    finite = torch.stack([torch.isfinite(value).all() for value in tensors.values()])
    is_bad = not finite.all()  # the one place that waits for the device
    if is_bad if ranks is None else ranks.any(is_bad):
        bad = [name for name, is_finite in zip(tensors, finite.tolist(), strict=True) if not is_finite]
        raise DivergedError(f"Not finite in {where}: {_some(bad) or 'on another rank'}.")


def check_data(data: TensorDictBase, keys: Iterable[NestedKey], ranks: Ranks | None = None) -> None:
    """Raises :class:`DivergedError` if collected data is not finite, and says which key, environments and step.

    Args:
        data (TensorDictBase): ``[*envs, time]``, as the environments gave it.
        keys (iterable of NestedKey): what to look at, the likely origins first. Where something is wrong, the task's
            own terms ``("next", "log")`` are looked at too.
        ranks (Ranks, optional): processes that all raise if one does.
    """
    bad = {_name(key): _is_bad(data[key], data.ndim) for key in reversed(list(keys))}
    is_bad = bool(torch.stack([flag.any() for flag in bad.values()]).any())
    if not (is_bad if ranks is None else ranks.any(is_bad)):
        return
    terms = {f"log {name}": _is_bad(term, data.ndim) for name, term in data["next"].get("log", {}).items()}
    found = []
    for name, flag in (dict(reversed(bad.items())) | terms).items():
        if flag.any():
            time = int(flag.flatten(0, -2).any(0).nonzero()[0])
            envs = flag.flatten(0, -2)[:, time].nonzero().squeeze(-1)
            found.append(f"{name} (first in step {time} of the batch, environment {_some(envs.tolist())})")
    raise DivergedError(f"Not finite in the collected data: {'; '.join(found) or 'on another rank'}.")


def _name(key: NestedKey) -> str:
    return key if isinstance(key, str) else ".".join(key[1:] if key[0] == "next" else key)


def _is_bad(value: Tensor, ndim: int) -> Tensor:
    bad = ~torch.isfinite(value)
    return bad.flatten(ndim).any(-1) if bad.ndim > ndim else bad


class LastGood:
    """The state of some parts of a run as it was when all numbers were finite.

    Args:
        *parts: modules, optimizers or anything else with ``state_dict`` and ``load_state_dict``.
    """

    def __init__(self, *parts: Any) -> None:
        self._parts = parts
        self.remember()

    def remember(self) -> None:
        """Takes the present state as good."""
        self._states = [copy.deepcopy(part.state_dict()) for part in self._parts]

    def restore(self) -> None:
        """Goes back to the good state."""
        for part, state in zip(self._parts, self._states, strict=True):
            part.load_state_dict(copy.deepcopy(state))
