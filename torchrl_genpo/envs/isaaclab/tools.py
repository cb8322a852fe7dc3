# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Tools for Isaac Lab environments: mirror images of data, ages of episodes, and pictures."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase

from torchrl_genpo.envs.common import simulator

__all__ = ["IsaacLabSymmetry", "IsaacLabView", "stagger_episodes"]


class IsaacLabSymmetry:
    """Makes the mirror images of data of an Isaac Lab task, where the task defines them.

    ANYmal, for example, has three: left-right, front-back, and both. It is called on flat data ``[n]`` with
    ``observation`` and ``action``, and returns ``[order * n]``, the data itself first. What a flow adds
    (``raw_action``, ``action_memory``, ``flow_start``, ``flow_end``) has the shape of the action and is mirrored like
    it. Everything else is repeated: what belongs to a policy, such as log-probabilities and values, has to be computed
    again, see :func:`~torchrl_genpo.training.augment`.

    Observations must be as the task gives them: running statistics of an observation would not be symmetric.

    Args:
        env (EnvBase): an environment of :func:`make_isaaclab_env`.

    Attributes:
        order (int): the number of images, the data itself included.

    Raises:
        ValueError: if the task defines no symmetry.
    """

    ENTRY_POINT = "rsl_rl_with_symmetry_cfg_entry_point"
    STATES = ("raw_action", "action_memory", "flow_start", "flow_end")
    GROUPS: ClassVar = {"observation": "policy", "critic_observation": "critic"}

    def __init__(self, env: EnvBase) -> None:
        import gymnasium
        from isaaclab_tasks.utils import load_cfg_from_registry

        raw = simulator(env)
        task_id = raw.spec.id
        if gymnasium.spec(task_id).kwargs.get(self.ENTRY_POINT) is None:
            raise ValueError(f"{task_id} defines no symmetry; use env.symmetry=false.")
        config = load_cfg_from_registry(task_id, self.ENTRY_POINT)
        self._mirror = config.algorithm.symmetry_cfg.data_augmentation_func
        self._env = raw.unwrapped
        self.order = len(self._mirror(self._env, None, env.action_spec.zero())[1]) // env.batch_size.numel()

    def __call__(self, data: TensorDictBase) -> TensorDictBase:
        """Returns the data and its images."""
        out: Any = torch.cat([data] * self.order)
        present = {name: group for name, group in self.GROUPS.items() if name in data.keys()}
        observations = TensorDict({group: data[name] for name, group in present.items()}, data.batch_size)
        mirrored, out["action"] = self._mirror(self._env, observations, data["action"])
        for name, group in present.items():
            out[name] = mirrored[group]
        for key in self.STATES:
            if key in data.keys():
                out[key] = self._mirror(self._env, None, data[key])[1]
        return out


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
