# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The start of pre-trained flows, whose memory lies where the flow would have been one step earlier."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from torchrl_genpo.flow.solver import PairSolver, VelocityField
from torchrl_genpo.flow.start import Start

__all__ = ["ConsistentStart"]


class ConsistentStart(Start):
    r"""A memory that lies where the flow would have been one step earlier, up to noise of size tau.

    .. math:: x_{-1} = x_0 - \Delta t\, v(x_0, 0) + \tau\, \xi, \qquad \xi \sim N(0, I)

    A flow that was trained to carry :math:`N(0, I)` to the data is integrated as it was trained,
    where the paper's independent memory moves its start. The map of the noise is a shear and a
    scale, so its log determinant is :math:`d \log \tau`, and :math:`v(x_0, 0)` is the solver's own
    first evaluation, so the start costs none of its own (one more with ``gradient="reversible"``).

    Args:
        tau (float, optional): size of the memory's noise, positive. Defaults to ``0.3``.
        action_dim (int, optional): ``d``, for a tau that is learned, one for each number of an action, and begins at
            ``tau``. Defaults to ``None``, for a fixed one.

    Raises:
        ValueError: if tau or the size is not positive.

    References:
        This start is ours, for pre-trained flows (``benchmarks/results/fidelity.md``).

    Examples:
        >>> import torch
        >>> from torchrl_genpo import ConsistentStart, ReversibleSolver
        >>> start, solver, velocity = ConsistentStart(tau=0.1), ReversibleSolver(), lambda x, t: -x
        >>> x, memory = start.from_noise(velocity, *torch.randn(2, 4, 3), solver=solver)
        >>> bool(((memory - (x + x / 5)).abs() < 0.6).all())  # where the flow was a step earlier, six tau at most
        True
    """

    def __init__(
        self,
        tau: float = 0.3,
        action_dim: int | None = None,
    ) -> None:
        if not isinstance(tau, (int, float)) or not (math.isfinite(tau) and tau > 0):
            raise ValueError(
                f"tau must be a positive finite number, got {tau!r}: without noise of its own the memory is a function "
                "of x_0 and the pair has no density. Small values, such as 0.1, come closest to that."
            )
        if action_dim is not None and action_dim < 1:
            raise ValueError(f"action_dim must be at least 1, got {action_dim}.")
        super().__init__()
        self.tau = float(tau)
        self.action_dim = action_dim
        self.log_tau = None if action_dim is None else nn.Parameter(torch.full((action_dim,), math.log(tau)))

    def reset_parameters(self) -> None:
        """Puts tau back to its first value."""
        if self.log_tau is not None:
            nn.init.constant_(self.log_tau, math.log(self.tau))

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "tau": self.tau if self.log_tau is None else "learned"}

    @property
    def has_constant_entropy(self) -> bool:
        return self.log_tau is None

    def from_noise(
        self, velocity: VelocityField, noise: Tensor, memory_noise: Tensor, *, solver: PairSolver
    ) -> tuple[Tensor, Tensor]:
        tau = self.tau if self.log_tau is None else self.log_tau.exp()
        return noise, self._centre(velocity, noise, solver) + tau * memory_noise

    def to_noise(
        self, velocity: VelocityField, x: Tensor, memory: Tensor, *, solver: PairSolver
    ) -> tuple[Tensor, Tensor]:
        tau = self.tau if self.log_tau is None else self.log_tau.exp()
        return x, (memory - self._centre(velocity, x, solver)) / tau

    def log_abs_det(self, velocity: VelocityField, d: int, *, solver: PairSolver) -> Tensor | float:
        return d * (math.log(self.tau) if self.log_tau is None else self.log_tau.mean())

    @staticmethod
    def _centre(velocity: VelocityField, x: Tensor, solver: PairSolver) -> Tensor:
        return x.sub(velocity(x, 0.0), alpha=solver.dt)

    def extra_repr(self) -> str:
        return f"tau={self.tau}" + ("" if self.action_dim is None else f", action_dim={self.action_dim}")
