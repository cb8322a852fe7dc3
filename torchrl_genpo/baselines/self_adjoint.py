# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The palindromic, second-order relative of GenPO's coupling."""

from __future__ import annotations

from torch import Tensor

from torchrl_genpo.baselines.coupling import CouplingSolver
from torchrl_genpo.flow import VelocityField

__all__ = ["SelfAdjointCoupling"]


class SelfAdjointCoupling(CouplingSolver):
    r"""Moves one register by half a step, the other by a whole one and the first by the other half.

    .. math::
        x' = x_i + \tfrac{\Delta t}2 v(y_i, t_i), \quad
        y_{i+1} = y_i + \Delta t\, v(x', t_i + \tfrac{\Delta t}2), \quad
        x_{i+1} = x' + \tfrac{\Delta t}2 v(y_{i+1}, t_{i+1}) .

    A step of :math:`-\Delta t` undoes one of :math:`\Delta t`, so the rule is of second order where GenPO's is of
    first. It is a composition of shears, :math:`|\det| = 1`, and needs no mixing. The last evaluation of a step is the
    first of the next, so :math:`M` steps cost :math:`2M + 1` evaluations (given a velocity that repeats none, such as
    :class:`~torchrl_genpo.flow.ConditionedVelocity`).

    References:
        Strang, "On the construction and comparison of difference schemes", 1968 (the symmetric composition);
        Pihajoki, "Explicit methods in extended phase space", 2015 (the doubled registers).

    Args:
        num_steps (int, optional): steps :math:`M`. Defaults to ``5``.

    Raises:
        ValueError: if ``num_steps`` is not a positive integer.

    Examples:
        >>> import torch
        >>> from torchrl_genpo.baselines import SelfAdjointCoupling
        >>> solver = SelfAdjointCoupling(num_steps=5)
        >>> velocity = lambda x, t: torch.sin(3 * x) + t
        >>> x_0, y_0 = torch.randn(2, 4, 3, dtype=torch.float64)
        >>> noise = solver.invert(velocity, *solver.integrate(velocity, x_0, y_0))
        >>> torch.allclose(noise[0], x_0) and torch.allclose(noise[1], y_0)
        True
    """

    step_log_det = 0.0

    def step(self, i: int, velocity: VelocityField, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x.add(velocity(y, i * self.dt), alpha=self.dt / 2)
        y = y.add(velocity(x, (i + 0.5) * self.dt), alpha=self.dt)
        return x.add(velocity(y, (i + 1) * self.dt), alpha=self.dt / 2), y

    def step_back(self, i: int, velocity: VelocityField, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x.sub(velocity(y, (i + 1) * self.dt), alpha=self.dt / 2)
        y = y.sub(velocity(x, (i + 0.5) * self.dt), alpha=self.dt)
        return x.sub(velocity(y, i * self.dt), alpha=self.dt / 2), y

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_steps={self.num_steps})"
