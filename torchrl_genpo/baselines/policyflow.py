# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""PolicyFlow, whose likelihood ratios come from the change of a velocity along a straight path (arXiv 2602.01156)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import unravel_key
from torch import Tensor, nn
from torchrl.modules import IndependentNormal
from torchrl.objectives import ClipPPOLoss

from torchrl_genpo.flow import ConditionedVelocity, Velocity, midpoint
from torchrl_genpo.modules.euler import draw_noise
from torchrl_genpo.modules.inputs import as_keys, condition, network_dtype, read
from torchrl_genpo.modules.sequence import flow_of

__all__ = ["PolicyFlowActor", "PolicyFlowLoss"]


class PolicyFlowActor(TensorDictModuleBase):
    """A flow with normal noise on top: an action is where the flow carries noise to, plus a learned normal residual.

    It writes the action, ``flow_start`` (the noise) and ``flow_end`` (where the flow carried it), each ``[..., d]``,
    and ``action_log_prob`` ``[...]``, the log density of the action given ``flow_end``. Without exploration both noise
    and residual are zero.

    Args:
        velocity (Velocity): such as :class:`~torchrl_genpo.VelocityMLP`.
        num_steps (int, optional): number of steps of the midpoint rule, of two evaluations each. Defaults to ``10``.
        initial_scale (float, optional): standard deviation of the residual at first. Defaults to ``1``.

    Keyword Args:
        in_keys (NestedKey or list of NestedKey, optional): the observations. Defaults to ``["observation"]``.
        action_key (NestedKey, optional): defaults to ``"action"``.
        log_prob_key (NestedKey, optional): defaults to ``"action_log_prob"``.
    """

    def __init__(
        self,
        velocity: Velocity,
        num_steps: int = 10,
        initial_scale: float = 1.0,
        *,
        in_keys: NestedKey | Sequence[NestedKey] = "observation",
        action_key: NestedKey = "action",
        log_prob_key: NestedKey = "action_log_prob",
    ) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        if not 0 < initial_scale < math.inf:
            raise ValueError(f"initial_scale must be positive and finite, got {initial_scale}.")
        self.velocity = velocity
        self.num_steps = num_steps
        self.log_scale = nn.Parameter(torch.full((velocity.action_dim,), math.log(initial_scale)))
        self.action_key, self.log_prob_key = unravel_key(action_key), unravel_key(log_prob_key)
        self.dist_sample_keys, self.log_prob_keys = [self.action_key], [self.log_prob_key]  # as ClipPPOLoss asks
        self.in_keys = as_keys(in_keys)
        self.out_keys = [self.action_key, "flow_start", "flow_end", self.log_prob_key]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the action and what its ratio needs."""
        observations = read(tensordict, *self.in_keys)
        velocity = ConditionedVelocity(self.velocity, self.velocity.condition(*observations))
        shape = (*observations[0].shape[:-1], self.velocity.action_dim)
        start = draw_noise(shape, network_dtype(self.velocity, observations[0]), observations[0].device)
        end = midpoint(velocity, start, self.num_steps)
        action = end + draw_noise(end.shape, end.dtype, end.device) * self.log_scale.exp()
        values = (action, start, end, self.residual_dist(end).log_prob(action))
        return tensordict.update(dict(zip(self.out_keys, values, strict=True)))

    def log_prob(self, tensordict: TensorDictBase) -> Tensor:
        """Log density ``[...]`` of the stored action given the stored end of its flow."""
        return self.residual_dist(tensordict.get("flow_end")).log_prob(tensordict.get(self.action_key))

    def residual_dist(self, loc: Tensor) -> IndependentNormal:
        """Distribution of the action around ``loc [..., d]``."""
        return IndependentNormal(loc, self.log_scale.exp().expand_as(loc))


class PolicyFlowLoss(ClipPPOLoss):
    r"""PPO on PolicyFlow's approximate ratio, with its Brownian regulariser.

    Of an action that the flow carried from :math:`x_0` to :math:`x_1`, the new policy is taken to be the normal law
    around :math:`x_1 + v_\theta(x_t, t) - v_\text{old}(x_t, t)`, with :math:`x_t = (1-t) x_0 + t x_1` and a new
    :math:`t \sim U[0, 1]` in every mini-batch: the change of the velocity at one point of a straight path stands for
    the change of the whole flow. It costs one evaluation of each network, without an integration or a gradient through
    one; but it is a surrogate, exact only at unchanged parameters.

    ``loss_brownian`` keeps the flow from collapsing onto a mode: it draws :math:`(1-t)\, v_\theta` towards
    :math:`x_t - t\, v_\text{old}`, the present estimate of :math:`x_0`, and so the velocity towards the one by which
    Brownian motion would spread the actions.

    References:
        PolicyFlow, arXiv 2602.01156, and the authors' code (what the text leaves open).

    It differs from what was published in this: :math:`t` is continuous (the code draws it from the grid of its
    solver); the square error of the regulariser is a mean over dimensions, as in the code (the paper has a sum); the KL
    of the learning rate is estimated from the samples, as for every policy of this package (the code has the closed
    form of two normal laws); Adam has no weight decay; evaluation without noise leaves out :math:`x_0` and residual
    (the code draws both).

    Args:
        actor_network (TensorDictModule): the policy: a :class:`PolicyFlowActor`, or a sequence with one.
        critic_network (TensorDictModule, optional): the value operator.

    Keyword Args:
        brownian_coeff (float, optional): weight of the regulariser. Defaults to ``0.0025``.
        **kwargs: any other keyword of :class:`~torchrl.objectives.ClipPPOLoss`, except for ``delay_actor`` and
            ``functional``; the entropy is that of the residual.

    Raises:
        TypeError: if ``actor_network`` has no :class:`PolicyFlowActor`.
        ValueError: for ``delay_actor=True`` or ``functional=False``.
        KeyError: in ``forward``, if :meth:`before_updates` was never called.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_genpo import VelocityMLP
        >>> from torchrl_genpo.baselines import PolicyFlowActor, PolicyFlowLoss
        >>> actor = PolicyFlowActor(VelocityMLP(in_features=4, action_dim=2, num_cells=(32, 32)))
        >>> loss = PolicyFlowLoss(actor, None, critic_coeff=None)
        >>> data = actor(TensorDict(observation=torch.randn(8, 4), batch_size=[8])).detach()
        >>> data = loss.before_updates(data.set("advantage", torch.randn(8, 1)))
        >>> loss(data)["max_ratio"].item()  # nothing was updated yet
        1.0
    """

    _in_keys: list[NestedKey]
    out_keys: list[NestedKey]
    actor_network: TensorDictModuleBase
    actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        critic_network: TensorDictModule | None = None,
        *,
        brownian_coeff: float = 0.0025,
        entropy_bonus: bool = False,
        **kwargs: Any,
    ) -> None:
        actor = flow_of(actor_network)
        if not isinstance(actor, PolicyFlowActor):
            raise TypeError(f"PolicyFlowLoss trains a PolicyFlowActor, got {type(actor).__name__}.")
        if kwargs.get("functional") is False:
            raise ValueError("PolicyFlow compares two sets of parameters of one network: leave functional=False out.")
        if kwargs.get("delay_actor"):
            raise ValueError(
                "PolicyFlow draws another point of the path whenever it scores, so a proximal policy cannot be "
                "compared with the present one: use delay_actor=False."
            )
        super().__init__(actor_network, critic_network, entropy_bonus=entropy_bonus, **kwargs)
        self.set_keys(action=actor.action_key, sample_log_prob=actor.log_prob_key)
        self.register_coeff_buffer("brownian_coeff", brownian_coeff, device=next(self.parameters()).device)
        self.out_keys = [*self.out_keys, "loss_brownian"]
        self._behaviour_params: TensorDict | None = None  # not saved, because every collected batch sets it anew
        self._brownian_error: Tensor | None = None

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        self._in_keys += ["flow_start", "flow_end"]

    def _apply(self, *args: Any, **kwargs: Any) -> PolicyFlowLoss:
        self._behaviour_params = None  # the present ones may move to another dtype or device
        return super()._apply(*args, **kwargs)

    @torch.no_grad()
    def before_updates(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Keeps the present parameters as those of the old velocity; the data is returned as it is.

        It is to be called on every collected batch before the first update.
        """
        if self._behaviour_params is None:
            self._behaviour_params = self.actor_network_params.data.clone()
        else:
            self._behaviour_params.update_(self.actor_network_params.data)  # in place, where a CUDA graph reads them
        return tensordict

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes the losses and diagnostics; see :class:`~torchrl.objectives.ClipPPOLoss`."""
        if self._behaviour_params is None:
            raise KeyError(
                "The loss has no old velocity: call loss.before_updates(data) once on every collected batch before "
                "its first update."
            )
        td_out = super().forward(tensordict)
        error, self._brownian_error = self._brownian_error, None
        return td_out.set("loss_brownian", self.brownian_coeff * self._reduce_loss(error, tensordict))

    def _get_cur_log_prob(
        self, tensordict: TensorDictBase, params: TensorDictParams | None = None
    ) -> tuple[Tensor, IndependentNormal, bool]:
        start, end = read(tensordict, "flow_start", "flow_end")
        time = torch.rand_like(start[..., 0])
        along = torch.lerp(start, end, time.unsqueeze(-1))
        is_current = params is None
        if params is None:
            params = self.actor_network_params
        with torch.no_grad():
            old = self._velocity(tensordict, self._behaviour_params, along, time)
        new = self._velocity(tensordict, params, along, time)
        with params.to_module(self.actor_network):
            dist = flow_of(self.actor_network).residual_dist(end + new - old)
        time = time.unsqueeze(-1)
        if is_current:
            self._brownian_error = ((1 - time) * new - (along - time * old)).square().mean(-1)
        return dist.log_prob(tensordict.get(self.tensor_keys.action)), dist, False

    def _velocity(self, tensordict: TensorDictBase, params: TensorDict, x: Tensor, time: Tensor) -> Tensor:
        with params.to_module(self.actor_network):
            velocity, context = condition(self.actor_network, tensordict)
            return velocity(x, time, context)
