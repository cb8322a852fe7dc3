# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Transforms that any task can use; they keep no running statistics."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from torchrl.data import Composite, Unbounded
from torchrl.envs import Transform

__all__ = ["DiscountedReturn"]


class DiscountedReturn(Transform):
    """Writes the discounted sum of the rewards of an episode so far, from which a learner takes the reward's scale.

    The sum ``G_t = gamma * G_(t-1) + r_t`` stands in ``("next", "discounted_return")``, in the reward's shape, and is 0
    at every reset. The reward itself stays as it is. A sum that is not finite becomes 0, so that one bad reward does
    not spoil the rest of its episode.

    Args:
        gamma (float, optional): the discount. Defaults to ``0.99``.
        reward_key (NestedKey, optional): the reward ``[..., 1]``. Defaults to ``"reward"``.

    Examples:
        >>> from torchrl_genpo.envs import DiscountedReturn, make_env
        >>> env = make_env("pendulum", num_envs=1, seed=0).append_transform(DiscountedReturn(gamma=0.5))
        >>> env.rollout(2)["next", "discounted_return"].flatten().tolist()
        [1.0, 1.5]
    """

    RETURN_KEY = "discounted_return"

    def __init__(self, gamma: float = 0.99, reward_key: NestedKey = "reward") -> None:
        super().__init__(in_keys=[reward_key], out_keys=[reward_key])
        self.gamma = gamma

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        discounted = self.gamma * tensordict.get(self.RETURN_KEY) + next_tensordict.get(self.in_keys[0])
        return next_tensordict.set(self.RETURN_KEY, discounted.where(discounted.isfinite(), 0))

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        spec = self.parent.full_reward_spec[self.in_keys[0]]
        zeros = torch.zeros(spec.shape, dtype=spec.dtype, device=spec.device)
        return tensordict_reset.set(self.RETURN_KEY, zeros)

    def transform_output_spec(self, output_spec: Composite) -> Composite:
        """Adds the discounted return to the observations."""
        output_spec = super().transform_output_spec(output_spec)
        spec = output_spec["full_reward_spec"][self.in_keys[0]]
        output_spec["full_observation_spec"][self.RETURN_KEY] = Unbounded(
            shape=spec.shape, dtype=spec.dtype, device=spec.device
        )
        return output_spec
