# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Environments, one file a simulator family."""

from torchrl_genpo.envs.gym import GYM_TASKS, GymState, make_gym_env
from torchrl_genpo.envs.transforms import RewardScaling, freeze_normalization

make_env = make_gym_env  # the one family so far; names with a slash will choose others

__all__ = ["GYM_TASKS", "GymState", "RewardScaling", "freeze_normalization", "make_env", "make_gym_env"]
