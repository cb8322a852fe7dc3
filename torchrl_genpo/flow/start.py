# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Starts: the distribution of the pair (x_0, memory_0) that the solver integrates."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from torchrl_genpo.flow.solver import ConditionedVelocity

__all__ = ["IndependentStart", "Start"]


class Start(nn.Module, ABC):
    """Where the pair :math:`(x_0, x_{-1})` comes from: an invertible map of standard normal noise.

    A start says how a pair is built from two noise tensors (:meth:`from_noise`), how that is undone
    (:meth:`to_noise`) and its log determinant (:meth:`log_abs_det`). Sampling, density and entropy
    follow from these three.

    ``velocity`` is the conditioned velocity ``(x, t) -> [..., d]``, for starts that need its value.
    """

    @property
    @abstractmethod
    def has_constant_entropy(self) -> bool:
        """Whether the entropy of the pair does not depend on any parameter."""

    @abstractmethod
    def from_noise(self, velocity: ConditionedVelocity, noise: Tensor, memory_noise: Tensor) -> tuple[Tensor, Tensor]:
        """Maps two standard normal tensors ``[..., d]`` to the pair ``(x_0, memory_0)``."""

    @abstractmethod
    def to_noise(self, velocity: ConditionedVelocity, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Exact inverse of :meth:`from_noise`."""

    @abstractmethod
    def log_abs_det(self, d: int) -> Tensor | float:
        """Log absolute determinant of :meth:`from_noise` for states of size ``d``, scalar."""

    def sample(
        self,
        velocity: ConditionedVelocity,
        shape: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draws the pair and its log density.

        Args:
            velocity (Callable): the conditioned velocity.
            shape (sequence of int): shape ``[..., d]`` of each half of the pair.

        Keyword Args:
            dtype (torch.dtype, optional): dtype of the noise.
            device (torch.device, optional): device of the noise.

        Returns:
            ``x_0 [..., d]``, ``memory_0 [..., d]`` and their joint log density ``[...]``.
        """
        noise, memory_noise = torch.randn((2, *shape), dtype=dtype, device=device).unbind(0)
        x, memory = self.from_noise(velocity, noise, memory_noise)
        return x, memory, self._log_density(noise, memory_noise)

    def log_prob(self, velocity: ConditionedVelocity, x: Tensor, memory: Tensor) -> Tensor:
        """Joint log density ``[...]`` of the pair ``x, memory [..., d]``."""
        return self._log_density(*self.to_noise(velocity, x, memory))

    def entropy(self, d: int) -> Tensor | float:
        """Differential entropy of the pair in nats, scalar, for states of size ``d``."""
        return d * (1 + math.log(2 * math.pi)) + self.log_abs_det(d)

    def _log_density(self, noise: Tensor, memory_noise: Tensor) -> Tensor:
        d = noise.shape[-1]
        energy = noise.square().sum(-1) + memory_noise.square().sum(-1)
        return -0.5 * energy - (d * math.log(2 * math.pi) + self.log_abs_det(d))


class IndependentStart(Start):
    r"""Independent normal :math:`x_0` and :math:`x_{-1}`, the start of the paper.

    Args:
        scale (str, optional): ``"unit"``, the paper's standard normal pair; or ``"learned"``, one
            positive scale for each of the ``2 d`` numbers, a parameter that is 1 at first. Its log
            enters the density, which stays exact and Jacobian-free, and the entropy of the pair
            becomes a differentiable closed form. Defaults to ``"unit"``.
        action_dim (int, optional): ``d``; needed for, and only for, a learned scale.

    References:
        GenPO++, arXiv 2606.06967 (unit scale). The learned scale is ours.

    Examples:
        >>> import torch
        >>> from torchrl_genpo import IndependentStart
        >>> start = IndependentStart(scale="learned", action_dim=3)
        >>> x, memory, log_prob = start.sample(None, (4, 3))
        >>> x.shape, log_prob.shape
        (torch.Size([4, 3]), torch.Size([4]))
        >>> torch.allclose(start.log_prob(None, x, memory), log_prob)
        True
    """

    def __init__(self, scale: Literal["unit", "learned"] = "unit", action_dim: int | None = None) -> None:
        super().__init__()
        if scale not in ("unit", "learned"):
            raise ValueError(f"scale must be 'unit' or 'learned', got {scale!r}.")
        if scale == "learned" and (action_dim is None or action_dim < 1):
            raise ValueError(f"scale='learned' needs action_dim, the size of the action; got {action_dim!r}.")
        if scale == "unit" and action_dim is not None:
            raise ValueError(f"action_dim={action_dim} has no effect with scale='unit'; drop it or use 'learned'.")
        self.scale = scale
        self.action_dim = action_dim
        # row 0 scales x_0, row 1 its memory; the log keeps the scale positive
        self.log_scale = None if action_dim is None else nn.Parameter(torch.zeros(2, action_dim))

    def reset_parameters(self) -> None:
        """Puts a learned scale back to 1."""
        if self.log_scale is not None:
            nn.init.zeros_(self.log_scale)

    @property
    def has_constant_entropy(self) -> bool:
        return self.scale == "unit"

    def from_noise(self, velocity: ConditionedVelocity, noise: Tensor, memory_noise: Tensor) -> tuple[Tensor, Tensor]:
        if self.log_scale is None:
            return noise, memory_noise
        scale, memory_scale = self.log_scale.exp().unbind(0)
        return noise * scale, memory_noise * memory_scale

    def to_noise(self, velocity: ConditionedVelocity, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        if self.log_scale is None:
            return x, memory
        scale, memory_scale = self.log_scale.neg().exp().unbind(0)
        return x * scale, memory * memory_scale

    def log_abs_det(self, d: int) -> Tensor | float:
        return 0.0 if self.log_scale is None else self.log_scale.sum()

    def extra_repr(self) -> str:
        return f"scale={self.scale!r}" + ("" if self.action_dim is None else f", action_dim={self.action_dim}")
