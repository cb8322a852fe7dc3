# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Bounded actions: a tanh behind the actor."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from tensordict import NestedKey
from torch import Tensor

from torchrl_genpo.modules.action_scale import ActionScale

__all__ = ["Squash"]

LARGEST = 1 - 1e-4  # of a tanh that is undone; the tanh of 5 is as large


class Squash(ActionScale):
    r"""Bounds the action of a network: :math:`a = \text{loc} + \text{scale} \tanh(a_\text{raw})`.

    It is the last module of a policy. The actor before it draws, inverts and scores the raw action, so its densities,
    its memory and every likelihood ratio are exact as they are: the Jacobian of the tanh is a function of the action
    alone and cancels in a ratio. The log density of the bounded action and its memory is the actor's minus
    :meth:`log_abs_det`. Zero noise is squashed like any other.

    Args:
        low (Tensor): the lower bounds ``[d]``.
        high (Tensor): the upper bounds ``[d]``.

    Keyword Args:
        in_key (NestedKey, optional): the raw action ``[..., d]``. Defaults to ``"raw_action"``.
        out_key (NestedKey, optional): the bounded action. Defaults to ``"action"``.

    Raises:
        ValueError: if the bounds are no vectors of one size, one is not finite, or not below the other.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import ProbabilisticTensorDictSequential
        >>> from torchrl_genpo import ReversibleFlowActor, VelocityMLP
        >>> from torchrl_genpo.modules import Squash
        >>> squash = Squash(torch.tensor([-2.0]), torch.tensor([2.0]))
        >>> actor = ReversibleFlowActor(VelocityMLP(3, 1), action_key="raw_action")
        >>> policy = ProbabilisticTensorDictSequential(actor, squash)
        >>> td = policy(TensorDict(observation=torch.randn(64, 3), batch_size=[64]))
        >>> bool((td["action"].abs() < 2).all())
        True
        >>> log_prob = td["action_log_prob"] - squash.log_abs_det(td["raw_action"])  # of the bounded action
    """

    def __init__(
        self, low: Tensor, high: Tensor, *, in_key: NestedKey = "raw_action", out_key: NestedKey = "action"
    ) -> None:
        if low.shape != high.shape or not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise ValueError(f"An action can be squashed between finite bounds only, got {low} and {high}.")
        if not (low < high).all():
            raise ValueError(f"Every lower bound must be below the upper one, got {low} and {high}.")
        super().__init__((low + high) / 2, (high - low) / 2, in_key=in_key, out_key=out_key)

    def denormalize(self, action: Tensor) -> Tensor:
        """The bounded action ``[..., d]``."""
        return super().denormalize(action.tanh())

    def normalize(self, action: Tensor) -> Tensor:
        """The inverse of :meth:`denormalize`; an action at a bound becomes a large finite one."""
        return super().normalize(action).clamp(-LARGEST, LARGEST).atanh()

    def log_abs_det(self, raw_action: Tensor) -> Tensor:
        r"""Log absolute determinant ``[...]`` of :math:`\partial a / \partial a_\text{raw}`."""
        # log(1 - tanh^2 x) = 2 (log 2 - x - softplus(-2 x)), without the cancellation
        log_slope = 2 * (math.log(2) - raw_action - F.softplus(-2 * raw_action))
        return (log_slope + self.scale.log()).sum(-1)
