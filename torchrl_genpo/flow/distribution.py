# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The distribution of the pair (action, memory) that a reversible flow produces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl

from torchrl_genpo.flow.divergence import divergence
from torchrl_genpo.flow.marginal import MarginalEstimate, marginal_log_prob, propose_memory
from torchrl_genpo.flow.solver import PairSolver, VelocityField
from torchrl_genpo.flow.start import Start
from torchrl_genpo.flow.velocity import ConditionedVelocity

__all__ = ["Pair", "ReversibleFlow"]

Pair = tuple[Tensor, Tensor]


class ReversibleFlow(Distribution):
    r"""Distribution of the pair (action, memory) of a reversible flow.

    Its log density is exact and needs no Jacobian (arXiv 2606.06967): with
    :math:`(x_0, x_{-1})` the inverse of (action, memory),

    .. math:: \log p(\text{action}, \text{memory}) = \log p_\text{start}(x_0, x_{-1}) - M d \log|\sigma| .

    With a ``loc`` :math:`\mu` and a ``scale`` :math:`s` the flow makes a standardised pair :math:`(x, m)` of the noise,
    the action is :math:`\mu + s x`, its memory :math:`m - w x`, and :math:`-\sum \log s` is added. Where :math:`w` is
    the regression of :math:`m` on :math:`x` (:meth:`~torchrl_genpo.flow.Start.memory_weight`), another :math:`\mu` or
    :math:`s` changes the density of the pair no more than that of the action.

    It is the density of the *pair*, constants included.

    The density of the action alone is its integral over the memory; :meth:`action_log_prob` estimates it.

    ``torch.distributions.kl_divergence`` of two flows is :meth:`kl_divergence` with one sample.

    Args:
        velocity (Callable): conditioned velocity, ``(x [*sample, *batch, d], t) -> same``; a
            :class:`ConditionedVelocity` for parts that need its context or parameters.
        action_dim (int): ``d``.
        solver (PairSolver): the solver, such as :class:`ReversibleSolver`.
        start (Start): distribution of the pair at time zero.
        batch_shape (sequence of int, optional): batch shape of the context. Defaults to ``()``.

    Keyword Args:
        dtype (torch.dtype, optional): dtype that the velocity computes in. Densities are returned in it too, or in
            float32 if it is narrower.
        device (torch.device, optional): device of the samples.
        scored (tuple of Tensor, optional): a pair to score at construction, whose density
            ``log_prob(action)`` then returns without the memory. For losses that score the action
            alone, at a time when the parameters are no longer in place (stock ``ClipPPOLoss``).
        loc (Tensor, optional): the mean :math:`\mu` of the actions, ``[*batch, d]``, if the velocity is zero. Defaults
            to none.
        scale (Tensor, optional): the positive scale :math:`s`, ``[*batch, d]``, by which what is integrated is
            multiplied: the deviation of an action by that of a flow without a velocity
            (:meth:`~torchrl_genpo.flow.Start.width`). Defaults to none.
        memory_weight (Tensor or float, optional): :math:`w`, the part of a standardised action that its memory leaves
            out. Defaults to none.

    Attributes:
        log_abs_det (Tensor or float): log absolute determinant of the map from noise to pair, ``[*batch]`` or one for
            all. It is computed when the distribution is made, so that densities share its graph.

    Examples:
        >>> import torch
        >>> from torchrl_genpo import IndependentStart, ReversibleFlow, ReversibleSolver
        >>> dist = ReversibleFlow(lambda x, t: -x, 2, ReversibleSolver(), IndependentStart(), (4,))
        >>> (action, memory), log_prob = dist.rsample_and_log_prob()
        >>> torch.allclose(dist.log_prob(action, memory), log_prob, atol=1e-5)
        True
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.real, 1)
    has_rsample = True

    def __init__(
        self,
        velocity: VelocityField,
        action_dim: int,
        solver: PairSolver,
        start: Start,
        batch_shape: Sequence[int] = (),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        scored: Pair | None = None,
        loc: Tensor | None = None,
        scale: Tensor | None = None,
        memory_weight: Tensor | float | None = None,
    ) -> None:
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        # a density of half precision has steps of some percent, and a ratio of two no meaning
        self.density_dtype = torch.promote_types(self.dtype, torch.float32)
        self.device = device
        self.action_dim = action_dim
        self.solver = solver
        self.start = start
        self._velocity = velocity
        self.loc = loc
        self.scale = scale
        self.memory_weight = memory_weight
        # an event has the 2 x d numbers of action and memory
        super().__init__(torch.Size(batch_shape), torch.Size((2, action_dim)), validate_args=False)
        # computed now, while the parameters are surely in place; losses ask for it later
        of_start = start.log_abs_det(self.velocity, action_dim, solver=solver)
        of_scale = 0.0 if scale is None else scale.log().sum(-1)
        self.log_abs_det = of_start + solver.log_abs_det(action_dim) + of_scale
        self._zero_noise: tuple[Pair, Tensor, bool] | None = None
        self._scored = None if scored is None else (scored[0], self.log_prob(*scored))

    @property
    def velocity(self) -> ConditionedVelocity:
        """A conditioned velocity that is new for every pass, within which it repeats no evaluation."""
        if isinstance(self._velocity, ConditionedVelocity):
            return ConditionedVelocity(self._velocity.velocity, self._velocity.context, self.dtype)
        return ConditionedVelocity(lambda x, t, _: self._velocity(x, t), dtype=self.dtype)

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Pair, Tensor]:
        """Draws pairs and their log density from one pass, without inversion.

        Returns:
            The pair of action and memory, each ``[*sample, *batch, d]``, and its log density ``[*sample, *batch]``.
        """
        shape = (2, *sample_shape, *self.batch_shape, self.action_dim)
        noise = torch.randn(shape, dtype=self.solver.state_dtype(self.dtype), device=self.device).unbind(0)
        return self.from_noise(*noise), self._log_prob_of_noise(*noise)

    @torch.no_grad()
    def sample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Pair, Tensor]:
        """Draws as :meth:`rsample_and_log_prob` does, without gradients."""
        return self.rsample_and_log_prob(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Pair:  # type: ignore[override]
        """Draws pairs: action ``[*sample, *batch, d]``, memory ``[*sample, *batch, d]``."""
        return self.rsample_and_log_prob(sample_shape)[0]

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Pair:  # type: ignore[override]
        """Draws as :meth:`rsample` does, without gradients."""
        return self.rsample(sample_shape)

    def log_prob(self, action: Tensor | Pair, memory: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Log density ``[*sample, *batch]`` of the pair.

        Args:
            action (Tensor or tuple of Tensor): ``[*sample, *batch, d]``, or the pair as it was sampled.
            memory (Tensor, optional): ``[*sample, *batch, d]``. May be left out only for the
                action of ``scored``.

        Raises:
            ValueError: if the memory is missing, or a size does not match ``action_dim``.
        """
        if isinstance(action, tuple):
            action, memory = action
        if memory is None:
            return self._scored_log_prob(action)
        if self._zero_noise is not None:
            (zero_action, zero_memory), log_prob, has_gradient = self._zero_noise
            if action is zero_action and memory is zero_memory and has_gradient >= torch.is_grad_enabled():
                return log_prob  # a deterministic actor scores what it has just made
        return self._log_prob_of_noise(*self.to_noise(action, memory))

    def from_noise(self, noise: Tensor, memory_noise: Tensor) -> Pair:
        """The pair that is made from two standard normal tensors ``[..., d]``."""
        velocity = self.velocity
        pair = self.start.from_noise(velocity, noise, memory_noise, solver=self.solver)
        return self.from_standard(*self.solver.integrate(velocity, *pair))

    def to_noise(self, action: Tensor, memory: Tensor) -> Pair:
        """The two standard normal tensors ``[..., d]`` that the pair was made from."""
        velocity = self.velocity
        x, memory = self.solver.invert(velocity, *self.to_standard(action, memory))
        return self.start.to_noise(velocity, x, memory, solver=self.solver)

    def action_log_prob(self, action: Tensor, num_samples: int = 64, memory: Tensor | None = None) -> MarginalEstimate:
        r"""Estimates the log density of the action alone, the memory integrated out.

        Importance sampling: the mean of :math:`p(a, m_n) / q(m_n \mid a)`, whose proposal
        (:func:`~torchrl_genpo.flow.propose_memory`) is Laplace's approximation of :math:`p(m \mid a)`. The
        density is estimated without bias; its log is biased low by about half of the relative
        variance, which is about ``1 / ess - 1 / num_samples``.

        Args:
            action (Tensor): ``[*batch, d]``.
            num_samples (int, optional): memories an action. Defaults to ``64``.
            memory (Tensor, optional): a likely memory, where the search of the proposal begins.

        Returns:
            ``log_prob [*batch]``, differentiable in the parameters, and ``effective_sample_size [*batch]``
            of ``num_samples``.

        Raises:
            ValueError: if ``num_samples`` is below 1.

        Examples:
            >>> import torch
            >>> from torchrl_genpo import IndependentStart, ReversibleFlow, ReversibleSolver
            >>> dist = ReversibleFlow(lambda x, t: -x, 1, ReversibleSolver(), IndependentStart(), (4,))
            >>> log_prob, ess = dist.action_log_prob(dist.sample()[0], num_samples=32)
            >>> log_prob.shape, bool((ess > 16).all())
            (torch.Size([4]), True)
        """
        return self.estimate_action_log_prob(action, *self.propose_memory(action, num_samples, memory))

    def estimate_action_log_prob(self, action: Tensor, memories: Tensor, log_proposal: Tensor) -> MarginalEstimate:
        """Estimates the log density of actions by memories that :meth:`propose_memory` drew.

        Args:
            action (Tensor): ``[*batch, d]``.
            memories (Tensor): ``[n, *batch, d]``.
            log_proposal (Tensor): ``[n, *batch]``.
        """
        return marginal_log_prob(self.log_prob(action.expand(len(memories), *action.shape), memories), log_proposal)

    def propose_memory(self, action: Tensor, num_samples: int, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Memories ``[n, *batch, d]`` for given actions and their log proposal density ``[n, *batch]``."""
        if not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples must be an integer of at least 1, got {num_samples!r}; 64 is a good choice.")
        memories, log_proposal = propose_memory(self, self._checked(action), num_samples, memory)
        dtype = self.solver.state_dtype(self.dtype)
        return memories.to(dtype), log_proposal.to(self.density_dtype)

    @property
    def mode(self) -> Pair:  # type: ignore[override]
        """The pair of zero noise, which is the deterministic policy and not the mode of the density."""
        if self._zero_noise is None:
            shape = (*self.batch_shape, self.action_dim)
            zeros = torch.zeros(shape, dtype=self.solver.state_dtype(self.dtype), device=self.device)
            log_prob = self._log_prob_of_noise(zeros, zeros)
            self._zero_noise = self.from_noise(zeros, zeros), log_prob, torch.is_grad_enabled()
        return self._zero_noise[0]

    mean = median = deterministic_sample = mode  # type: ignore[assignment]  # every deterministic exploration type is zero noise

    def entropy(self) -> Tensor:
        r"""Entropy of the pair in nats, ``[*batch]``.

        :math:`d (1 + \log 2\pi) + M d \log|\sigma|` plus the log determinants of start and scale: a constant without
        a scale that is learned, and a start with parameters.
        """
        entropy = self.action_dim * (1 + math.log(2 * math.pi)) + self.log_abs_det
        return torch.as_tensor(entropy, dtype=self.density_dtype, device=self.device).expand(self.batch_shape)

    def kl_divergence(self, other: ReversibleFlow, num_samples: int = 1) -> Tensor:
        r"""Divergence :math:`KL(p \| q)` in nats ``[*batch]`` from another flow, differentiable in both.

        It is that of the pairs, which bounds that of the actions from above. Two flows of one velocity
        (:meth:`with_start`) whose starts are of one kind have a closed form. Otherwise pairs are drawn: the mean over
        samples, elements or calls is right, single numbers may be negative. The other flow may have any velocity,
        solver and start.

        Args:
            other (ReversibleFlow): :math:`q`.
            num_samples (int, optional): pairs for each element of the batch. Defaults to ``1``.

        Raises:
            ValueError: for another batch shape or size of action, or ``num_samples`` below 1.

        Examples:
            >>> from torchrl_genpo import ConsistentStart, ReversibleFlow, ReversibleSolver
            >>> wide, narrow = ConsistentStart(tau=0.2), ConsistentStart(tau=0.1)
            >>> flow = ReversibleFlow(lambda x, t: -x, 2, ReversibleSolver(), narrow)
            >>> round(flow.kl_divergence(flow.with_start(wide)).item(), 3)  # 2 (log 2 + 1/8 - 1/2)
            0.636
        """
        return divergence(self, other, num_samples)

    def with_start(self, start: Start) -> ReversibleFlow:
        """The flow of the same velocity, for the same observations, from another start."""
        return type(self)(
            self._velocity,
            self.action_dim,
            self.solver,
            start,
            self.batch_shape,
            dtype=self.dtype,
            device=self.device,
            loc=self.loc,
            scale=self.scale,
            memory_weight=self.memory_weight,
        )

    def moves_noise_as(self, other: ReversibleFlow) -> bool:
        """Whether both are one map of the pair at time zero, as those that :meth:`with_start` makes."""
        mine, others = ((each._velocity, each.loc, each.scale, each.memory_weight) for each in (self, other))
        is_one_map = all(a is b for a, b in zip(mine, others, strict=True))
        return is_one_map and self.solver.settings == other.solver.settings

    def to_standard(self, action: Tensor, memory: Tensor) -> Pair:
        """The standardised pair, which is what the solver inverts."""
        x = self._checked(action)
        if self.loc is not None:
            x = x - self.loc
        if self.scale is not None:
            x = x / self.scale
        return x, memory if self.memory_weight is None else memory + self.memory_weight * x

    def from_standard(self, x: Tensor, memory: Tensor) -> Pair:
        """Undoes :meth:`to_standard`."""
        if self.memory_weight is not None:
            memory = memory - self.memory_weight * x
        if self.scale is not None:
            x = x * self.scale
        return x if self.loc is None else x + self.loc, memory

    def _log_prob_of_noise(self, noise: Tensor, memory_noise: Tensor) -> Tensor:
        """The log density of the pair that is made from this noise."""
        energy = noise.square().sum(-1) + memory_noise.square().sum(-1)
        log_prob = -0.5 * energy - self.action_dim * math.log(2 * math.pi)
        return (log_prob - self.log_abs_det).to(self.density_dtype)

    def _scored_log_prob(self, action: Tensor) -> Tensor:
        if self._scored is None:
            raise ValueError(
                "A reversible flow has a density for the pair (action, memory) only: pass log_prob(action, memory), "
                "or give get_dist a tensordict that holds the memory."
            )
        scored, log_prob = self._scored
        if action is not scored and not torch.equal(action, scored):
            raise ValueError(
                "log_prob(action) without a memory returns the density of the pair that get_dist was given, and "
                "this is another action: pass log_prob(action, memory)."
            )
        return log_prob

    def _checked(self, action: Tensor) -> Tensor:
        if action.shape[-1] != self.action_dim:
            raise ValueError(f"The flow has actions of size {self.action_dim}, got {action.shape[-1]}.")
        return action

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_shape={tuple(self.batch_shape)}, action_dim={self.action_dim})"


register_kl(ReversibleFlow, ReversibleFlow)(divergence)
