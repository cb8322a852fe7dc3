# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Flows on doubled registers, which are two copies of the action that move each other."""

from __future__ import annotations

import math
from abc import abstractmethod

from torch import Tensor

from torchrl_genpo.flow.solver import LARGEST_AMPLIFICATION, PairSolver, VelocityField

__all__ = ["CouplingSolver"]


class CouplingSolver(PairSolver):
    r"""Carries two registers :math:`(x, y)`, each moved by the velocity at the other, and inverts it exactly.

    The executed action is their mean and the memory half their difference, :math:`(\tfrac{x+y}2, \tfrac{x-y}2)`, a
    linear map with :math:`|\det| = 2^{-d}`. So the pair that :class:`~torchrl_genpo.ReversibleFlowActor` stores, its
    density and :class:`~torchrl_genpo.GenPOLoss` are what they are for every other solver.

    Args:
        num_steps (int, optional): steps :math:`M`, each of two or more evaluations. Defaults to ``5``.

    Raises:
        ValueError: if ``num_steps`` is not a positive integer.
    """

    gradient = "stored"

    def __init__(self, num_steps: int = 5) -> None:
        super().__init__(num_steps)
        if self.error_amplification > LARGEST_AMPLIFICATION:
            raise ValueError(
                f"{self} cannot be inverted in float64: rounding errors grow by {self.error_amplification:.1e}. "
                "Take fewer steps, or a mixing closer to 1."
            )

    @property
    @abstractmethod
    def step_log_det(self) -> float:
        """Log absolute determinant of one step, for each dimension of the action."""

    @property
    def error_amplification(self) -> float:
        return math.exp(-self.num_steps * self.step_log_det)

    @abstractmethod
    def step(self, i: int, velocity: VelocityField, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The registers after step ``i``."""

    @abstractmethod
    def step_back(self, i: int, velocity: VelocityField, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The registers before step ``i``."""

    def integrate(self, velocity: VelocityField, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Carries the registers ``x``, ``memory`` ``[..., d]`` to the action and half their difference."""
        x, y = self._to_state(x, memory)
        for i in range(self.num_steps):
            x, y = self.step(i, velocity, x, y)
        return (x + y) / 2, (x - y) / 2

    def invert(self, velocity: VelocityField, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Recovers the registers that :meth:`integrate` started from."""
        mean, half = self._to_state(x, memory)
        x, y = mean + half, mean - half
        for i in reversed(range(self.num_steps)):
            x, y = self.step_back(i, velocity, x, y)
        return x, y

    def log_abs_det(self, d: int) -> float:
        return d * (self.num_steps * self.step_log_det - math.log(2))
