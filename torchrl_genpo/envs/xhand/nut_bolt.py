# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The nut-bolt task as policies see it, and the camera that films it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.envs import CatTensors, Compose, DeviceCastTransform, EnvBase, RewardSum, StepCounter, TransformedEnv

from torchrl_genpo.config.checks import did_you_mean
from torchrl_genpo.envs.common import simulator
from torchrl_genpo.envs.xhand.env import CONTROL_PERIOD, NutBoltEnv
from torchrl_genpo.envs.xhand.nuts import TRAINING_NUTS
from torchrl_genpo.envs.xhand.randomization import Randomization
from torchrl_genpo.envs.xhand.rewards import RewardWeights
from torchrl_genpo.envs.xhand.scene import ACTIVE_JOINTS, JOINTS, Scene, joint_limits
from torchrl_genpo.envs.xhand.settings import read_settings
from torchrl_genpo.envs.xhand.transforms import ActionDelay, DeltaTarget, History, Noise

__all__ = ["ACTION_SCALE", "XHAND_TASKS", "NutBoltView", "make_xhand_env"]

XHAND_TASKS: dict[str, dict[str, Any]] = {
    "nut_bolt": {},
    "nut_bolt_left": {"side": "left", "index_bend_sign": -1},  # mirrored, as in DexScrew (arXiv 2512.02011)
}
"""What each task sets of :class:`Scene`."""
ACTION_SCALE = 1 / 24
"""The largest change of a position target in a control step, rad."""


def make_xhand_env(
    task: str = "nut_bolt",
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    *,
    nuts: Sequence[str] = TRAINING_NUTS,
    scene: Scene | Mapping[str, Any] | None = None,
    randomize: bool = True,
    randomization: Randomization | Mapping[str, Any] | None = None,
    rewards: RewardWeights | Mapping[str, Any] | None = None,
    history: int = 3,
    all_joints: bool = False,
    max_steps: int = 400,
    num_threads: int | None = None,
    render: bool = False,
) -> EnvBase:
    """Builds hands that loosen nuts from proprioception alone, as one batched TorchRL environment.

    Keys: ``observation`` ``[num_envs, 24 * history]``, for each of the last control steps, the oldest first, the
    measured positions and the targets of the twelve joints, rad; ``critic_observation``, for a critic only, the same
    and all that :class:`NutBoltEnv` and the randomisation know; ``reward``, ``episode_reward`` (its sum) and
    ``step_count``, each ``[num_envs, 1]``; ``("log", ...)`` and ``("metrics", ...)``. An action moves the position
    targets of the joints of thumb, index and middle finger, ``[num_envs, 8]``; its unit is the largest change in a
    step, and it is clipped to ``[-1, 1]`` inside the environment.

    Args:
        task (str): a name from :data:`XHAND_TASKS`.
        num_envs (int, optional): the batch size; the nuts take turns. Defaults to ``1``.
        device (torch.device or str, optional): where the data lives; the simulation runs on the CPU.
        seed (int, optional): the seed of all that is drawn.

    Keyword Args:
        scene (Scene or mapping, optional): values of :class:`Scene`, except those that are randomised.
        randomize (bool, optional): ``False`` for episodes that differ by nothing but the nut. Defaults to ``True``.
        randomization (Randomization or mapping, optional): ranges of :class:`Randomization`.
        rewards (RewardWeights or mapping, optional): weights of :class:`RewardWeights`.
        history (int, optional): the number of control steps in the observation. Defaults to ``3``.
        all_joints (bool, optional): whether actions have twelve numbers, of which those of ring and little finger are
            ignored. Defaults to ``False``.
        nuts, max_steps, num_threads: see :class:`NutBoltEnv`.
        render (bool, optional): has no effect, because :class:`NutBoltView` draws any of these environments.

    Raises:
        ValueError: if the task, a nut, a name or a value is unknown or out of bounds.

    Examples:
        >>> env = make_xhand_env("nut_bolt", num_envs=3, seed=0)
        >>> env.rollout(2)["observation"].shape
        torch.Size([3, 2, 72])
    """
    if task not in XHAND_TASKS:
        raise ValueError(
            f"Unknown XHand task {task!r}.{did_you_mean(task, XHAND_TASKS)} Names: {', '.join(XHAND_TASKS)}."
        )
    if isinstance(nuts, str):
        raise ValueError(f"nuts must be a list of names, got {nuts!r}.")
    own = scene.model_dump(exclude_unset=True) if isinstance(scene, Scene) else scene or {}
    base_scene = read_settings(Scene, {**XHAND_TASKS[task], **own})
    draws = read_settings(Randomization, randomization)
    if "nut" in base_scene.model_fields_set:
        raise ValueError(f"The nuts are those of the option nuts: nuts=[{base_scene.nut}] instead of scene.nut.")
    if randomize:
        for name in sorted(base_scene.model_fields_set & set(draws.names)):
            raise ValueError(f"scene.{name} is drawn at every reset: set randomization.{name} or randomize=False.")
    elif draws.model_fields_set:
        raise ValueError("randomize=False leaves nothing for randomization to set.")
    else:
        draws = Randomization.none(base_scene)
    base = NutBoltEnv(
        num_envs,
        nuts=nuts,
        scene=base_scene,
        randomization=draws,
        rewards=read_settings(RewardWeights, rewards),
        max_steps=max_steps,
        num_threads=num_threads,
        seed=seed,
    )
    low, high = torch.as_tensor(joint_limits(base_scene.side), dtype=torch.float32)
    active = [JOINTS.index(name) for name in ACTIVE_JOINTS]
    transforms: list[Any] = [
        Noise(draws.target_bias, draws.target_noise, in_key="action"),
        ActionDelay(draws.action_delay),
        DeltaTarget(low, high, scale=ACTION_SCALE, active=active, masked=all_joints),
        Noise(draws.joint_bias, draws.joint_noise, in_key="joint_position", out_key="measured_position"),
        _concatenate(["measured_position", "joint_target"], "frame"),
        History(history, in_key="frame", out_key="frames"),
        _concatenate(["frames"], "observation"),
        _concatenate(
            ["frames", "privileged", "joint_position_bias", "action_bias", "action_delay"], "critic_observation"
        ),
        RewardSum(),
        StepCounter(),
    ]
    if torch.device(device).type != "cpu":
        transforms.append(DeviceCastTransform(device, orig_device="cpu"))
    return TransformedEnv(base, Compose(*transforms))


def _concatenate(keys: list[str], out_key: str) -> CatTensors:
    return CatTensors(keys, out_key, del_keys=False, sort=False)


class NutBoltView:
    """Films the first hand of :func:`make_xhand_env`.

    Attributes:
        fps (int): the frames of a second; there is one frame for each step.
    """

    def __init__(self, env: EnvBase, camera: str = "front", width: int = 640, height: int = 480) -> None:
        self._env: NutBoltEnv = simulator(env)
        self._camera, self._size = camera, (height, width)
        self._model: Any = None
        self._renderer: Any = None
        self.fps = round(1 / CONTROL_PERIOD)

    def frame(self, tensordict: TensorDictBase) -> np.ndarray:
        """Returns the picture ``[height, width, 3]`` of the present state."""
        import mujoco

        model = self._env.models[0]
        if model is not self._model:  # another episode
            self.close()
            self._model, self._renderer = model, mujoco.Renderer(model, *self._size)
        self._renderer.update_scene(self._env.data(0), camera=self._camera)
        return self._renderer.render()

    def close(self) -> None:
        """Frees the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def __del__(self) -> None:
        self.close()
