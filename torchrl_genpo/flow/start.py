# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Starts: the distribution of the pair (x_0, memory_0) that the solver integrates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from torchrl_genpo.flow.solver import PairSolver, VelocityField

__all__ = ["IndependentStart", "Start"]


class Start(nn.Module, ABC):
    """Where the pair :math:`(x_0, x_{-1})` comes from: an invertible map of standard normal noise.

    A start says how a pair is built from two noise tensors (:meth:`from_noise`), how that is undone
    (:meth:`to_noise`) and what its log determinant is (:meth:`log_abs_det`). Sampling, density and entropy of a flow
    follow from these three. Each of them is given ``velocity``, the conditioned velocity ``(x, t) -> [..., d]``, of
    which some starts need a value or the ``context``, and ``solver``, the solver that integrates, of which some need
    the size of a step.
    """

    action_dim: int | None = None
    """The size ``d`` of the states, of a start that is made for one."""

    def reset_parameters(self) -> None:
        """Puts the parameters back to their first values, if there are any."""

    @property
    def settings(self) -> dict[str, Any]:
        """What fixes the map beside the parameters, as plain values by name."""
        return {"kind": type(self).__name__}

    @property
    def has_constant_entropy(self) -> bool:
        """Whether the entropy of the pair does not depend on any parameter."""
        return True

    @torch.no_grad()
    def free_pair(self, solver: PairSolver) -> Tensor:
        """The pair that a velocity of zero makes of the noise, as a matrix.

        Args:
            solver (PairSolver): the solver.

        Returns:
            ``[2, 2]``, or ``[2, 2, d]`` of a start that is made for a size: by how much action and memory (rows) move
            with the noise of each (columns).
        """
        like = next(self.parameters(), torch.empty(()))

        def velocity(x: Tensor, t: float) -> Tensor:
            return torch.zeros_like(x)

        noise = torch.eye(2, dtype=like.dtype, device=like.device).unsqueeze(-1).expand(2, 2, self.action_dim or 1)
        pair = torch.stack(solver.integrate(velocity, *self.from_noise(velocity, *noise, solver=solver)))
        return pair[..., 0] if self.action_dim is None else pair

    def memory_weight(self, solver: PairSolver) -> Tensor:
        """The regression of the memory on the action for a velocity of zero, ``[]`` or ``[d]``."""
        action, memory = self.free_pair(solver)
        return (action * memory).sum(0) / action.square().sum(0)

    def width(self, solver: PairSolver) -> Tensor:
        """The standard deviation of an action for a velocity of zero, ``[]`` or ``[d]``."""
        return self.free_pair(solver)[0].norm(dim=0)

    @abstractmethod
    def from_noise(
        self, velocity: VelocityField, noise: Tensor, memory_noise: Tensor, *, solver: PairSolver
    ) -> tuple[Tensor, Tensor]:
        """Maps two standard normal tensors ``[..., d]`` to the pair ``(x_0, memory_0)``."""

    @abstractmethod
    def to_noise(
        self, velocity: VelocityField, x: Tensor, memory: Tensor, *, solver: PairSolver
    ) -> tuple[Tensor, Tensor]:
        """Undoes :meth:`from_noise` exactly."""

    @abstractmethod
    def log_abs_det(self, velocity: VelocityField, d: int, *, solver: PairSolver) -> Tensor | float:
        """Log absolute determinant of :meth:`from_noise` for states of size ``d``: a scalar, or one a context."""


class IndependentStart(Start):
    r"""The start of the paper, in which :math:`x_0` and :math:`x_{-1}` are independent and standard normal.

    References:
        GenPO++, arXiv 2606.06967.

    Examples:
        >>> import torch
        >>> from torchrl_genpo import IndependentStart, ReversibleSolver
        >>> start, solver = IndependentStart(), ReversibleSolver()
        >>> x, memory = start.from_noise(None, *torch.randn(2, 4, 3), solver=solver)
        >>> x.shape, memory.shape, start.log_abs_det(None, 3, solver=solver)
        (torch.Size([4, 3]), torch.Size([4, 3]), 0.0)
    """

    def from_noise(
        self, velocity: VelocityField, noise: Tensor, memory_noise: Tensor, *, solver: PairSolver
    ) -> tuple[Tensor, Tensor]:
        return noise, memory_noise

    def to_noise(
        self, velocity: VelocityField, x: Tensor, memory: Tensor, *, solver: PairSolver
    ) -> tuple[Tensor, Tensor]:
        return x, memory

    def log_abs_det(self, velocity: VelocityField, d: int, *, solver: PairSolver) -> Tensor | float:
        return 0.0
