# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""FPO++, which replaces the likelihood ratio by differences of the flow-matching loss (arXiv 2602.02481)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
    dispatch,
)
from torch import Tensor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.ppo import _broadcast_advantage_to_log_weight, _check_advantage_broadcast

from torchrl_genpo.flow import Velocity
from torchrl_genpo.modules.euler import EulerActor, draw_noise
from torchrl_genpo.modules.inputs import condition, read
from torchrl_genpo.modules.sequence import flow_of
from torchrl_genpo.objectives import flow_matching_error

__all__ = ["FPOActor", "FPOLoss", "asymmetric_gain"]

DRAWN_KEYS = ("flow_noise", "flow_time", "flow_error")  # what before_updates writes


class FPOActor(EulerActor):
    """Samples a flow by Euler's rule and, where it explores, perturbs the action a little.

    Args:
        velocity (Velocity): such as :class:`~torchrl_genpo.VelocityMLP`.
        num_steps (int, optional): velocity evaluations an action. Defaults to ``10`` (FPO++: up to 64).
        perturbation (float, optional): standard deviation of the normal noise that is added under the exploration
            type ``RANDOM``. Defaults to ``0.02``, as in FPO++.

    Keyword Args:
        in_keys (NestedKey or list of NestedKey, optional): the observations. Defaults to ``["observation"]``.
        action_key (NestedKey, optional): defaults to ``"action"``.
    """

    def __init__(
        self,
        velocity: Velocity,
        num_steps: int = 10,
        perturbation: float = 0.02,
        *,
        in_keys: NestedKey | Sequence[NestedKey] = "observation",
        action_key: NestedKey = "action",
    ) -> None:
        super().__init__(velocity, num_steps, in_keys=in_keys, action_key=action_key)
        if not 0 <= perturbation < math.inf:
            raise ValueError(f"perturbation must be finite and not negative, got {perturbation}.")
        self.perturbation = perturbation

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the action, from zero noise and unperturbed unless the exploration type is ``RANDOM``."""
        action = super().forward(tensordict).get(self.action_key)
        perturbation = self.perturbation * draw_noise(action.shape, action.dtype, action.device)
        return tensordict.set(self.action_key, action + perturbation)


def asymmetric_gain(log_ratio: Tensor, advantage: Tensor, clip_epsilon: Tensor | float) -> Tensor:
    r"""The objective of FPO++, which is PPO's clip for positive advantages and SPO's penalty for negative ones.

    .. math:: \min(r A,\ \text{clip}(r, 1 \pm \epsilon) A) \ \text{if}\ A > 0, \quad
        r A - \tfrac{|A|}{2 \epsilon} (r - 1)^2 \ \text{otherwise.}

    The penalty pulls a ratio back where a clip would only stop pushing it.

    Args:
        log_ratio (Tensor): ``[...]``.
        advantage (Tensor): ``[...]``.
        clip_epsilon (Tensor or float): :math:`\epsilon`.

    Examples:
        >>> import torch
        >>> asymmetric_gain(torch.tensor([1.5, 1.5]).log(), torch.tensor([1.0, -1.0]), 0.2)
        tensor([ 1.2000, -2.1250])
    """
    ratio, clip_epsilon = log_ratio.exp(), torch.as_tensor(clip_epsilon)
    clipped = ratio.clamp(max=1 + clip_epsilon) * advantage
    penalised = ratio * advantage - advantage.abs() / (2 * clip_epsilon) * (ratio - 1).square()
    return torch.where(advantage > 0, clipped, penalised)


class FPOLoss(ClipPPOLoss):
    r"""PPO on the surrogate of FPO++ for the likelihood ratio, one for each sample of noise and time.

    With :math:`\ell_\theta(a, \epsilon, t)` the flow-matching loss of the stored action :math:`a` on its straight path
    from :math:`\epsilon \sim N(0, I)` at time :math:`t`, the ratio of a sample is
    :math:`\exp(\ell_\text{old} - \ell_\theta)`, and :func:`asymmetric_gain` bounds each one by itself. It is not a
    likelihood ratio but the exponential of a difference of bounds on log likelihoods, and biased as such.

    :meth:`before_updates` draws the samples and their old loss for every collected batch, before the first update.

    References:
        FPO++, "Flow Policy Gradients for Robot Control", arXiv 2602.02481, Eqs. 10-13.
        FPO, "Flow Matching Policy Gradients", arXiv 2507.21053 (the surrogate, averaged over the samples).
        SPO, "Simple Policy Optimization", arXiv 2401.16025 (the penalty).

    It differs from what was published in this: time runs from noise to action, as in the paper (the authors' code runs
    back); actor and critic have one Adam without weight decay, and there is no moving average of the weights, as for
    all policies of this package; ``kl_approx`` is the mean of :math:`r - 1 - \log r`, where the code has a mean square
    change of predictions.

    Args:
        actor_network (TensorDictModule): the policy: an :class:`FPOActor`, any other module with ``velocity``,
            ``in_keys`` and ``action_key``, or a sequence with one of them.
        critic_network (TensorDictModule, optional): the value operator.

    Keyword Args:
        num_samples (int, optional): number of samples :math:`(\epsilon, t)` an action. Defaults to ``16``.
        clip_epsilon (float, optional): defaults to ``0.05``, as in FPO++.
        error_scale (str, optional): the squared error of the ``d`` numbers of an action is their ``"sum"`` (the
            paper), ``"mean"``, or ``"sqrt"``, the sum over :math:`\sqrt d` (the code). Defaults to ``"sqrt"``.
        max_error (float, optional): bound on each loss, against outliers. Defaults to ``20``.
        max_log_ratio (float, optional): bound on each log ratio, which lets gradients pass. Defaults to ``10``.
        **kwargs: any other keyword of :class:`~torchrl.objectives.ClipPPOLoss`, except for those of its entropy
            bonus, ``delay_actor`` and ``max_importance_ratio``.

    Raises:
        TypeError: if ``actor_network`` has no velocity.
        ValueError: for ``entropy_bonus=True`` (the entropy of the flow is unknown), an option of a likelihood ratio, or
            one out of range.
        KeyError: in ``forward``, if :meth:`before_updates` was not called.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_genpo import VelocityMLP
        >>> from torchrl_genpo.baselines import FPOActor, FPOLoss
        >>> actor = FPOActor(VelocityMLP(in_features=4, action_dim=2, num_cells=(32, 32)))
        >>> loss = FPOLoss(actor, None, critic_coeff=None)
        >>> data = actor(TensorDict(observation=torch.randn(8, 4), batch_size=[8])).detach()
        >>> data = loss.before_updates(data.set("advantage", torch.randn(8, 1)))
        >>> loss(data)["max_ratio"].item()  # nothing was updated yet
        1.0
    """

    _in_keys: list[NestedKey]
    actor_network: TensorDictModuleBase
    actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        critic_network: TensorDictModule | None = None,
        *,
        num_samples: int = 16,
        clip_epsilon: float = 0.05,
        error_scale: Literal["sum", "mean", "sqrt"] = "sqrt",
        max_error: float = 20.0,
        max_log_ratio: float = 10.0,
        entropy_bonus: bool = False,
        **kwargs: Any,
    ) -> None:
        actor = flow_of(actor_network)
        if entropy_bonus:
            raise ValueError("FPO knows no entropy of its flow: use entropy_bonus=False (loss.entropy_coeff=0).")
        if error_scale not in ("sum", "mean", "sqrt"):
            raise ValueError(f"error_scale must be 'sum', 'mean' or 'sqrt', got {error_scale!r}.")
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
        if not isinstance(clip_epsilon, (int, float)):
            raise ValueError(f"FPO's trust region has one clip_epsilon, got {clip_epsilon!r}.")
        for name in ("delay_actor", "max_importance_ratio"):
            if kwargs.get(name):
                raise ValueError(f"FPO has no likelihood ratio that {name}={kwargs[name]} could act on; leave it out.")
        if isinstance(actor_network, ProbabilisticTensorDictSequential) and not actor_network.log_prob_keys:
            # nothing in it has a density, for whose key ClipPPOLoss would ask
            actor_network = TensorDictSequential(*actor_network.module.children())
        super().__init__(actor_network, critic_network, clip_epsilon=clip_epsilon, entropy_bonus=False, **kwargs)
        self.set_keys(action=actor.action_key)
        self.num_samples = num_samples
        self.error_scale = error_scale
        self.max_error = max_error
        self.max_log_ratio = max_log_ratio

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        self._in_keys = [key for key in self._in_keys if key != self.tensor_keys.sample_log_prob]
        self._in_keys += DRAWN_KEYS

    @torch.no_grad()
    def before_updates(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Adds ``flow_noise [..., n, d]``, ``flow_time [..., n]`` and their loss ``flow_error [..., n]``.

        It is to be called on every collected batch before the first update, under the parameters that collected it.
        """
        (action,) = read(tensordict, self.tensor_keys.action)
        shape = (*action.shape[:-1], self.num_samples)
        noise = torch.randn(*shape, action.shape[-1], dtype=action.dtype, device=action.device)
        # the time does not quite reach the ends, as in FPO++
        time = 0.005 + 0.99 * torch.rand(shape, dtype=action.dtype, device=action.device)
        values = (noise, time, self._error(tensordict, noise, time))
        return tensordict.update(dict(zip(DRAWN_KEYS, values, strict=True)))

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes the losses and the diagnostics of ``ClipPPOLoss``, over samples instead of actions."""
        noise, time, old_error = (tensordict.get(key, None) for key in DRAWN_KEYS)
        if noise is None or time is None or old_error is None:
            raise KeyError(
                f"The data lacks {', '.join(map(repr, DRAWN_KEYS))}: call loss.before_updates(data) once on every "
                "collected batch before its first update."
            )
        is_estimated_here = self._has_critic and tensordict.get(self.tensor_keys.advantage, None) is None
        if is_estimated_here:
            tensordict = tensordict.clone(False)
            critic_params = self._cached_critic_network_params_detached
            self.value_estimator(tensordict, params=critic_params, target_params=self.target_critic_network_params)
        (advantage,) = read(tensordict, self.tensor_keys.advantage)
        advantage = self._maybe_normalize_advantage(advantage, tensordict, update_norm=is_estimated_here)
        if not old_error.numel():
            raise ValueError(f"The loss of an empty batch is undefined, got one of {tuple(tensordict.shape)}.")
        log_ratio = old_error - self._error(tensordict, noise, time)
        log_ratio = log_ratio + (log_ratio.clamp(max=self.max_log_ratio) - log_ratio).detach()
        advantage = _broadcast_advantage_to_log_weight(advantage, log_ratio[..., :1])
        _check_advantage_broadcast(advantage, log_ratio[..., :1])
        gain = asymmetric_gain(log_ratio, advantage, self.clip_epsilon).mean(-1)
        td_out = TensorDict({"loss_objective": self._reduce_loss(-gain, tensordict)})
        if self._has_critic:
            loss_critic, value_clip_fraction, explained_variance = self.loss_critic(tensordict)
            td_out.set("loss_critic", self._reduce_loss(loss_critic, tensordict).squeeze(-1))
            found = {"value_clip_fraction": value_clip_fraction, "explained_variance": explained_variance}
            td_out.update({key: value for key, value in found.items() if value is not None})
        log_ratio = log_ratio.detach()
        ratio = log_ratio.exp()
        return td_out.update(
            {
                "clip_fraction": ((ratio - 1).abs() > self.clip_epsilon).to(ratio.dtype).mean(),
                "kl_approx": (ratio - 1 - log_ratio).mean(),
                "ESS": ratio.sum().square() / ratio.square().sum() / ratio.numel(),
                "max_ratio": ratio.max(),
                "mean_ratio": ratio.mean(),
            }
        )

    def _error(self, tensordict: TensorDictBase, noise: Tensor, time: Tensor) -> Tensor:
        """Bounded flow-matching loss ``[..., n]`` of the stored actions under the present parameters."""
        (action,) = read(tensordict, self.tensor_keys.action)
        noise, time = noise.movedim(-2, 0), time.movedim(-1, 0)  # before the batch, whatever the shape of a context
        params = self.actor_network_params
        with params.to_module(self.actor_network) if self.functional else contextlib.nullcontext():
            velocity, context = condition(self.actor_network, tensordict)
            error = flow_matching_error(velocity, context, action, noise, time)
        squared, d = error.square().sum(-1).movedim(0, -1), error.shape[-1]
        return (squared / {"sum": 1, "mean": d, "sqrt": d**0.5}[self.error_scale]).clamp(max=self.max_error)
