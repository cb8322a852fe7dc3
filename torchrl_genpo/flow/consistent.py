# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The start of pre-trained flows, whose memory lies where the flow would have been one step earlier."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchrl_genpo.flow.solver import PairSolver, VelocityField
from torchrl_genpo.flow.start import DEFAULT_SOLVER, Scale, Start

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
        learn_tau (str, optional): ``"shared"`` makes tau a parameter, ``"per_dimension"`` one for each
            action dimension. Defaults to ``None``, a fixed one.
        scale (str, optional): how :math:`x_0` is scaled, see :class:`Start`. Defaults to ``"unit"``.
        action_dim (int, optional): ``d``; needed for ``"per_dimension"`` and a scale that is not ``"unit"``.
        initial_scale (float, optional): value of every scale at first. Defaults to ``1``.

    Raises:
        ValueError: if tau is not positive, or an option is unknown or lacks a size.

    References:
        This start is ours, for pre-trained flows (``benchmarks/results/fidelity.md``).

    Examples:
        >>> import torch
        >>> from torchrl_genpo import ConsistentStart
        >>> start, velocity = ConsistentStart(tau=0.1), lambda x, t: -x
        >>> x, memory, log_prob = start.sample(velocity, (4, 3))
        >>> torch.allclose(start.log_prob(velocity, x, memory), log_prob, atol=1e-4)
        True
    """

    def __init__(
        self,
        tau: float = 0.3,
        learn_tau: Literal["shared", "per_dimension"] | None = None,
        scale: Scale = "unit",
        action_dim: int | None = None,
        initial_scale: float = 1.0,
    ) -> None:
        if not isinstance(tau, (int, float)) or not (math.isfinite(tau) and tau > 0):
            raise ValueError(
                f"tau must be a positive finite number, got {tau!r}: without noise of its own the memory is a function "
                "of x_0 and the pair has no density. Small values, such as 0.1, come closest to that."
            )
        if learn_tau not in (None, "shared", "per_dimension"):
            raise ValueError(f"learn_tau must be None, 'shared' or 'per_dimension', got {learn_tau!r}.")
        if learn_tau == "per_dimension" and action_dim is None:
            raise ValueError("learn_tau='per_dimension' needs action_dim, the size of the action.")
        if action_dim is not None and scale == "unit" and learn_tau != "per_dimension":
            raise ValueError(f"action_dim={action_dim} has no effect with a unit scale and learn_tau={learn_tau!r}.")
        self.tau = float(tau)
        self.learn_tau = learn_tau
        super().__init__(scale, 1, action_dim, initial_scale)
        size = () if learn_tau == "shared" else (action_dim or 1,)
        self.log_tau = nn.Parameter(torch.full(size, math.log(tau))) if learn_tau else None

    def reset_parameters(self) -> None:
        """Puts scale and tau back to their first values."""
        super().reset_parameters()
        if getattr(self, "log_tau", None) is not None:
            nn.init.constant_(self.log_tau, math.log(self.tau))  # type: ignore[arg-type]

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "learn_tau": self.learn_tau, "tau": None if self.learn_tau else self.tau}

    @property
    def has_constant_entropy(self) -> bool:
        return self.scale == "unit" and self.log_tau is None

    def from_noise(
        self, velocity: VelocityField, noise: Tensor, memory_noise: Tensor, *, solver: PairSolver = DEFAULT_SOLVER
    ) -> tuple[Tensor, Tensor]:
        log_scales = self.log_scales()
        x = noise if log_scales is None else noise * log_scales.squeeze(-2).exp()
        tau = self.tau if self.log_tau is None else self.log_tau.exp()
        return x, self._centre(velocity, x, solver) + tau * memory_noise

    def to_noise(
        self, velocity: VelocityField, x: Tensor, memory: Tensor, *, solver: PairSolver = DEFAULT_SOLVER
    ) -> tuple[Tensor, Tensor]:
        log_scales = self.log_scales()
        tau = self.tau if self.log_tau is None else self.log_tau.exp()
        memory_noise = (memory - self._centre(velocity, x, solver)) / tau
        return x if log_scales is None else x * log_scales.squeeze(-2).neg().exp(), memory_noise

    def log_abs_det(self, velocity: VelocityField, d: int, *, solver: PairSolver = DEFAULT_SOLVER) -> Tensor | float:
        log_scales = self.log_scales()
        log_tau = math.log(self.tau) if self.log_tau is None else self.log_tau.mean()
        return d * log_tau + (0.0 if log_scales is None else log_scales.sum((-2, -1)))

    @staticmethod
    def _centre(velocity: VelocityField, x: Tensor, solver: PairSolver) -> Tensor:
        return x.sub(velocity(x, 0.0), alpha=solver.dt)

    def extra_repr(self) -> str:
        return f"tau={self.tau}, learn_tau={self.learn_tau!r}, {super().extra_repr()}"
