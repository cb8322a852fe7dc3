# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Gymnasium environments, and what is used with them."""

from __future__ import annotations

from torchrl_genpo.envs.gym.env import GYM_TASKS, BatchedGymWrapper, GymView, batch_gym_envs, make_gym_env
from torchrl_genpo.envs.gym.spaces import PolicySpaces
from torchrl_genpo.envs.gym.state import GymState

__all__ = ["GYM_TASKS", "BatchedGymWrapper", "GymState", "GymView", "PolicySpaces", "batch_gym_envs", "make_gym_env"]
