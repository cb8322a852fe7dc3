# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""robosuite's manipulation tasks, as robomimic, MimicGen and DexMimicGen use them."""

from torchrl_genpo.envs.robomimic.env import ROBOMIMIC_TASKS, RobomimicTask, RobosuiteEnv, make_robomimic_env

__all__ = ["ROBOMIMIC_TASKS", "RobomimicTask", "RobosuiteEnv", "make_robomimic_env"]
