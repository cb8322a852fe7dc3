# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""robosuite's manipulation tasks, as robomimic, MimicGen and DexMimicGen use them."""

from __future__ import annotations

from torchrl_genpo.envs.robomimic.env import RobosuiteEnv, make_robomimic_env
from torchrl_genpo.envs.robomimic.simulator import ROBOMIMIC_TASKS, RobomimicTask

__all__ = ["ROBOMIMIC_TASKS", "RobomimicTask", "RobosuiteEnv", "make_robomimic_env"]
