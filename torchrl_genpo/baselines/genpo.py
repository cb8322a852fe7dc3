# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""GenPO, whose likelihoods are exact by means of dummy actions (arXiv 2505.18763)."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor

from torchrl_genpo.flow import PairSolver, ReversibleFlow, VelocityField
from torchrl_genpo.flow.solver import LARGEST_AMPLIFICATION
from torchrl_genpo.modules.sequence import flow_of
from torchrl_genpo.objectives import GenPOLoss

__all__ = ["AlternatingCoupling", "DummyActionLoss"]


class AlternatingCoupling(PairSolver):
    r"""The solver of GenPO: alternating updates of an action and its dummy, then mixing.

    .. math::
        x' &= x + \Delta t\, v(y, t_i), & y' &= y + \Delta t\, v(x', t_i), \\
        x_{i+1} &= p\, x' + (1-p)\, y', & y_{i+1} &= p\, y' + (1-p)\, x_{i+1} .

    The updates are shears, so one step has :math:`|\det| = p^{2d}` whatever the velocity is. It costs two evaluations
    a step, in sampling and in scoring, twice those of :class:`~torchrl_genpo.ReversibleSolver`.

    The executed action is the mean of the two and the memory half their difference, a linear map with
    :math:`|\det| = 2^{-d}`. So the pair that :class:`~torchrl_genpo.ReversibleFlowActor` stores, its density and
    :class:`~torchrl_genpo.GenPOLoss` are what they are for every other solver.

    References:
        GenPO, arXiv 2505.18763, after EDICT, arXiv 2211.12446 (inversion by coupled registers).

    Args:
        num_steps (int, optional): steps :math:`M`. Defaults to ``5``.
        mixing (float, optional): :math:`p` in ``(0, 1]``. Defaults to ``0.95``, as in the authors' code.

    Raises:
        ValueError: if ``num_steps`` is not a positive integer, ``mixing`` is outside of ``(0, 1]``, or float64 could
            not hold the inversion.

    Examples:
        >>> import torch
        >>> from torchrl_genpo.baselines import AlternatingCoupling
        >>> solver = AlternatingCoupling(num_steps=5, mixing=0.95)
        >>> velocity = lambda x, t: torch.sin(3 * x) + t
        >>> x_0, y_0 = torch.randn(2, 4, 3, dtype=torch.float64)
        >>> action, memory = solver.integrate(velocity, x_0, y_0)
        >>> noise = solver.invert(velocity, action, memory)
        >>> torch.allclose(noise[0], x_0) and torch.allclose(noise[1], y_0)
        True
    """

    def __init__(self, num_steps: int = 5, mixing: float = 0.95) -> None:
        if not 0 < mixing <= 1:
            raise ValueError(f"mixing must lie in (0, 1], got {mixing}: at 0 a register is lost. GenPO uses 0.95.")
        self.mixing = float(mixing)
        super().__init__(num_steps)
        if self.error_amplification > LARGEST_AMPLIFICATION:
            raise ValueError(
                f"{self} cannot be inverted in float64: rounding errors grow by {self.error_amplification:.1e}. "
                "Take fewer steps, or a mixing closer to 1."
            )

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "mixing": self.mixing}

    @property
    def error_amplification(self) -> float:
        return self.mixing ** (-2 * self.num_steps)

    def integrate(self, velocity: VelocityField, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Carries the action and its dummy ``[..., d]`` to their mean and half their difference."""
        x, y = self._to_state(x, memory)
        for i in range(self.num_steps):
            x, y = self.step(i, velocity, x, y)
        return (x + y) / 2, (x - y) / 2

    def invert(self, velocity: VelocityField, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Recovers the action and the dummy that :meth:`integrate` started from."""
        mean, half = self._to_state(x, memory)
        x, y = mean + half, mean - half
        for i in reversed(range(self.num_steps)):
            x, y = self.step_back(i, velocity, x, y)
        return x, y

    def log_abs_det(self, d: int) -> float:
        return d * (2 * self.num_steps * math.log(self.mixing) - math.log(2))

    def step(self, i: int, velocity: VelocityField, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The action and its dummy after step ``i``."""
        x = x.add(velocity(y, i * self.dt), alpha=self.dt)
        y = y.add(velocity(x, i * self.dt), alpha=self.dt)
        x = torch.lerp(y, x, self.mixing)
        return x, torch.lerp(x, y, self.mixing)

    def step_back(self, i: int, velocity: VelocityField, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The action and its dummy before step ``i``."""
        y = (y - (1 - self.mixing) * x) / self.mixing
        x = (x - (1 - self.mixing) * y) / self.mixing
        y = y.sub(velocity(x, i * self.dt), alpha=self.dt)
        return x.sub(velocity(y, i * self.dt), alpha=self.dt), y

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_steps={self.num_steps}, mixing={self.mixing})"


class DummyActionLoss(GenPOLoss):
    r"""PPO on the exact ratio of a doubled action, with GenPO's compression loss.

    ``loss_compression`` is :math:`\lambda\, \mathbb{E}|x - y|`, the distance of a freshly sampled action and its dummy
    as the authors' code has it: it keeps the dummy from exploring what is never executed. It costs one more
    integration, unless its coefficient is 0.

    Args:
        actor_network (TensorDictModule): the policy: a :class:`~torchrl_genpo.ReversibleFlowActor` with a
            :class:`~torchrl_genpo.baselines.AlternatingCoupling`, or a sequence with one.
        critic_network (TensorDictModule, optional): the value operator.

    Keyword Args:
        compression_coeff (float, optional): :math:`\lambda`. Defaults to ``0.01``.
        **kwargs: any other keyword of :class:`~torchrl_genpo.GenPOLoss`.

    Raises:
        TypeError: if the solver of the actor has no registers.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_genpo import ReversibleFlowActor, VelocityMLP
        >>> from torchrl_genpo.baselines import AlternatingCoupling, DummyActionLoss
        >>> actor = ReversibleFlowActor(VelocityMLP(in_features=4, action_dim=2), solver=AlternatingCoupling())
        >>> loss = DummyActionLoss(actor, None, critic_coeff=None)
        >>> data = actor(TensorDict(observation=torch.randn(8, 4), batch_size=[8])).detach()
        >>> out = loss(data.set("advantage", torch.randn(8, 1)))
        >>> bool(out["loss_compression"] > 0), bool((out["max_ratio"] - 1).abs() < 1e-4)
        (True, True)
    """

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        critic_network: TensorDictModule | None = None,
        *,
        compression_coeff: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(actor_network, critic_network, **kwargs)
        solver = flow_of(actor_network).solver
        if not isinstance(solver, AlternatingCoupling):
            raise TypeError(
                f"DummyActionLoss compresses the registers of an AlternatingCoupling; this actor has {solver}. "
                "Use GenPOLoss."
            )
        self.register_coeff_buffer("compression_coeff", compression_coeff, device=next(self.parameters()).device)
        self._compresses = compression_coeff > 0
        if self._compresses:
            self.out_keys = [*self.out_keys, "loss_compression"]

    def _other_losses(self, dist: ReversibleFlow, tensordict: TensorDictBase) -> dict[str, Tensor]:
        found = super()._other_losses(dist, tensordict)
        if self._compresses:
            with self._in_place(self.actor_network_params):
                _, half = dist.to_standard(*dist.rsample())
            gap = (2 * half if dist.scale is None else 2 * half * dist.scale).norm(dim=-1)
            found["loss_compression"] = self.compression_coeff * self._reduce_loss(gap, tensordict)
        return found
