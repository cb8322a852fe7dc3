# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The reversible two-step solver of GenPO++ (arXiv 2606.06967)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["ConditionedVelocity", "ReversibleSolver"]

ConditionedVelocity: TypeAlias = Callable[[Tensor, float], Tensor]
"""A velocity field with its observation already bound: ``(x [..., d], t in [0, 1)) -> [..., d]``."""

TOLERANCE = 4e-6
"""Largest rounding error, relative to a state of order one, that the recovered noise may carry."""


class ReversibleSolver:
    r"""Two-step reversible ODE solver: integrates a flow and inverts it exactly.

    Beside the state :math:`x_i` it carries the previous one, the *memory* :math:`x_{i-1}`.
    With :math:`\Delta t = 1/M` and :math:`t_i = i/M`,

    .. math::
        x_{i+1} &= (1-\sigma)\, x_i + \sigma\, x_{i-1} + (1+\sigma)\, \Delta t\, v(x_i, t_i), \\
        x_{i-1} &= \big(x_{i+1} - (1-\sigma)\, x_i - (1+\sigma)\, \Delta t\, v(x_i, t_i)\big) / \sigma .

    Both directions evaluate the velocity at the same point, so the inverse is exact for any
    network. The step :math:`(x_{i-1}, x_i) \mapsto (x_i, x_{i+1})` has
    :math:`|\det| = |\sigma|^d` whatever the velocity is: no Jacobian is ever formed.

    Inversion multiplies rounding error by up to :math:`|\sigma|^{-M}`. Where float32 would
    exceed ``4e-6``, the pair (not the network) is carried in float64; where float64 would exceed
    it too, the setting is refused.

    References:
        GenPO++, arXiv 2606.06967: the recurrence and its inverse (pipeline figure).

    Args:
        num_steps (int, optional): number of velocity evaluations :math:`M`. Defaults to ``5``.
        sigma (float, optional): weight :math:`\sigma` of the memory, in ``(-1, 1]`` and not zero.
            ``1`` is the explicit midpoint (leap-frog) rule. Defaults to ``0.75``.

    Raises:
        ValueError: if ``num_steps`` is not a positive integer, if ``sigma`` is outside its range,
            or if float64 cannot hold the inversion of ``num_steps`` steps at this ``sigma``.

    Examples:
        >>> import torch
        >>> from torchrl_genpo import ReversibleSolver
        >>> solver = ReversibleSolver(num_steps=5, sigma=0.75)
        >>> velocity = lambda x, t: torch.sin(3 * x) + t
        >>> x_0, memory_0 = torch.randn(2, 4, 3, dtype=torch.float64)
        >>> action, memory = solver.integrate(velocity, x_0, memory_0)
        >>> noise = solver.invert(velocity, action, memory)
        >>> torch.allclose(noise[0], x_0) and torch.allclose(noise[1], memory_0)
        True
        >>> round(solver.log_abs_det(3), 4)
        -4.3152
    """

    def __init__(self, num_steps: int = 5, sigma: float = 0.75) -> None:
        if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 1:
            raise ValueError(f"num_steps must be an integer of at least 1, got {num_steps!r}.")
        if not isinstance(sigma, (int, float)) or not math.isfinite(sigma):
            raise ValueError(f"sigma must be a finite number, got {sigma!r}.")
        if sigma == 0 or not -1 < sigma <= 1:
            raise ValueError(
                f"sigma must lie in (-1, 1] and must not be 0, got {sigma}: at 0 the step cannot be "
                "inverted, outside the interval the recurrence is unstable. The paper uses 0.75."
            )
        self.num_steps = num_steps
        self.sigma = float(sigma)
        self.dt = 1.0 / self.num_steps
        if self.error_amplification * torch.finfo(torch.float64).eps > TOLERANCE:
            limit = math.log(TOLERANCE / torch.finfo(torch.float64).eps)
            largest = int(limit / -math.log(abs(self.sigma)))
            raise ValueError(
                f"sigma={self.sigma} with num_steps={self.num_steps} cannot be inverted in float64: rounding "
                f"errors grow by |sigma|^-num_steps = {self.error_amplification:.1e}. At this sigma "
                f"num_steps can be at most {largest}; or bring sigma closer to 1."
            )

    @property
    def error_amplification(self) -> float:
        """Factor :math:`|\\sigma|^{-M}` by which inversion can enlarge a rounding error."""
        return abs(self.sigma) ** -self.num_steps

    def state_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that the pair is carried in for noise of ``dtype``: itself, or float64."""
        if self.error_amplification * torch.finfo(dtype).eps > TOLERANCE:
            return torch.float64
        return dtype

    def integrate(self, velocity: ConditionedVelocity, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Carries a pair of noise to the end of the flow, :math:`t = 0 \\to 1`.

        Args:
            velocity (Callable): ``(x [..., d], t) -> [..., d]``.
            x (Tensor): start :math:`x_0`, ``[..., d]``.
            memory (Tensor): its memory :math:`x_{-1}`, ``[..., d]``.

        Returns:
            The pair :math:`(x_M, x_{M-1})`, each ``[..., d]``, in :meth:`state_dtype`.
        """
        x, memory = self._to_state(x, memory)
        gain = (1 + self.sigma) * self.dt
        for i in range(self.num_steps):
            v = velocity(x, i * self.dt)
            x, memory = torch.lerp(x, memory, self.sigma).add(v, alpha=gain), x
        return x, memory

    def invert(self, velocity: ConditionedVelocity, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Recovers the noise that :meth:`integrate` started from, :math:`t = 1 \\to 0`.

        Args:
            velocity (Callable): ``(x [..., d], t) -> [..., d]``.
            x (Tensor): end :math:`x_M`, ``[..., d]``.
            memory (Tensor): its memory :math:`x_{M-1}`, ``[..., d]``.

        Returns:
            The pair :math:`(x_0, x_{-1})`, each ``[..., d]``, in :meth:`state_dtype`.
        """
        x, memory = self._to_state(x, memory)
        gain = (1 + self.sigma) * self.dt
        for i in reversed(range(self.num_steps)):
            v = velocity(memory, i * self.dt)
            # lerp(a, b, 1/s) = (b - (1-s) a) / s: the inverse is one lerp, as the step is
            x, memory = memory, torch.lerp(memory, x.sub(v, alpha=gain), 1 / self.sigma)
        return x, memory

    def log_abs_det(self, d: int) -> float:
        """Log absolute determinant of the whole map of pairs, :math:`M\\, d \\log|\\sigma|`.

        Args:
            d (int): size of one state (the pair holds ``2 d`` numbers).
        """
        return self.num_steps * d * math.log(abs(self.sigma))

    def _to_state(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape != memory.shape:
            raise ValueError(f"x and memory must have the same shape, got {tuple(x.shape)} and {tuple(memory.shape)}.")
        dtype = self.state_dtype(torch.promote_types(x.dtype, memory.dtype))
        return x.to(dtype), memory.to(dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_steps={self.num_steps}, sigma={self.sigma})"
