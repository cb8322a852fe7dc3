# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A start whose noise depends on the observation, by which a flow is steered that itself stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchrl_genpo.flow.solver import PairSolver, VelocityField
from torchrl_genpo.flow.start import Start

__all__ = ["SteeredStart"]


class SteeredStart(Start):
    r"""Another start, of noise with a mean and a scale that depend on the observation.

    Each of the two noises becomes

    .. math:: z = \mu(o) + e^{s(o)} \xi, \qquad \xi \sim N(0, I) ,

    before ``base`` makes the pair :math:`(x_0, x_{-1})` of them, so the log determinant grows by :math:`\sum s(o)`.
    Training this network alone steers a pre-trained flow, whose velocity is frozen, towards those of its actions that
    are good: reinforcement learning of the noise, with true likelihood ratios. As :math:`|\mu|` and :math:`|s|` are
    bounded by ``BOUND``, the flow is asked for no noise far from that which it was trained on. At first the noise is
    the standard normal one.

    Args:
        base (Start): what makes the pair of the noise.
        action_dim (int): ``d``.
        context_dim (int): size of the velocity's context (``VelocityMLP.context_dim``), which the network reads.
        num_cells (sequence of int, optional): widths of the network's layers. Defaults to ``(64,)``.

    Raises:
        ValueError: if ``base`` is steered already, or has another ``action_dim``.

    References:
        Wagenmaker et al., "Steering Your Diffusion Policy with Latent Space Reinforcement Learning", arXiv 2506.15799,
        which learns the noise off-policy; the exact densities and the scale are ours.

    Examples:
        >>> import torch
        >>> from torchrl_genpo import ConsistentStart, ReversibleFlowActor, SteeredStart, VelocityMLP
        >>> velocity = VelocityMLP(in_features=4, action_dim=2, num_cells=(32, 32)).requires_grad_(False)
        >>> start = SteeredStart(ConsistentStart(tau=0.1), action_dim=2, context_dim=velocity.context_dim)
        >>> actor = ReversibleFlowActor(velocity, start=start)
        >>> len([parameter for parameter in actor.parameters() if parameter.requires_grad])  # those of the network
        4
    """

    BOUND = 3.0

    def __init__(self, base: Start, action_dim: int, context_dim: int, num_cells: Sequence[int] = (64,)) -> None:
        if isinstance(base, SteeredStart):
            raise ValueError("The base of a SteeredStart is steered already: give it more num_cells instead.")
        if base.action_dim not in (None, action_dim):
            raise ValueError(f"The base has action_dim={base.action_dim}, not {action_dim}.")
        super().__init__()
        self.action_dim = action_dim
        self.base = base
        sizes = [context_dim, *num_cells, 4 * action_dim]  # mean and log scale of both noises
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.SiLU()]
        self.network = nn.Sequential(*layers[:-1])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the network anew, with a last layer of zero: the noise is the standard normal one."""
        for layer in self.network:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)

    @property
    def settings(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, "base": self.base.settings}

    @property
    def has_constant_entropy(self) -> bool:
        return False

    def free_pair(self, solver: PairSolver) -> Tensor:
        return self.base.free_pair(solver)  # the noise is not steered at first

    def from_noise(
        self, velocity: VelocityField, noise: Tensor, memory_noise: Tensor, *, solver: PairSolver
    ) -> tuple[Tensor, Tensor]:
        means, log_scales = self._law(velocity)
        noises = (
            mean + log_scale.exp() * z
            for mean, log_scale, z in zip(means, log_scales, (noise, memory_noise), strict=True)
        )
        return self.base.from_noise(velocity, *noises, solver=solver)

    def to_noise(
        self, velocity: VelocityField, x: Tensor, memory: Tensor, *, solver: PairSolver
    ) -> tuple[Tensor, Tensor]:
        means, log_scales = self._law(velocity)
        pair = self.base.to_noise(velocity, x, memory, solver=solver)
        first, second = (
            (z - mean) * log_scale.neg().exp() for mean, log_scale, z in zip(means, log_scales, pair, strict=True)
        )
        return first, second

    def log_abs_det(self, velocity: VelocityField, d: int, *, solver: PairSolver) -> Tensor | float:
        log_scales = self._law(velocity)[1]
        return self.base.log_abs_det(velocity, d, solver=solver) + torch.stack(log_scales).sum((0, -1))

    def _law(self, velocity: VelocityField) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Means and log scales of the two noises, each ``[..., d]``."""
        context = getattr(velocity, "context", None)
        if not isinstance(context, Tensor):
            raise ValueError(
                "A SteeredStart reads the context of the velocity, and this one has none (a tensor is needed): pass a "
                "ConditionedVelocity(velocity, context)."
            )
        raw = self.network(F.mish(context))
        law = (self.BOUND * torch.tanh(raw / self.BOUND)).chunk(4, -1)
        return law[:2], law[2:]

    def extra_repr(self) -> str:
        return f"action_dim={self.action_dim}"
