# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Reversible multi-step solvers: the two-step rule of GenPO++ (arXiv 2606.06967) and its k-step relatives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from torchrl_genpo.flow.reversible import integrate_reversibly, invert_reversibly

__all__ = ["PairSolver", "ReversibleSolver", "VelocityField"]

VelocityField: TypeAlias = Callable[[Tensor, float], Tensor]
"""A velocity with its observation already bound: ``(x [..., d], t in [0, 1)) -> [..., d]``."""

TOLERANCE = 4e-6
"""Largest rounding error, relative to a state of order one, that the recovered noise may carry."""

FLOAT64_MARGIN = 5e3
"""What a float32 network adds to the error of a float64 state, at most, as measured: it sees the reconstructed state
through its own rounding (``benchmarks/results/precision.md``)."""


LARGEST_AMPLIFICATION = TOLERANCE / (FLOAT64_MARGIN * torch.finfo(torch.float64).eps)
"""Of rounding errors, by the inversion, that a float64 state can hold."""


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
    def num_memories(self) -> int:
        """Number :math:`k - 1` of states that the memory ``[..., (k-1) d]`` holds."""

    @property
    @abstractmethod
    def error_amplification(self) -> float:
        """Factor by which the inversion can enlarge a rounding error."""

    @abstractmethod
    def integrate(self, velocity: VelocityField, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Carries a pair of noise to the end of the flow; the result has the same shapes, in :meth:`state_dtype`."""

    @abstractmethod
    def invert(self, velocity: VelocityField, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The exact inverse of :meth:`integrate`."""

    @abstractmethod
    def log_abs_det(self, d: int) -> float:
        """Log absolute determinant of :meth:`integrate` for states of size ``d``."""

    largest_amplification = 0.0
    """Of what this solver is going to be, if its rule will move: states then have one dtype all the time."""

    def state_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that the states are carried in for noise of ``dtype``: itself, or float64."""
        if max(self.error_amplification, self.largest_amplification) * torch.finfo(dtype).eps > TOLERANCE:
            return torch.float64
        return dtype

    def split(self, x: Tensor, memory: Tensor) -> list[Tensor]:
        """The list of states, newest first, each ``[..., d]``."""
        return [x, *memory.split(x.shape[-1], -1)] if self.num_memories > 1 else [x, memory]

    def join(self, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Undoes :meth:`split`."""
        return states[0], torch.cat(list(states[1:]), -1) if self.num_memories > 1 else states[1]

    def _to_state(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        if memory.shape != (*x.shape[:-1], self.num_memories * x.shape[-1]):
            same = "the same shape" if self.num_memories == 1 else f"{self.num_memories} memories for each state"
            raise ValueError(f"x and memory must have {same}, got {tuple(x.shape)} and {tuple(memory.shape)}.")
        dtype = self.state_dtype(torch.promote_types(x.dtype, memory.dtype))
        return x.to(dtype), memory.to(dtype)


class ReversibleSolver(PairSolver):
    r"""Multi-step reversible ODE solver: integrates a flow and inverts it exactly.

    Beside the state :math:`x_i` it carries the :math:`k - 1` states before, the *memory*. With
    :math:`\Delta t = 1/M`, :math:`t_i = i/M` and :math:`c = 1 + \sum_j j\,a_j` (consistency),

    .. math::
        x_{i+1} &= \textstyle\sum_{j<k} a_j\, x_{i-j} + c\, \Delta t\, v(x_i, t_i), \\
        x_{i-k+1} &= \textstyle\big(x_{i+1} - \sum_{j<k-1} a_j\, x_{i-j} - c\, \Delta t\, v(x_i, t_i)\big) / a_{k-1} .

    Both directions evaluate the velocity at the same point, so the inverse is exact for any
    network, and one step has :math:`|\det| = |a_{k-1}|^d` whatever the velocity is: no Jacobian is
    ever formed. The paper's solver has two steps, :math:`a = (1-\sigma, \sigma)`.

    Inversion multiplies rounding error by about :attr:`error_amplification`. Where one rounding of
    float32 would become more than ``4e-6``, the states (not the network) are carried in float64;
    where float64 could not hold the inversion either, the setting is refused.

    References:
        GenPO++, arXiv 2606.06967: the two-step recurrence and its inverse (pipeline figure).
        Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", III.2-3: order and
        zero-stability of multi-step rules. The three-step family is ours.

    Args:
        num_steps (int, optional): number of velocity evaluations :math:`M`. Defaults to ``5``.
        sigma (float or sequence of float, optional): weight :math:`\sigma` of the memory in the
            two-step rule, in ``(-1, 1]`` and not zero; or one for each step. ``1`` is the explicit
            midpoint (leap-frog) rule. Defaults to ``0.75``.

    Keyword Args:
        coefficients (sequence of float, optional): :math:`a_0, \dots, a_{k-1}` of a rule of your
            own, instead of ``sigma``.
        gradient (str, optional): ``"stored"`` keeps the activations of every step for the backward
            pass; ``"reversible"`` keeps those of none and reconstructs the states while going
            backward, so that memory does not grow with ``num_steps``, for about one more
            evaluation a step. Needs a :class:`~torchrl_genpo.flow.ConditionedVelocity`; a
            ``torch.compile`` of it runs uncompiled, and ``torch.func`` cannot transform it. Defaults to
            ``"stored"``.

    Raises:
        ValueError: if ``num_steps`` is not a positive integer, if ``sigma`` is outside its range or
            has another length, if the coefficients are inconsistent, unstable or not invertible,
            or if float64 cannot hold the inversion of ``num_steps`` steps.

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
        >>> solver.order, ReversibleSolver.three_step(num_steps=5).order
        (1, 2)
    """

    def __init__(
        self,
        num_steps: int = 5,
        sigma: float | Sequence[float] = 0.75,
        *,
        coefficients: Sequence[float] | None = None,
        gradient: Literal["stored", "reversible"] = "stored",
    ) -> None:
        super().__init__(num_steps)
        if gradient not in ("stored", "reversible"):
            raise ValueError(f"gradient must be 'stored' or 'reversible', got {gradient!r}.")
        self.gradient = gradient
        if coefficients is None:
            self.sigma = sigma
        else:
            self._set_rule([_checked_coefficients(coefficients)] * num_steps, None)

    @classmethod
    def two_step(
        cls,
        sigma: float | Sequence[float] = 0.75,
        num_steps: int = 5,
        gradient: Literal["stored", "reversible"] = "stored",
    ) -> ReversibleSolver:
        r"""The paper's rule, :math:`a = (1-\sigma, \sigma)`: first order, second at :math:`\sigma = 1`."""
        return cls(num_steps, sigma, gradient=gradient)

    @classmethod
    def three_step(
        cls, a: float = 1.0, num_steps: int = 5, gradient: Literal["stored", "reversible"] = "stored"
    ) -> ReversibleSolver:
        r"""The strictly stable second-order family :math:`a = (a, 1 - \tfrac43 a, \tfrac13 a)`.

        Its two parasitic roots are those of :math:`z^2 + (1 - a) z + a/3`, inside of the unit
        circle for :math:`0 < a < 3`. Two memories, and one evaluation a step as always.

        Raises:
            ValueError: if ``a`` is outside of ``(0, 3)``.
        """
        if not isinstance(a, (int, float)) or not 0 < a < 3:
            raise ValueError(f"three_step is stable for a in (0, 3) only, got {a!r}. 1 is a good choice.")
        return cls(num_steps, coefficients=(a, 1 - 4 * a / 3, a / 3), gradient=gradient)

    @property
    def sigma(self) -> float | tuple[float, ...] | None:
        """Weight of the memory in the two-step rule, or one a step; ``None`` for other rules.

        May be set between updates (densities stored before are then of another policy).
        """
        return self._sigma

    @sigma.setter
    def sigma(self, value: float | Sequence[float]) -> None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number and (isinstance(value, str) or not isinstance(value, Sequence)):
            raise ValueError(f"sigma must be a number or a sequence of one a step, got {value!r}.")
        values: list[Any] = [value] * self.num_steps if is_number else list(value)  # type: ignore[arg-type]
        if len(values) != self.num_steps:
            raise ValueError(f"sigma has {len(values)} values for num_steps={self.num_steps}: give one, or one a step.")
        checked = [_checked_sigma(s) for s in values]
        self._set_rule([(1 - s, s) for s in checked], checked[0] if is_number else tuple(checked))

    def _set_rule(self, coefficients: list[tuple[float, ...]], sigma: float | tuple[float, ...] | None) -> None:
        inverse, amplification = np.eye(len(coefficients[0])), 1.0
        for count, step in enumerate(reversed(coefficients)):
            inverse = _inverse_step(step) @ inverse
            amplification = float(np.linalg.norm(inverse, 2))
            if amplification > LARGEST_AMPLIFICATION:  # before anything is set: a refused sigma leaves the old one
                raise ValueError(
                    f"{_described(coefficients, sigma)} with num_steps={self.num_steps} cannot be inverted in float64: "
                    f"rounding errors grow by more than {LARGEST_AMPLIFICATION:.1e} (about sigma^-num_steps for the "
                    f"two-step rule). With this rule num_steps can be at most {count}; or take one whose memory weighs "
                    "more (sigma closer to 1)."
                )
        self.coefficients = coefficients
        """:math:`a_0, \\dots, a_{k-1}` of each step."""
        self._sigma = sigma
        self._error_amplification = amplification
        self._gains = [self.dt * (1 + sum(j * a for j, a in enumerate(step))) for step in coefficients]

    @property
    def num_memories(self) -> int:
        """Number :math:`k - 1` of earlier states that the memory ``[..., (k-1) d]`` holds, newest first."""
        return len(self.coefficients[0]) - 1

    @property
    def order(self) -> int:
        r"""Order of convergence: the largest :math:`p` with :math:`\sum_j a_j (-j)^q = 1` for :math:`2 \le q \le p`."""
        order = 1
        while order < 4 and all(
            abs(sum(a * (-j) ** (order + 1) for j, a in enumerate(step)) - 1) < 1e-9 for step in self.coefficients
        ):
            order += 1
        return order

    def roots(self, step: int = 0) -> list[complex]:
        r"""Roots of the characteristic polynomial :math:`z^k - \sum_j a_j z^{k-1-j}`.

        The first is 1 (consistency). The others, the parasitic ones, say how fast the memory's own
        noise dies out; they lie in the unit circle, and only simple ones on it (zero-stability).
        """
        return _roots(self.coefficients[step])

    @property
    def step_amplification(self) -> float:
        r"""Factor by which rounding errors grow a step of a long inversion: :math:`1/\min|z|`, a geometric mean."""
        smallest = (min(map(abs, _roots(step))) for step in self.coefficients)
        return math.prod(smallest) ** (-1 / self.num_steps)

    @property
    def error_amplification(self) -> float:
        r"""Factor by which the whole inversion can enlarge a rounding error of the pair that it begins with.

        The largest singular value of the inverse without a velocity, which is linear; about :math:`|\sigma|^{-M}` for
        the two-step rule.
        """
        return self._error_amplification

    def integrate(self, velocity: VelocityField, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Carries a pair of noise to the end of the flow, :math:`t = 0 \\to 1`.

        Args:
            velocity (Callable): ``(x [..., d], t) -> [..., d]``.
            x (Tensor): start :math:`x_0`, ``[..., d]``.
            memory (Tensor): its memory :math:`x_{-1}` (and before), ``[..., (k-1) d]``.

        Returns:
            The pair :math:`(x_M, x_{M-1})`, of the same shapes, in :meth:`state_dtype`.
        """
        x, memory = self._to_state(x, memory)
        if self.gradient == "reversible" and torch.is_grad_enabled():
            return integrate_reversibly(self, velocity, x, memory)
        states = self.split(x, memory)
        for i in range(self.num_steps):
            states = self.step(i, states, velocity(states[0], i * self.dt))
        return self.join(states)

    def invert(self, velocity: VelocityField, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Recovers the noise that :meth:`integrate` started from, :math:`t = 1 \\to 0`.

        Args:
            velocity (Callable): ``(x [..., d], t) -> [..., d]``.
            x (Tensor): end :math:`x_M`, ``[..., d]``.
            memory (Tensor): its memory :math:`x_{M-1}` (and before), ``[..., (k-1) d]``.

        Returns:
            The pair :math:`(x_0, x_{-1})`, of the same shapes, in :meth:`state_dtype`.
        """
        x, memory = self._to_state(x, memory)
        if self.gradient == "reversible" and torch.is_grad_enabled():
            return invert_reversibly(self, velocity, x, memory)
        states = self.split(x, memory)
        for i in reversed(range(self.num_steps)):
            states = self.step_back(i, states, velocity(states[1], i * self.dt))
        return self.join(states)

    def step(self, i: int, states: Sequence[Tensor], v: Tensor) -> list[Tensor]:
        """States ``x_{i+1}, x_i, ...`` from ``x_i, x_{i-1}, ...`` and the velocity at ``x_i``."""
        new = states[0] * self.coefficients[i][0]
        for a, state in zip(self.coefficients[i][1:], states[1:], strict=True):
            new = new.add(state, alpha=a)
        return [new.add(v, alpha=self._gains[i]), *states[:-1]]

    def step_back(self, i: int, states: Sequence[Tensor], v: Tensor) -> list[Tensor]:
        """States ``x_i, x_{i-1}, ...`` from ``x_{i+1}, x_i, ...`` and the velocity at ``x_i``."""
        oldest = states[0]
        for a, state in zip(self.coefficients[i], states[1:], strict=False):
            oldest = oldest.sub(state, alpha=a)
        return [*states[1:], oldest.sub(v, alpha=self._gains[i]) / self.coefficients[i][-1]]

    def step_gradient(self, i: int, grads: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Gradients with respect to the arguments of :meth:`step`, which is linear, from those of its result."""
        new, rest = grads[0], grads[1:]
        kept = [grad.add(new, alpha=a) for a, grad in zip(self.coefficients[i], rest, strict=False)]
        return [*kept, new * self.coefficients[i][-1]], new * self._gains[i]

    def step_back_gradient(self, i: int, grads: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Gradients with respect to the arguments of :meth:`step_back` from those of its result."""
        oldest = grads[-1] / self.coefficients[i][-1]
        kept = [grad.sub(oldest, alpha=a) for a, grad in zip(self.coefficients[i], grads[:-1], strict=False)]
        return [oldest, *kept], oldest * -self._gains[i]

    def log_abs_det(self, d: int) -> float:
        """Log absolute determinant of the whole map, :math:`d \\sum_i \\log|a_{k-1}|`; :math:`M\\, d \\log|\\sigma|`.

        Args:
            d (int): size of one state.
        """
        return d * sum(math.log(abs(step[-1])) for step in self.coefficients)

    def __repr__(self) -> str:
        gradient = "" if self.gradient == "stored" else f", gradient={self.gradient!r}"
        return (
            f"{type(self).__name__}(num_steps={self.num_steps}, {_described(self.coefficients, self._sigma)}{gradient})"
        )


def _described(coefficients: Sequence[Sequence[float]], sigma: float | tuple[float, ...] | None) -> str:
    if sigma is None:
        return "coefficients=(" + ", ".join(f"{a:.4g}" for a in coefficients[0]) + ")"
    return f"sigma={sigma}"


def _inverse_step(coefficients: Sequence[float]) -> np.ndarray:
    """Matrix ``[k, k]`` of :meth:`ReversibleSolver.step_back` without a velocity."""
    inverse = np.eye(len(coefficients), k=1)
    inverse[-1] = np.array([1.0, *(-a for a in coefficients[:-1])]) / coefficients[-1]
    return inverse


def _roots(coefficients: Sequence[float]) -> list[complex]:
    if len(coefficients) == 2:  # z^2 - (1-s) z - s = (z - 1)(z + s), without rounding
        return [complex(1), complex(-coefficients[1])]
    roots = np.roots([1.0, *(-a for a in coefficients)])
    return sorted((complex(z) for z in roots), key=lambda z: abs(z - 1))


def _checked_sigma(sigma: float) -> float:
    if not isinstance(sigma, (int, float)) or isinstance(sigma, bool) or not math.isfinite(sigma):
        raise ValueError(f"sigma must be a finite number, got {sigma!r}.")
    if sigma == 0 or not -1 < sigma <= 1:
        raise ValueError(
            f"sigma must lie in (-1, 1] and must not be 0, got {sigma}: at 0 the step cannot be "
            "inverted, outside the interval the recurrence is unstable. The paper uses 0.75."
        )
    return float(sigma)


def _checked_coefficients(coefficients: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(a) for a in coefficients)
    if len(values) < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"coefficients must be at least two finite numbers, got {values}.")
    if values[-1] == 0:
        raise ValueError(f"The last coefficient must not be 0, or the step cannot be inverted; got {values}.")
    if abs(sum(values) - 1) > 1e-9:
        raise ValueError(
            f"Inconsistent: the coefficients {values} sum to {sum(values):.6g} instead of 1, so that a constant state "
            "would not stay. Use two_step(sigma) or three_step(a), or scale them."
        )
    roots = _roots(values)
    on_circle = [z for z in roots if abs(abs(z) - 1) < 1e-6]
    repeated = any(abs(z - w) < 1e-4 for n, z in enumerate(on_circle) for w in on_circle[:n])
    if max(map(abs, roots)) > 1 + 1e-6 or repeated:
        raise ValueError(
            f"Unstable: the characteristic roots of the coefficients {values} have moduli "
            f"{', '.join(f'{abs(z):.4g}' for z in roots)}; all must be at most 1, and those of modulus 1 simple. "
            "Use two_step(sigma) or three_step(a)."
        )
    return values
