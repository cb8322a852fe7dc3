# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The nut-bolt task as policies see it, and pictures of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.envs import CatTensors, Compose, DeviceCastTransform, EnvBase, RewardSum, StepCounter, TransformedEnv

from torchrl_genpo.config.checks import did_you_mean
from torchrl_genpo.envs.common import simulator
from torchrl_genpo.envs.transforms import normalization_transforms
from torchrl_genpo.envs.xhand.env import CONTROL_PERIOD, NutBoltEnv
from torchrl_genpo.envs.xhand.nuts import TRAINING_NUTS
from torchrl_genpo.envs.xhand.randomization import Randomization
from torchrl_genpo.envs.xhand.rewards import RewardWeights
from torchrl_genpo.envs.xhand.scene import ACTIVE_JOINTS, JOINTS, Scene, joint_limits
from torchrl_genpo.envs.xhand.transforms import ActionDelay, DeltaTarget, History, Noise

__all__ = ["ACTION_SCALE", "XHAND_TASKS", "NutBoltView", "make_xhand_env"]

XHAND_TASKS = ("nut_bolt",)
ACTION_SCALE = 1 / 24
"""Largest change of a position target in a control step, rad."""


def make_xhand_env(
    task: str = "nut_bolt",
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    *,
    normalize_observation: bool = True,
    scale_reward: bool = True,
    gamma: float = 0.99,
    nuts: Sequence[str] = TRAINING_NUTS,
    scene: Mapping[str, Any] | None = None,
    randomize: bool = True,
    randomization: Mapping[str, Any] | None = None,
    rewards: Mapping[str, float] | None = None,
    history: int = 3,
    all_joints: bool = False,
    max_steps: int = 400,
    num_threads: int | None = None,
    render: bool = False,
) -> EnvBase:
    """Builds hands that loosen nuts from proprioception alone, as one batched TorchRL environment.

    Keys: ``observation`` ``[num_envs, 24 * history]``, for each of the last control steps, the oldest first, the
    measured positions and the targets of the twelve joints (normalised); ``critic_observation``, for a critic only,
    the same and all that :class:`NutBoltEnv` and the randomisation know; ``reward`` (scaled), ``episode_reward`` (raw
    sum), ``step_count``, ``("log", ...)`` and ``("metrics", ...)``. An action moves the position targets of the
    joints of thumb, index and middle finger, ``[num_envs, 8]``, clipped to ``[-1, 1]`` inside the environment.

    Args:
        task (str): ``nut_bolt``.
        num_envs (int, optional): batch size; the nuts take turns. Defaults to ``1``.
        device (torch.device or str, optional): where the data lives; simulation is on the CPU.
        seed (int, optional): of all that is drawn.

    Keyword Args:
        normalize_observation (bool, optional): running normalisation with ``VecNormV2``.
        scale_reward (bool, optional): see :class:`~torchrl_genpo.envs.RewardScaling`.
        gamma (float, optional): its discount.
        nuts (sequence of str, optional): names of nuts. Defaults to hexagon, square and round.
        scene (mapping, optional): values of :class:`Scene`, but for those that are randomised.
        randomize (bool, optional): ``False`` for episodes that differ by nothing but the nut.
        randomization (mapping, optional): ranges of :class:`Randomization`.
        rewards (mapping, optional): weights of :class:`RewardWeights`.
        history (int, optional): control steps in the observation. Defaults to ``3``.
        all_joints (bool, optional): actions have twelve numbers, of which those of ring and little finger are ignored.
        max_steps (int, optional): of an episode. Defaults to ``400``, 20 s.
        num_threads (int, optional): of the simulation. Defaults to one for each processor.
        render (bool, optional): has no effect; :class:`NutBoltView` draws any of these environments.

    Raises:
        ValueError: for an unknown task, nut or value.

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
    if scene is not None and "nut" in scene:
        raise ValueError(f"The nuts are those of the option nuts: nuts=[{scene['nut']}] instead of scene.nut.")
    base_scene = _from_mapping(Scene, scene)
    if randomize:
        draws = _from_mapping(Randomization, randomization)
        for name in set(scene or {}) & set(draws.names):
            raise ValueError(f"scene.{name} is drawn at every reset: set randomization.{name} or randomize=False.")
    elif randomization:
        raise ValueError("randomize=False leaves nothing for randomization to set.")
    else:
        draws = Randomization.none(base_scene)
    base = NutBoltEnv(
        num_envs,
        nuts=nuts,
        scene=base_scene,
        randomization=draws,
        rewards=_from_mapping(RewardWeights, rewards),
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
        *normalization_transforms(
            ["observation", "critic_observation"] if normalize_observation else [], gamma if scale_reward else None
        ),
    ]
    if torch.device(device).type != "cpu":
        transforms.append(DeviceCastTransform(device, orig_device="cpu"))
    return TransformedEnv(base, Compose(*transforms))


def _concatenate(keys: list[str], out_key: str) -> CatTensors:
    return CatTensors(keys, out_key, del_keys=False, sort=False)


def _from_mapping(cls: Any, values: Mapping[str, Any] | None) -> Any:
    """A dataclass with some of its values replaced, as a configuration gives them; it names one that is unknown."""
    known = {name: field.default for name, field in cls.__dataclass_fields__.items() if field.init}
    for name, value in (values or {}).items():
        if name not in known:
            raise ValueError(f"{cls.__name__} has no {name!r}.{did_you_mean(name, known)} It has {', '.join(known)}.")
        if not _is_like(value, default := known[name]):
            example = list(default) if isinstance(default, tuple) else default
            raise ValueError(f"{name} of {cls.__name__} must be a value like {example}, got {value!r}.")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in (values or {}).items()})


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value has the type of a default: of ``None`` a number or ``None``."""
    if isinstance(default, tuple):
        return isinstance(value, (list, tuple)) and len(value) == len(default) and all(map(_is_like, value, default))
    if isinstance(default, (str, int)):
        return type(value) is type(default)
    return (value is None and default is None) or (isinstance(value, (int, float)) and not isinstance(value, bool))


class NutBoltView:
    """Frames of the first hand of :func:`make_xhand_env`.

    Attributes:
        fps (int): frames a second, one frame a step.
    """

    def __init__(self, env: EnvBase, camera: str = "front", width: int = 640, height: int = 480) -> None:
        self._env: NutBoltEnv = simulator(env)
        self._camera, self._size = camera, (height, width)
        self._model: Any = None
        self._renderer: Any = None
        self.fps = round(1 / CONTROL_PERIOD)

    def frame(self, tensordict: TensorDictBase) -> np.ndarray:
        """The picture ``[height, width, 3]`` of the present state."""
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
