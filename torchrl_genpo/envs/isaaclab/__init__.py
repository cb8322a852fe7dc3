# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Isaac Lab environments, and what is used with them."""

from __future__ import annotations

from torchrl_genpo.envs.isaaclab.env import INSTALL, ISAACLAB_TASKS, make_isaaclab_env
from torchrl_genpo.envs.isaaclab.tools import IsaacLabView, stagger_episodes
from torchrl_genpo.envs.isaaclab.transforms import LastObservationAtReset

__all__ = [
    "INSTALL",
    "ISAACLAB_TASKS",
    "IsaacLabView",
    "LastObservationAtReset",
    "make_isaaclab_env",
    "stagger_episodes",
]
