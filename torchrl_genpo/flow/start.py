# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Starts: the distribution of the pair (x_0, memory_0) that the solver integrates."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from torchrl_genpo.flow.solver import PairSolver, ReversibleSolver, VelocityField

__all__ = ["IndependentStart", "Start"]

Scale: TypeAlias = Literal["unit", "learned"]

DEFAULT_SOLVER = ReversibleSolver()  # the actor's default too


class Start(nn.Module, ABC):
    """Where the pair :math:`(x_0, x_{-1})` comes from: an invertible map of standard normal noise.

    A start says how a pair is built from two noise tensors (:meth:`from_noise`), how that is undone
    (:meth:`to_noise`) and what its log determinant is (:meth:`log_abs_det`). Sampling, density and entropy
    follow from these three. Each of them is given ``velocity``, the conditioned velocity ``(x, t) -> [..., d]``, of
    which some starts need a value or the ``context``, and ``solver``, the solver that integrates
    (``ReversibleSolver()`` by default), of which some need the size of a step.

    The noise may be scaled by one positive factor for each number: ``"unit"`` (the factor is 1) or ``"learned"`` (it is
    a parameter; :class:`SteeredStart` makes it a function of the observation). The log of the scale enters the density,
    which stays exact and Jacobian-free, and the entropy of the pair becomes a differentiable closed form.

    Args:
        scale (str): ``"unit"`` or ``"learned"``.
        rows (int): number of states that are scaled: 2 for the whole pair, 1 for :math:`x_0` alone.
        action_dim (int, optional): ``d``; needed unless the scale is ``"unit"``.
        initial_scale (float, optional): value of every scale at first; :meth:`set_first_std` chooses it by the
            deviation of actions. Defaults to ``1``.

    Raises:
        ValueError: for an unknown scale, or a size that is missing or has no effect.
    """

    def __init__(self, scale: Scale, rows: int, action_dim: int | None, initial_scale: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(initial_scale) and initial_scale > 0):
            raise ValueError(f"initial_scale must be positive and finite, got {initial_scale}.")
        if scale == "unit" and initial_scale != 1:
            raise ValueError(
                f"initial_scale={initial_scale} has no effect with scale='unit'; drop it or use 'learned'."
            )
        if scale not in get_args(Scale):
            raise ValueError(f"scale must be one of {', '.join(map(repr, get_args(Scale)))}, got {scale!r}.")
        if scale != "unit" and (action_dim is None or action_dim < 1):
            raise ValueError(f"scale={scale!r} needs action_dim, the size of the action; got {action_dim!r}.")
        self.scale = scale
        self.initial_scale, self.min_scale = float(initial_scale), 0.0
        self.rows = rows
        self.action_dim = action_dim
        # the log keeps the scale positive
        self.log_scale = nn.Parameter(torch.zeros(rows, action_dim)) if scale == "learned" and action_dim else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Puts the scale back to its first value."""
        if self.log_scale is not None:
            nn.init.constant_(self.log_scale, math.log(self.initial_scale))

    @property
    def settings(self) -> dict[str, Any]:
        """What fixes the map beside the parameters, as plain values by name."""
        floor = {"min_scale": self.min_scale} if self.min_scale else {}
        return {"kind": type(self).__name__, "scale": self.scale, **floor}

    @property
    def has_constant_entropy(self) -> bool:
        """Whether the entropy of the pair does not depend on any parameter."""
        return self.scale == "unit"

    @torch.no_grad()
    def free_pair(self, solver: PairSolver) -> Tensor:
        """The pair that a velocity of zero makes of the noise, as a matrix.

        Args:
            solver (PairSolver): the solver.

        Returns:
            ``[2, 2]``: by how much action and memory (rows) move with the noise of each (columns), in the first number
            of an action, at the present scales.
        """
        like = next(self.parameters(), torch.empty(()))

        def velocity(x: Tensor, t: float) -> Tensor:
            return torch.zeros_like(x)

        noise = torch.eye(2, dtype=like.dtype, device=like.device).unsqueeze(-1).expand(2, 2, self.action_dim or 1)
        pair = solver.integrate(velocity, *self.from_noise(velocity, *noise, solver=solver))
        return torch.stack(pair)[..., 0]

    def memory_weight(self, solver: PairSolver) -> float:
        """The regression of the memory on the action for a velocity of zero: how far one moves with the other."""
        action, memory = self.free_pair(solver)
        return float(action @ memory / (action @ action))

    def set_first_std(self, std: float, solver: PairSolver, min_std: float = 0.0) -> None:
        """Puts the scale to where actions have a standard deviation, while the velocity is zero.

        Args:
            std (float): the deviation of a first action.
            solver (PairSolver): the solver.
            min_std (float, optional): the deviation below which the scale is not learned. Defaults to ``0``.

        Raises:
            ValueError: for a unit scale, a deviation that is not positive, or one that the memory's noise exceeds.

        Examples:
            >>> import torch
            >>> from torchrl_genpo import IndependentStart, ReversibleFlow, ReversibleSolver
            >>> start, solver = IndependentStart("learned", action_dim=1), ReversibleSolver()
            >>> start.set_first_std(0.5, solver)
            >>> flow = ReversibleFlow(lambda x, t: 0 * x, 1, solver, start, (100_000,))
            >>> round(flow.sample()[0].std().item(), 2)
            0.5
        """
        if self.scale == "unit":
            raise ValueError(f"The deviation {std} of a first action has no effect on a scale of 1; use 'learned'.")
        if not 0 <= min_std <= std < math.inf or std == 0:
            raise ValueError(f"The deviations must be finite and 0 <= min_std <= std, got {min_std} and {std}.")
        self.initial_scale, self.min_scale = 1.0, 0.0
        self.reset_parameters()
        scaled, rest = self.free_pair(solver)[0].square().tolist()
        if self.rows == 2:  # both noises are scaled
            scaled, rest = scaled + rest, 0.0
        if std**2 <= rest:
            raise ValueError(
                f"The noise of the memory alone gives actions a deviation of {rest**0.5:.3g}, more than {std}: use a "
                "smaller tau."
            )
        self.initial_scale = math.sqrt((std**2 - rest) / scaled)
        self.min_scale = math.sqrt(max(min_std**2 - rest, 0) / scaled)
        self.reset_parameters()

    @abstractmethod
    def from_noise(
        self, velocity: VelocityField, noise: Tensor, memory_noise: Tensor, *, solver: PairSolver = DEFAULT_SOLVER
    ) -> tuple[Tensor, Tensor]:
        """Maps two standard normal tensors ``[..., d]`` to the pair ``(x_0, memory_0)``."""

    @abstractmethod
    def to_noise(
        self, velocity: VelocityField, x: Tensor, memory: Tensor, *, solver: PairSolver = DEFAULT_SOLVER
    ) -> tuple[Tensor, Tensor]:
        """Undoes :meth:`from_noise` exactly."""

    @abstractmethod
    def log_abs_det(self, velocity: VelocityField, d: int, *, solver: PairSolver = DEFAULT_SOLVER) -> Tensor | float:
        """Log absolute determinant of :meth:`from_noise` for states of size ``d``: a scalar, or one a context."""

    def sample(
        self,
        velocity: VelocityField,
        shape: Sequence[int],
        *,
        solver: PairSolver = DEFAULT_SOLVER,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draws the pair and its log density.

        Args:
            velocity (Callable): the conditioned velocity.
            shape (sequence of int): shape ``[..., d]`` of a state.

        Keyword Args:
            solver (PairSolver, optional): the solver. Defaults to ``ReversibleSolver()``.
            dtype (torch.dtype, optional): dtype of the noise.
            device (torch.device, optional): device of the noise.

        Returns:
            The pair ``x_0 [..., d]``, ``memory_0 [..., d]`` and its log density ``[...]``.
        """
        noise, memory_noise = torch.randn((2, *shape), dtype=dtype, device=device).unbind(0)
        x, memory = self.from_noise(velocity, noise, memory_noise, solver=solver)
        log_det = self.log_abs_det(velocity, shape[-1], solver=solver)
        return x, memory, _normal_log_density(noise, memory_noise) - log_det

    def log_prob(
        self, velocity: VelocityField, x: Tensor, memory: Tensor, *, solver: PairSolver = DEFAULT_SOLVER
    ) -> Tensor:
        """Log density ``[...]`` of the pair ``x [..., d]``, ``memory [..., d]``."""
        noise = self.to_noise(velocity, x, memory, solver=solver)
        return _normal_log_density(*noise) - self.log_abs_det(velocity, x.shape[-1], solver=solver)

    def entropy(self, velocity: VelocityField, d: int, *, solver: PairSolver = DEFAULT_SOLVER) -> Tensor | float:
        """Differential entropy of the pair in nats for states of size ``d``: a scalar, or one a context."""
        return d * (1 + math.log(2 * math.pi)) + self.log_abs_det(velocity, d, solver=solver)

    def log_scales(self) -> Tensor | None:
        """Logs of the scales, ``[rows, d]``, or ``None`` for a unit scale."""
        if self.log_scale is None or not self.min_scale:
            return self.log_scale
        return self.log_scale.clamp_min(math.log(self.min_scale))

    def extra_repr(self) -> str:
        return f"scale={self.scale!r}" + ("" if self.action_dim is None else f", action_dim={self.action_dim}")


class IndependentStart(Start):
    r"""The start of the paper, in which :math:`x_0` and :math:`x_{-1}` are independent and normal.

    Scales that are learned belong to two directions of the pair: the one that a velocity of zero carries to the action,
    and the one across it, which stays in the memory (:attr:`~torchrl_genpo.flow.PairSolver.free_direction`). So the
    width of the action is one number, learned as that of a Gaussian policy is. At equal scales the pair is the paper's.

    Args:
        scale (str, optional): ``"unit"``, the paper's standard normal pair, or ``"learned"``, one positive
            scale for each number and direction of the pair. See :class:`Start`. Defaults to ``"unit"``.
        action_dim (int, optional): ``d``; needed for, and only for, a scale that is not ``"unit"``.
        initial_scale (float, optional): value of every scale at first. Defaults to ``1``.

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

    def __init__(self, scale: Scale = "unit", action_dim: int | None = None, initial_scale: float = 1.0) -> None:
        super().__init__(scale, 2, action_dim, initial_scale)
        if scale == "unit" and action_dim is not None:
            raise ValueError(f"action_dim={action_dim} has no effect with scale='unit'; drop it or use 'learned'.")

    def from_noise(
        self, velocity: VelocityField, noise: Tensor, memory_noise: Tensor, *, solver: PairSolver = DEFAULT_SOLVER
    ) -> tuple[Tensor, Tensor]:
        log_scales = self.log_scales()
        if log_scales is None:
            return noise, memory_noise
        return _rotate(*self._scaled(noise, memory_noise, log_scales.exp()), *solver.free_direction)

    def to_noise(
        self, velocity: VelocityField, x: Tensor, memory: Tensor, *, solver: PairSolver = DEFAULT_SOLVER
    ) -> tuple[Tensor, Tensor]:
        log_scales = self.log_scales()
        if log_scales is None:
            return x, memory
        cos, sin = solver.free_direction
        return self._scaled(*_rotate(x, memory, cos, -sin), log_scales.neg().exp())

    def log_abs_det(self, velocity: VelocityField, d: int, *, solver: PairSolver = DEFAULT_SOLVER) -> Tensor | float:
        log_scales = self.log_scales()
        return 0.0 if log_scales is None else log_scales.sum((-2, -1))

    @staticmethod
    def _scaled(x: Tensor, memory: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        return x * scales[..., 0, :], memory * scales[..., 1, :]


def _rotate(x: Tensor, memory: Tensor, cos: float, sin: float) -> tuple[Tensor, Tensor]:
    return (x * cos).sub(memory, alpha=sin), (memory * cos).add(x, alpha=sin)


def _normal_log_density(noise: Tensor, memory_noise: Tensor) -> Tensor:
    numbers = noise.shape[-1] + memory_noise.shape[-1]
    energy = noise.square().sum(-1) + memory_noise.square().sum(-1)
    return -0.5 * (energy + numbers * math.log(2 * math.pi))
