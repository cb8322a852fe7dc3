# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A rule that adapts sigma between updates."""

from __future__ import annotations

import math
from typing import Any

from torchrl_genpo.flow.solver import ReversibleSolver

__all__ = ["AdaptiveSigma"]


class AdaptiveSigma:
    r"""Keeps a measured quantity in a band by moving the sigma of a two-step solver.

    Inversion amplifies by :math:`\sigma^{-M}`, the change of the policy (the pair's KL) as well as rounding
    (the inversion error): above twice the target sigma goes towards 1, below half of it away from 1, by
    a constant factor of :math:`\log\sigma`. To be stepped once per update, *after* its last optimizer step
    and before the next collection: stored densities belong to the sigma that collected them. (A compiled loss
    compiles anew whenever sigma moves.)

    Sigma is the solver's, no parameter: save it beside the actor's ``state_dict`` (:meth:`state_dict` here holds it),
    and set it in every process that collects, for the weights that a collector sends do not bring it.

    Args:
        solver (ReversibleSolver): a two-step solver with one positive sigma.
        target (float): centre of the band, in the unit of the quantity.

    Keyword Args:
        min_sigma (float, optional): defaults to ``0.5``.
        max_sigma (float, optional): below 1. Defaults to ``0.95``.
        factor (float, optional): of :math:`\log\sigma` in one step, above 1. Defaults to ``1.1``.

    Raises:
        ValueError: for a solver without a single positive sigma below 1, or limits out of order.

    Examples:
        >>> from torchrl_genpo import ReversibleSolver
        >>> from torchrl_genpo.flow import AdaptiveSigma
        >>> solver = ReversibleSolver(num_steps=5, sigma=0.75)
        >>> AdaptiveSigma(solver, target=0.02).step(0.1)  # the KL was too large
        >>> round(solver.sigma, 4)
        0.7699
    """

    def __init__(
        self,
        solver: ReversibleSolver,
        target: float,
        *,
        min_sigma: float = 0.5,
        max_sigma: float = 0.95,
        factor: float = 1.1,
    ) -> None:
        if not isinstance(solver, ReversibleSolver) or not isinstance(solver.sigma, float) or not 0 < solver.sigma < 1:
            raise ValueError(f"AdaptiveSigma needs a two-step solver with one sigma in (0, 1), got {solver}.")
        if not target > 0:
            raise ValueError(f"target must be positive, got {target}.")
        if not 0 < min_sigma <= solver.sigma <= max_sigma < 1 or not factor > 1:
            raise ValueError(
                f"Needs 0 < min_sigma <= sigma <= max_sigma < 1 and factor > 1, got {min_sigma}, {solver.sigma}, "
                f"{max_sigma} and {factor}."
            )
        # refuses what could not be inverted; and buffers made for the first batch must hold every later one
        solver.largest_amplification = ReversibleSolver(solver.num_steps, min_sigma).error_amplification
        self.solver = solver
        self.target = target
        self.min_sigma = min_sigma
        self.max_sigma = max_sigma
        self.factor = factor

    def step(self, value: float) -> None:
        """Moves sigma after an update in which the quantity was ``value``."""
        if not math.isfinite(value):
            raise ValueError(f"AdaptiveSigma cannot follow a quantity that is not finite, got {value}.")
        log_sigma = math.log(self.solver.sigma)  # type: ignore[arg-type]
        if value > 2 * self.target:
            log_sigma /= self.factor
        elif value < 0.5 * self.target:
            log_sigma *= self.factor
        else:
            return  # not a rounding error away, which would compile a loss anew
        self.solver.sigma = min(self.max_sigma, max(self.min_sigma, math.exp(log_sigma)))

    def state_dict(self) -> dict[str, Any]:
        """The present sigma."""
        return {"sigma": self.solver.sigma}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores sigma."""
        self.solver.sigma = float(state_dict["sigma"])
