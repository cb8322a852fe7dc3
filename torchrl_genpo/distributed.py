# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Training on several processes (``torchrun``): one simulation a rank, one policy for all."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.envs import EnvBase, VecNormV2

__all__ = ["Ranks", "SharedNormalization"]


class Ranks:
    """The processes that train together; a single one without ``torchrun``.

    Args:
        device (torch.device or str): ``cuda`` becomes the card of this rank (``LOCAL_RANK``) and talks over
            NCCL, anything else over gloo.

    Attributes:
        rank (int): of this process.
        size (int): number of processes.
        device (str): of this process.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.rank, self.size, self.device = 0, int(os.environ.get("WORLD_SIZE", 1)), str(device)
        if self.size == 1:
            return
        if torch.device(device).type == "cuda":
            self.device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(self.device)
        dist.init_process_group("nccl" if self.device.startswith("cuda") else "gloo")
        self.rank = dist.get_rank()

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def close(self) -> None:
        """Leaves the group."""
        if self.size > 1:
            dist.destroy_process_group()

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors with those of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the ranks."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return flag if self.size == 1 else bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its mean over the ranks, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


class SharedNormalization:
    """Merges the running statistics of an environment's ``VecNormV2`` over the ranks.

    After :meth:`merge` every rank has the statistics of all data that any of them has seen, as if one
    process had collected it.

    Args:
        env (EnvBase): the environment of this rank, as yet without data or with that of a common checkpoint.
        ranks (Ranks): the processes.
    """

    def __init__(self, env: EnvBase, ranks: Ranks) -> None:
        self._ranks = ranks
        self._modules = [module for module in env.modules() if isinstance(module, VecNormV2)]
        self._merged = [self._moments(module) for module in self._modules]

    def merge(self) -> None:
        """Adds what the other ranks have seen since the last call."""
        if self._ranks.size == 1:
            return
        for index, module in enumerate(self._modules):
            before, now = self._merged[index], self._moments(module)
            if now is None:
                continue
            if before is None:
                before = now.apply(torch.zeros_like)
            added = (now - before).apply(self._ranks.mean) * self._ranks.size
            total = self._merged[index] = before + added
            seen = total["count"].apply(lambda count: count.clamp_min(1))
            module._loc.update_((total["loc"] / seen).apply(lambda value, old: value.to(old.dtype), module._loc))
            module._var.update_((total["var"] / seen).apply(lambda value, old: value.to(old.dtype), module._var))
            module._count.update_(total["count"].apply(lambda count: count.round().to(torch.int64)))

    @staticmethod
    def _moments(module: VecNormV2) -> TensorDict | None:
        """Count, sum and sum of squares (``VecNormV2`` keeps means of both, under these names)."""
        if module._loc is None:
            return None
        count = module._count.double()
        sums = {name: getattr(module, f"_{name}").double() * count for name in ("loc", "var")}
        return TensorDict({"count": count, **sums})
