# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Training on several processes (``torchrun``): one simulation in each, one policy for all."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Ranks"]


class Ranks:
    """The processes that train together; a single one without ``torchrun``.

    Args:
        device (torch.device or str): ``cuda`` becomes the card of this rank (``LOCAL_RANK``), and the ranks talk over
            NCCL; anything else stays as it is, and they talk over gloo.

    Attributes:
        rank (int): the number of this process.
        size (int): the number of processes.
        device (str): the device of this process.
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

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the ranks."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the ranks."""
        return self.sum(value) / self.size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its mean over the ranks, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
