# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""How the observations that end episodes, and the statistics of episodes, get from Isaac Lab into the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import expand_as_right
from torch import Tensor
from torchrl.data import Composite, Unbounded
from torchrl.envs import Transform
from torchrl.envs.gym_like import BaseInfoDictReader

__all__ = ["FINAL", "LOG", "EpisodeLog", "FinalObservation", "LastObservationAtReset"]

FINAL, LOG = "final", "log"


class LastObservationAtReset(Transform):
    """Puts the last observation in the place of one that ended an episode and is missing (NaN).

    This is how rsl_rl bootstraps time-outs in Isaac Lab: with the value of the state before. A NaN in any other step is
    the simulator's, and stays. The transform belongs right after TorchRL's ``VecGymEnvTransform``, before anything that
    changes observations.

    Args:
        keys (iterable of str): the keys of the observations.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        super().__init__()
        self._last: dict[str, Tensor] = {key: torch.empty(()) for key in keys}

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        for key, last in self._last.items():
            value = next_tensordict[key]
            is_missing = value.isnan() & expand_as_right(next_tensordict["done"].squeeze(-1), value)
            next_tensordict[key] = self._last[key] = torch.where(is_missing, last, value)
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        for key in self._last:  # after a partial reset the observations have every row
            self._last[key] = tensordict_reset[key].clone()
        return tensordict_reset


class FinalObservation(BaseInfoDictReader):
    """Hands Isaac Lab's terminal observations to TorchRL's ``VecGymEnvTransform``."""

    def __call__(self, info: dict[str, Any], tensordict: TensorDictBase) -> TensorDictBase:
        if "final_obs" in info:  # those of an earlier step stay there; nothing looks at them
            groups = TensorDict(info["final_obs"], batch_size=tensordict.batch_size)
            tensordict.set(FINAL, groups.to(tensordict.device))
        return tensordict

    @property
    def info_spec(self) -> dict[str, Any]:
        return {}


class EpisodeLog(BaseInfoDictReader):
    """Writes Isaac Lab's ``extras["log"]``; its numbers belong to the whole batch and are the same in every row."""

    def __init__(self, log: Mapping[str, Any], batch_size: torch.Size, device: torch.device) -> None:
        self._shape = (*batch_size, 1)
        leaf = Unbounded(self._shape, device=device)
        self._names = list(log)
        self._spec = Composite({name: leaf.clone() for name in log}, shape=batch_size, device=device)

    def __call__(self, info: dict[str, Any], tensordict: TensorDictBase) -> TensorDictBase:
        log = info.get("log", {})
        for name in self._names:
            value = torch.as_tensor(log.get(name, 0.0), dtype=torch.float32, device=tensordict.device)
            tensordict.set((LOG, name), value.expand(self._shape).clone())  # a collector writes into it
        return tensordict

    @property
    def info_spec(self) -> dict[str, Any]:
        return {LOG: self._spec} if self._names else {}
