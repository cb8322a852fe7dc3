# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The scale of the reward: it belongs to the learner, not to the environment."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_genpo.envs import DiscountedReturn
from torchrl_genpo.modules.normalizer import MIN_DEVIATION, merge_moments

__all__ = ["RewardScale"]


class RewardScale(nn.Module):
    """Divides the rewards of a batch by the running standard deviation of the discounted return, and clips them.

    Dividing by a deviation, without a shift, keeps what tells a task's living states from its dead ones. The
    environment accumulates the return (:class:`~torchrl_genpo.envs.DiscountedReturn`); this module has the statistics.

    Args:
        clip (float, optional): the largest absolute scaled reward. Defaults to ``10``.
    """

    def __init__(self, clip: float = 10.0) -> None:
        super().__init__()
        self.clip = clip
        self.mean: Tensor
        self.deviation: Tensor
        self.count: Tensor
        self.register_buffer("mean", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("deviation", torch.ones(1, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, data: TensorDictBase, reduce: Callable[[Tensor], Tensor] | None = None) -> TensorDictBase:
        """Adds the returns of a batch to the statistics, and scales its rewards ``("next", "reward")`` by the result.

        Args:
            data (TensorDictBase): ``[*envs, time]``, changed in place.
            reduce (Callable, optional): sums a tensor over all processes that train together.
        """
        following = data.get("next")
        merge_moments(self.mean, self.deviation, self.count, following.get(DiscountedReturn.RETURN_KEY), reduce)
        reward = following.get("reward")
        scale = self.deviation.clamp_min(MIN_DEVIATION).to(reward.dtype)
        following.set("reward", (reward / scale).clamp(-self.clip, self.clip))
        return data
