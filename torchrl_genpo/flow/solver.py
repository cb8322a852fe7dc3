# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The reversible two-step solver of GenPO++ (arXiv 2606.06967), and what a flow policy needs of any solver."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from torchrl_genpo.flow.reversible import integrate_reversibly, invert_reversibly

__all__ = ["PairSolver", "ReversibleSolver", "VelocityField"]

VelocityField: TypeAlias = Callable[[Tensor, float], Tensor]
"""A velocity whose observation is already bound: ``(x [..., d], t in [0, 1)) -> [..., d]``."""

TOLERANCE = 4e-6
"""The largest rounding error, relative to a state of order one, that the recovered noise may carry."""

FLOAT64_MARGIN = 5e3
"""The factor, as measured, by which a float32 network can enlarge the error of a float64 state: it sees the
reconstructed state through its own rounding (``benchmarks/results/precision.md``)."""

LARGEST_AMPLIFICATION = TOLERANCE / (FLOAT64_MARGIN * torch.finfo(torch.float64).eps)
"""The largest amplification of rounding errors by the inversion that a float64 state can hold."""


class PairSolver(ABC):
    """What a flow policy needs of a solver: an invertible map of a state and its memory whose volume change is known.

    Args:
        num_steps (int): number of steps :math:`M` of size :attr:`dt` ``= 1 / M``.

    Raises:
        ValueError: if ``num_steps`` is not a positive integer.
    """

    def __init__(self, num_steps: int) -> None:
        if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 1:
            raise ValueError(f"num_steps must be an integer of at least 1, got {num_steps!r}.")
        self.num_steps = num_steps
        self.dt = 1.0 / num_steps

    @property
    @abstractmethod
    def error_amplification(self) -> float:
        """Factor by which the inversion can enlarge a rounding error."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that fixes the map, as plain values by name; see :meth:`ReversibleFlowActor.get_extra_state`."""
        return {"rule": type(self).__name__, "num_steps": self.num_steps}

    @abstractmethod
    def integrate(self, velocity: VelocityField, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Carries a pair of noise ``[..., d]`` to the end of the flow; the result is in :meth:`state_dtype`."""

    @abstractmethod
    def invert(self, velocity: VelocityField, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Undoes :meth:`integrate` exactly."""

    @abstractmethod
    def log_abs_det(self, d: int) -> float:
        """Log absolute determinant of :meth:`integrate` for states of size ``d``."""

    def state_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that carries the states for noise of ``dtype``: the same one, or a wider one if need be."""
        for candidate in (dtype, torch.float32):
            if self.error_amplification * torch.finfo(candidate).eps <= TOLERANCE:
                return candidate
        return torch.float64

    def _to_state(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        if memory.shape != x.shape:
            raise ValueError(f"x and memory must have the same shape, got {tuple(x.shape)} and {tuple(memory.shape)}.")
        dtype = self.state_dtype(torch.promote_types(x.dtype, memory.dtype))
        return x.to(dtype), memory.to(dtype)


class ReversibleSolver(PairSolver):
    r"""The two-step reversible ODE solver: it integrates a flow and inverts it exactly.

    Beside the state :math:`x_i` it carries the state before, the *memory*. With :math:`\Delta t = 1/M` and
    :math:`t_i = i/M`,

    .. math::
        x_{i+1} &= (1-\sigma)\, x_i + \sigma\, x_{i-1} + (1+\sigma)\, \Delta t\, v(x_i, t_i), \\
        x_{i-1} &= \big(x_{i+1} - (1-\sigma)\, x_i - (1+\sigma)\, \Delta t\, v(x_i, t_i)\big) / \sigma .

    Both directions evaluate the velocity at the same point, so the inverse is exact for any network, and one step
    has :math:`|\det| = |\sigma|^d` whatever the velocity is: no Jacobian is ever formed. The rule is of first order,
    and of second order at :math:`\sigma = 1`, where it is the explicit midpoint (leap-frog) rule.

    Inversion multiplies a rounding error by about :math:`|\sigma|^{-M}` (:attr:`error_amplification`). Where one
    rounding of float32 would become more than ``4e-6``, the states (not the network) are carried in float64; a
    setting that float64 cannot hold either is refused.

    References:
        GenPO++, arXiv 2606.06967: the recurrence and its inverse (pipeline figure).
        Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", III.2-3: order and zero-stability of
        multi-step rules.

    Args:
        num_steps (int, optional): number of velocity evaluations :math:`M`. Defaults to ``5``.
        sigma (float, optional): weight :math:`\sigma` of the memory, in ``(-1, 1]`` and not zero. Defaults to
            ``0.75``.

    Keyword Args:
        gradient (str, optional): ``"stored"`` keeps the activations of every step for the backward pass;
            ``"reversible"`` keeps those of none and reconstructs the states while it goes backward, so that memory
            does not grow with ``num_steps``, for about one more evaluation a step. It needs a
            :class:`~torchrl_genpo.flow.ConditionedVelocity`; ``torch.compile`` leaves it uncompiled, and
            ``torch.func`` cannot transform it. Defaults to ``"stored"``.

    Raises:
        ValueError: if ``num_steps`` is not a positive integer, if ``sigma`` is outside of its range, or if float64
            cannot hold the inversion of ``num_steps`` steps.

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

    def __init__(
        self,
        num_steps: int = 5,
        sigma: float = 0.75,
        *,
        gradient: Literal["stored", "reversible"] = "stored",
    ) -> None:
        super().__init__(num_steps)
        if gradient not in ("stored", "reversible"):
            raise ValueError(f"gradient must be 'stored' or 'reversible', got {gradient!r}.")
        if not isinstance(sigma, (int, float)) or isinstance(sigma, bool) or not math.isfinite(sigma):
            raise ValueError(f"sigma must be a finite number, got {sigma!r}.")
        if sigma == 0 or not -1 < sigma <= 1:
            raise ValueError(
                f"sigma must lie in (-1, 1] and must not be 0, got {sigma}: at 0 the step cannot be "
                "inverted, outside the interval the recurrence is unstable. The paper uses 0.75."
            )
        self.gradient = gradient
        self._sigma = float(sigma)
        self._gain = self.dt * (1 + self._sigma)
        self._error_amplification = self._amplify(self._sigma)

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "sigma": self._sigma}

    @property
    def sigma(self) -> float:
        """Weight of the memory."""
        return self._sigma

    @property
    def error_amplification(self) -> float:
        r"""Factor by which the whole inversion can enlarge a rounding error of the pair that it begins with.

        It is the largest singular value of the inverse without a velocity, which is linear; about
        :math:`|\sigma|^{-M}`.
        """
        return self._error_amplification

    def integrate(self, velocity: VelocityField, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        r"""Carries a pair of noise to the end of the flow, :math:`t = 0 \to 1`.

        Args:
            velocity (Callable): ``(x [..., d], t) -> [..., d]``.
            x (Tensor): the start :math:`x_0`, ``[..., d]``.
            memory (Tensor): its memory :math:`x_{-1}`, ``[..., d]``.

        Returns:
            The pair :math:`(x_M, x_{M-1})`, of the same shapes, in :meth:`state_dtype`.
        """
        x, memory = self._to_state(x, memory)
        if self.gradient == "reversible" and torch.is_grad_enabled():
            return integrate_reversibly(self, velocity, x, memory)
        for i in range(self.num_steps):
            x, memory = self.step(x, memory, velocity(x, i * self.dt))
        return x, memory

    def invert(self, velocity: VelocityField, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        r"""Recovers the noise that :meth:`integrate` started from, :math:`t = 1 \to 0`.

        Args:
            velocity (Callable): ``(x [..., d], t) -> [..., d]``.
            x (Tensor): the end :math:`x_M`, ``[..., d]``.
            memory (Tensor): its memory :math:`x_{M-1}`, ``[..., d]``.

        Returns:
            The pair :math:`(x_0, x_{-1})`, of the same shapes, in :meth:`state_dtype`.
        """
        x, memory = self._to_state(x, memory)
        if self.gradient == "reversible" and torch.is_grad_enabled():
            return invert_reversibly(self, velocity, x, memory)
        for i in reversed(range(self.num_steps)):
            x, memory = self.step_back(x, memory, velocity(memory, i * self.dt))
        return x, memory

    def log_abs_det(self, d: int) -> float:
        r"""Log absolute determinant of the whole map, :math:`M\, d \log|\sigma|`.

        Args:
            d (int): size of one state.
        """
        return self.num_steps * d * math.log(abs(self._sigma))

    def step(self, x: Tensor, memory: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        r"""The pair :math:`(x_{i+1}, x_i)` from :math:`(x_i, x_{i-1})` and the velocity at :math:`x_i`."""
        return (x * (1 - self._sigma)).add(memory, alpha=self._sigma).add(v, alpha=self._gain), x

    def step_back(self, x: Tensor, memory: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        r"""The pair :math:`(x_i, x_{i-1})` from :math:`(x_{i+1}, x_i)` and the velocity at :math:`x_i`."""
        return memory, x.sub(memory, alpha=1 - self._sigma).sub(v, alpha=self._gain) / self._sigma

    def step_gradient(self, grad_x: Tensor, grad_memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients with respect to the three arguments of :meth:`step`, which is linear, from those of its result."""
        return grad_memory.add(grad_x, alpha=1 - self._sigma), grad_x * self._sigma, grad_x * self._gain

    def step_back_gradient(self, grad_x: Tensor, grad_memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients with respect to the three arguments of :meth:`step_back` from those of its result."""
        grad = grad_memory / self._sigma
        return grad, grad_x.sub(grad, alpha=1 - self._sigma), grad * -self._gain

    def _amplify(self, sigma: float) -> float:
        """Computes :attr:`error_amplification`, or refuses a setting that float64 cannot hold."""
        amplification, g = 1.0, 0.0
        for count in range(self.num_steps):
            # One step back without a velocity is the matrix A = [[0, 1], [1/sigma, 1 - 1/sigma]], whose eigenvalues
            # are 1 and -1/sigma. So A^n = 1 + g (A - 1) with the geometric sum g of the powers of -1/sigma below n.
            g = 1 - g / sigma
            (a, b), (c, d) = (1 - g, g), (g / sigma, 1 - g / sigma)
            amplification = (math.hypot(a + d, b - c) + math.hypot(a - d, b + c)) / 2  # its largest singular value
            if not amplification <= LARGEST_AMPLIFICATION:
                raise ValueError(
                    f"sigma={sigma} with num_steps={self.num_steps} cannot be inverted in float64: rounding errors "
                    f"grow by about |sigma|^-num_steps, more than {LARGEST_AMPLIFICATION:.1e}. With this sigma "
                    f"num_steps can be at most {count}; or take a sigma closer to 1."
                )
        return amplification

    def __repr__(self) -> str:
        gradient = "" if self.gradient == "stored" else f", gradient={self.gradient!r}"
        return f"{type(self).__name__}(num_steps={self.num_steps}, sigma={self.sigma}{gradient})"
