# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The XHand and the nut that it loosens."""

from __future__ import annotations

from torchrl_genpo.envs.xhand.env import NutBoltEnv
from torchrl_genpo.envs.xhand.model import make_model, make_spec
from torchrl_genpo.envs.xhand.nut_bolt import ACTION_SCALE, XHAND_TASKS, NutBoltView, make_xhand_env
from torchrl_genpo.envs.xhand.nuts import HELD_OUT_NUTS, NUTS, TRAINING_NUTS, Nut, NutName
from torchrl_genpo.envs.xhand.randomization import Randomization
from torchrl_genpo.envs.xhand.rewards import RewardWeights
from torchrl_genpo.envs.xhand.scene import ACTIVE_JOINTS, JOINTS, Scene, joint_limits
from torchrl_genpo.envs.xhand.settings import read_settings
from torchrl_genpo.envs.xhand.transforms import ActionDelay, DeltaTarget, History, Noise

__all__ = [
    "ACTION_SCALE",
    "ACTIVE_JOINTS",
    "HELD_OUT_NUTS",
    "JOINTS",
    "NUTS",
    "TRAINING_NUTS",
    "XHAND_TASKS",
    "ActionDelay",
    "DeltaTarget",
    "History",
    "Noise",
    "Nut",
    "NutBoltEnv",
    "NutBoltView",
    "NutName",
    "Randomization",
    "RewardWeights",
    "Scene",
    "joint_limits",
    "make_model",
    "make_spec",
    "make_xhand_env",
    "read_settings",
]
