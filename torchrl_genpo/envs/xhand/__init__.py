# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The XHand and the nut that it loosens."""

from torchrl_genpo.envs.xhand.model import (
    ACTIVE_JOINTS,
    JOINTS,
    Scene,
    joint_limits,
    make_mjcf,
    make_model,
    make_spec,
)
from torchrl_genpo.envs.xhand.nuts import HELD_OUT_NUTS, NUTS, TRAINING_NUTS, Nut

__all__ = [
    "ACTIVE_JOINTS",
    "HELD_OUT_NUTS",
    "JOINTS",
    "NUTS",
    "TRAINING_NUTS",
    "Nut",
    "Scene",
    "joint_limits",
    "make_mjcf",
    "make_model",
    "make_spec",
]
