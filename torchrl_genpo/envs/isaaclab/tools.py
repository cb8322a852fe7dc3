# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Tools for Isaac Lab environments: ages of episodes, and pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_genpo.envs.common import simulator

__all__ = ["IsaacLabView", "stagger_episodes"]


def stagger_episodes(env: EnvBase) -> None:
    """Sets the age of every episode at random, so that they do not all time out in the same step.

    rsl_rl does this at the start of a training. Call it after a reset. It does nothing in other families.
    """
    raw: Any = getattr(simulator(env), "unwrapped", None)
    if hasattr(raw, "episode_length_buf"):
        raw.episode_length_buf = torch.randint_like(raw.episode_length_buf, high=int(raw.max_episode_length))


class IsaacLabView:
    """Films the first environment of :func:`make_isaaclab_env`, made with ``render=True``, and follows its robot.

    Attributes:
        fps (int): the frames of a second; there is one frame for each step.
    """

    OFFSET = (-3.5, -3.5, 2.0)  # where the camera is, from the robot, m

    def __init__(self, env: EnvBase) -> None:
        raw = simulator(env).unwrapped
        self._scene = raw.scene
        self.fps = round(1 / raw.step_dt)
        self._follow()

    def frame(self, tensordict: TensorDictBase) -> np.ndarray:
        """Returns the picture ``[height, width, 3]`` of the state in the tensordict."""
        self._follow()  # for the next frame
        return tensordict["pixels"][0].cpu().numpy()

    def _follow(self) -> None:
        position = self._scene["robot"].data.root_pos_w
        position = getattr(position, "torch", position)  # 3.x wraps its arrays
        eye = position + torch.tensor(self.OFFSET, device=position.device)
        self._scene.sensors["tiled_camera"].set_world_poses_from_view(eye, position)
