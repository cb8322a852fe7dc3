# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""robosuite's manipulation tasks as batched TorchRL environments, with chunks of actions."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from xml.etree import ElementTree

import gymnasium
import numpy as np
import torch
from torchrl.envs import (
    ActionScaling,
    ClipTransform,
    Compose,
    EnvBase,
    ObservationNorm,
    ParallelEnv,
    RewardSum,
    StepCounter,
    TransformedEnv,
)

from torchrl_genpo.config.checks import did_you_mean
from torchrl_genpo.data.robomimic import INSTALL, read_env_args
from torchrl_genpo.envs.gym import BatchedGymWrapper
from torchrl_genpo.envs.transforms import OBSERVATION_CLIP, normalization_transforms

__all__ = ["ROBOMIMIC_TASKS", "RobomimicTask", "RobosuiteEnv", "make_robomimic_env"]

SIMULATION_TIMESTEP = 0.002  # s, robosuite's
ONE_ARM = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
TWO_ARMS = (*ONE_ARM[:3], *(key.replace("robot0", "robot1") for key in ONE_ARM[:3]), "object")
PACKAGES = {  # that define tasks beside robosuite's; imported when a task of theirs is asked for
    "dexmimicgen": "git clone https://github.com/NVlabs/dexmimicgen && pip install --no-deps -e dexmimicgen",
    "mimicgen": "git clone https://github.com/NVlabs/mimicgen && pip install --no-deps -e mimicgen",
}


@dataclass(frozen=True)
class RobomimicTask:
    """A task by name.

    Attributes:
        env_name (str): robosuite's name of the environment.
        robots (tuple of str): one or two.
        observation_keys (tuple of str): parts of the observation, in this order.
        horizon (int): of an episode, in control steps.
        package (str, optional): that defines the environment, if it is not robosuite.
        stand_in (str, optional): this project's own environment of the same kind, used where the package is missing.
    """

    env_name: str
    robots: tuple[str, ...] = ("Panda",)
    observation_keys: tuple[str, ...] = ONE_ARM
    horizon: int = 400
    package: str | None = None
    stand_in: str | None = None

    def env_args(self) -> dict[str, Any]:
        """How to make it, in the form of robomimic's files.

        Raises:
            ImportError: if the package that defines it is missing and there is no stand-in.
        """
        env_name = self.env_name
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            if self.stand_in is None:
                raise ImportError(f"{env_name} comes with {self.package}: {PACKAGES[self.package]}.")
            env_name = self.stand_in
        return {
            "env_name": env_name,
            "env_version": "1.5.2",
            "type": 1,
            "env_kwargs": {
                "robots": list(self.robots),
                "controller_configs": _controller(len(self.robots)),
                "control_freq": 20,
                "reward_shaping": False,
                "has_renderer": False,
                "has_offscreen_renderer": False,
                "use_camera_obs": False,
                "use_object_obs": True,
                "ignore_done": True,
                "lite_physics": True,
            },
        }


ROBOMIMIC_TASKS = {
    "can": RobomimicTask("PickPlaceCan", horizon=300),
    "lift": RobomimicTask("Lift", horizon=300),
    "square": RobomimicTask("NutAssemblySquare"),
    "box_cleanup": RobomimicTask(
        "TwoArmBoxCleanup", ("Panda", "Panda"), TWO_ARMS, package="dexmimicgen", stand_in="PrimitiveTwoArmBoxCleanup"
    ),
    "threading": RobomimicTask(
        "TwoArmThreading", ("Panda", "Panda"), TWO_ARMS, package="dexmimicgen", stand_in="PrimitiveTwoArmThreading"
    ),
}
"""Short names of the tasks."""


def _controller(num_robots: int) -> dict[str, Any] | list[dict[str, Any]]:
    """Operational-space control of the pose by differences of up to 5 cm and 0.5 rad a step, as in robomimic's data."""
    limits = [0.05] * 3 + [0.5] * 3
    arm = {
        "type": "OSC_POSE",
        "input_max": 1,
        "input_min": -1,
        "output_max": limits,
        "output_min": [-value for value in limits],
        "kp": 150,
        "damping_ratio": 1,
        "impedance_mode": "fixed",
        "kp_limits": [0, 300],
        "damping_ratio_limits": [0, 10],
        "position_limits": None,
        "orientation_limits": None,
        "uncouple_pos_ori": True,
        "input_type": "delta",
        "input_ref_frame": "world",
        "interpolation": None,
        "ramp_ratio": 0.2,
        "gripper": {"type": "GRIP"},
    }
    controller = {"type": "BASIC", "body_parts": {"right": arm}}
    return controller if num_robots == 1 else [controller] * num_robots


class RobosuiteEnv(gymnasium.Env):
    """A robosuite task with honest ends of episodes: the horizon truncates, success terminates (as an option).

    An action is a chunk of ``chunk_size`` control steps, executed open loop; the reward of a chunk is the
    discounted sum over its steps. The observation is a dict of ``observation`` ``[n]`` and ``success`` ``[1]``,
    1 once the task has been solved in this episode.

    Args:
        env_args (mapping): of a robomimic file, or :meth:`RobomimicTask.env_args`.
        observation_keys (sequence of str): parts of the observation.
        horizon (int): in control steps.

    Keyword Args:
        chunk_size (int, optional): control steps of an action. Defaults to ``1``.
        end_at_success (bool, optional): terminate there. Defaults to ``True``.
        gamma (float, optional): discount from step to step inside a chunk. Defaults to ``1.0``.
        reward_shaping (bool, optional): robosuite's dense reward instead of the sparse one.
        simulation_timestep (float, optional): see :func:`make_simulator`.
        render (bool, optional): frames for videos.

    Raises:
        ImportError: without robosuite, or the package that defines the environment.
        ValueError: if ``horizon`` is not positive, there is no such observation, or a control step is no multiple of
            ``simulation_timestep``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  # Gymnasium's convention
    CAMERA = "frontview"

    def __init__(
        self,
        env_args: Mapping[str, Any],
        observation_keys: Sequence[str],
        horizon: int,
        *,
        chunk_size: int = 1,
        end_at_success: bool = True,
        gamma: float = 1.0,
        reward_shaping: bool = False,
        simulation_timestep: float = SIMULATION_TIMESTEP,
        render: bool = False,
    ) -> None:
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1 control step, got {horizon}.")
        self.make_simulator = partial(make_simulator, env_args, simulation_timestep, reward_shaping=reward_shaping)
        self.simulator = self.make_simulator(has_visuals=render, has_offscreen_renderer=render)
        self.render_mode = "rgb_array" if render else None
        # one frame a chunk
        self.metadata = self.metadata | {"render_fps": max(1, 20 // chunk_size)}
        self._keys, self._horizon = tuple(observation_keys), horizon
        self._chunk_size, self._end_at_success, self._gamma = chunk_size, end_at_success, gamma
        self._elapsed, self._has_succeeded = 0, False
        size = self._observe(self.simulator._get_observations(force_update=True))["observation"].size
        low, high = (np.tile(bound, chunk_size).astype(np.float32) for bound in self.simulator.action_spec)
        self.action_space = gymnasium.spaces.Box(low, high)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "observation": gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32),
                "success": gymnasium.spaces.Box(0, 1, (1,), np.float32),
            }
        )

    def _observe(self, raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        parts = observation_parts(raw)
        missing = [key for key in self._keys if key not in parts]
        if missing:
            raise ValueError(f"There is no observation {', '.join(missing)}; there are {', '.join(sorted(parts))}.")
        observation = np.concatenate([parts[key].ravel() for key in self._keys]).astype(np.float32)
        return {"observation": observation, "success": np.array([self._has_succeeded], np.float32)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Starts an episode; with a seed, all that follow are drawn from it."""
        super().reset(seed=seed)
        if seed is not None:
            set_simulator_seed(self.simulator, seed)
        self._elapsed, self._has_succeeded = 0, False
        self.simulator.reset()
        # robosuite's relative poses are zero until they have been computed twice
        return self._observe(self.simulator._get_observations(force_update=True)), {}

    def step(self, action: np.ndarray) -> Any:
        """Executes a chunk, up to the end of the episode."""
        reward, terminated, truncated = 0.0, False, False
        for index, single in enumerate(np.asarray(action, np.float64).reshape(self._chunk_size, -1)):
            raw, step_reward, _, _ = self.simulator.step(single)
            reward += self._gamma**index * float(step_reward)
            self._elapsed += 1
            self._has_succeeded |= bool(self.simulator._check_success())
            terminated = self._end_at_success and self._has_succeeded
            truncated = not terminated and self._elapsed >= self._horizon
            if terminated or truncated:
                break
        return self._observe(raw), reward, terminated, truncated, {}

    def render(self) -> Any:
        """A frame ``[height, width, 3]``."""
        frame = self.simulator.sim.render(width=512, height=384, camera_name=self.CAMERA)
        return frame[::-1]  # MuJoCo's are upside down

    def close(self) -> None:
        """Frees the simulator."""
        self.simulator.close()


@cache
def _without_visuals(environment: Any) -> Any:
    """The class of a robosuite environment whose model lacks the meshes and textures that are only drawn.

    They are of no weight and collide with nothing, and are nine tenths of the model's memory and of the time that it
    takes to compile. Their geometries remain, as points, for whoever asks for one by its name.
    """

    def edit_model_xml(self: Any, xml: str) -> str:
        root = ElementTree.fromstring(environment.edit_model_xml(self, xml))
        drawn_only = {"group": "1", "contype": "0", "conaffinity": "0"}
        for geometry in root.iter("geom"):
            if geometry.get("mesh") is not None and drawn_only.items() <= geometry.attrib.items():
                del geometry.attrib["mesh"]
                geometry.attrib |= {"type": "sphere", "size": "0.001", "mass": "0"}
        meshes = {geometry.get("mesh") for geometry in root.iter("geom")}
        for assets in root.iter("asset"):
            for material in assets.iter("material"):
                material.attrib.pop("texture", None)
            for asset in list(assets):
                if asset.tag == "texture" or (asset.tag == "mesh" and asset.get("name") not in meshes):
                    assets.remove(asset)
        return ElementTree.tostring(root, encoding="unicode")

    # robosuite's metaclass registers it
    name = f"{environment.__name__}WithoutVisuals"
    return type(environment)(name, (environment,), {"edit_model_xml": edit_model_xml})


def make_simulator(
    env_args: Mapping[str, Any],
    simulation_timestep: float = SIMULATION_TIMESTEP,
    *,
    has_visuals: bool = True,
    **overrides: Any,
) -> Any:
    """The robosuite environment of ``env_args``, with soft resets.

    Args:
        env_args (mapping): of a robomimic file, or :meth:`RobomimicTask.env_args`.
        simulation_timestep (float, optional): s of physics a simulation step. Its controllers, which take most of
            robosuite's time, run once in each. It is robosuite's setting of the whole process.
        has_visuals (bool, optional): without, nothing can be drawn, nor the model be recorded; it moves the same and
            takes less memory.

    Raises:
        ImportError: without robosuite, or the package that defines the environment.
        ValueError: if a control step is no multiple of ``simulation_timestep``.
    """
    control_timestep = 1 / env_args["env_kwargs"].get("control_freq", 20)
    # robosuite cuts the number of steps off
    if simulation_timestep <= 0 or not np.isclose(
        int(control_timestep / simulation_timestep) * simulation_timestep, control_timestep
    ):
        raise ValueError(
            f"simulation_timestep={simulation_timestep} s does not divide a control step of {control_timestep} s; "
            f"{SIMULATION_TIMESTEP} is robosuite's, 0.005 twice as fast."
        )
    if importlib.util.find_spec("robosuite") is None:
        raise ImportError(f"env=robomimic/... needs robosuite: {INSTALL}.")
    # it would print ten lines about optional settings and packages whenever it is imported
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    import robosuite
    from robosuite import macros

    macros.SIMULATION_TIMESTEP = simulation_timestep
    name = env_args["env_name"]
    if name.startswith("Primitive"):
        importlib.import_module("torchrl_genpo.envs.robomimic.tasks")
    for package in PACKAGES:
        if name not in robosuite.ALL_ENVIRONMENTS and importlib.util.find_spec(package) is not None:
            importlib.import_module(package)
    if name not in robosuite.ALL_ENVIRONMENTS:
        hints = "; ".join(f"{package}: {command}" for package, command in PACKAGES.items())
        raise ImportError(f"robosuite has no environment {name!r}. Other packages define more: {hints}.")
    # a hard reset compiles the model again, 40 times slower
    options = {**env_args["env_kwargs"], "hard_reset": False, "ignore_done": True, **overrides}
    environment = robosuite.environments.base.REGISTERED_ENVS[name]
    simulator = (environment if has_visuals else _without_visuals(environment))(**options)
    for robot in simulator.robots:
        robot.robot_model.mujoco_model = None  # of the robot alone, visuals included; nothing reads it
    return simulator


def set_simulator_seed(simulator: Any, seed: int) -> None:
    """Seeds robosuite for good: its own seed reaches neither later episodes nor the placement of objects."""
    simulator.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    samplers = [getattr(simulator, "placement_initializer", None)]
    while samplers:
        sampler = samplers.pop()
        if sampler is not None:
            sampler.rng = simulator.rng
            samplers += list(getattr(sampler, "samplers", {}).values())


def observation_parts(raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """robosuite's observation under robomimic's names: ``robot...`` as they are, and ``object``."""
    parts = {key: np.asarray(value) for key, value in raw.items() if key.startswith("robot") and "proprio" not in key}
    if "object-state" in raw:
        parts["object"] = np.asarray(raw["object-state"])
    return parts


def make_robomimic_env(
    task: str,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    *,
    normalize_observation: bool = False,
    scale_reward: bool = False,
    gamma: float = 0.99,
    chunk_size: int = 4,
    end_at_success: bool = True,
    reward_shaping: bool = False,
    horizon: int | None = None,
    observation_keys: Sequence[str] | None = None,
    dataset: str | None = None,
    simulation_timestep: float = SIMULATION_TIMESTEP,
    num_workers: int = 0,
    worker_timeout: float = 300.0,
    render: bool = False,
) -> EnvBase:
    """Builds a batch of robosuite tasks as one TorchRL environment.

    Keys: ``observation``, ``success`` ``[..., 1]``, ``reward`` and ``episode_reward`` ``[..., 1]``, ``step_count`` (in
    chunks). An action is ``[..., chunk_size * d]``, see :class:`RobosuiteEnv`. Observations and actions are shifted and
    scaled by an ``ObservationNorm`` and an ``ActionScaling`` that change nothing until pre-training, or its
    checkpoint, sets them to the range of its data.

    Args:
        task (str): a name from :data:`ROBOMIMIC_TASKS`, or robosuite's name of an environment.
        num_envs (int, optional): batch size. Defaults to ``1``.
        device (torch.device or str, optional): where the data lives; simulation is on the CPU.
        seed (int, optional): of the first environment.

    Keyword Args:
        normalize_observation (bool, optional): running normalisation, for training from scratch.
        scale_reward (bool, optional): see :class:`~torchrl_genpo.envs.RewardScaling`.
        gamma (float, optional): discount from one chunk to the next; its ``chunk_size``-th root inside.
        chunk_size (int, optional): control steps of an action. Defaults to ``4``.
        end_at_success (bool, optional): terminate there. Defaults to ``True``.
        reward_shaping (bool, optional): robosuite's dense reward instead of the sparse one.
        horizon (int, optional): in control steps. Defaults to the task's.
        observation_keys (sequence of str, optional): parts of the observation. Defaults to the task's.
        dataset (str, optional): a robomimic file, whose environment is used as it was recorded.
        simulation_timestep (float, optional): s of physics a simulation step; ``0.005`` is twice as fast.
        num_workers (int, optional): processes at most, in which ``num_envs`` is divided evenly; the batch is then
            ``[num_workers, num_envs / num_workers]``.
        worker_timeout (float, optional): s after which a worker that does not answer is taken to hang.
        render (bool, optional): makes frames for :class:`~torchrl_genpo.envs.GymView`; without workers.

    Raises:
        ImportError: without robosuite or the package of the task; says how to install it.
        ValueError: for an unknown task or no environment.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}.")
    num_workers = next((n for n in range(min(num_workers, num_envs), 0, -1) if num_envs % n == 0), 0)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
    known = ROBOMIMIC_TASKS.get(task)
    if known is None and not task[:1].isupper():
        raise ValueError(
            f"Unknown task {task!r}.{did_you_mean(task, ROBOMIMIC_TASKS)} "
            f"Names: {', '.join(ROBOMIMIC_TASKS)}; or robosuite's name of an environment."
        )
    if importlib.util.find_spec("robosuite") is None:
        raise ImportError(f"env=robomimic/{task} needs robosuite: {INSTALL}.")
    known = known or RobomimicTask(task)
    env_args = known.env_args() if dataset is None else read_env_args(dataset)
    make = partial(
        RobosuiteEnv,
        env_args,
        tuple(observation_keys or known.observation_keys),
        horizon or known.horizon,
        chunk_size=chunk_size,
        end_at_success=end_at_success,
        gamma=gamma ** (1 / chunk_size),
        reward_shaping=reward_shaping,
        simulation_timestep=simulation_timestep,
        render=render,
    )
    base: EnvBase
    if num_workers > 1 and not render:
        # by pipes: with shared buffers this process would spin while it waits, on a core that a simulator could use
        base = ParallelEnv(
            num_workers, partial(_make_batch, make, num_envs // num_workers), device=device, use_buffers=False
        )
        base.BATCHED_PIPE_TIMEOUT = worker_timeout
    else:
        base = _make_batch(make, num_envs, device)
    sizes = base.observation_spec["observation"].shape[-1:], base.action_spec.shape[-1:]
    zeros, ones = ([make(size, device=device) for size in sizes] for make in (torch.zeros, torch.ones))
    norm = ObservationNorm(zeros[0], ones[0], in_keys=["observation"], standard_normal=True)
    transforms = [norm, ActionScaling(loc=zeros[1], scale=ones[1])]
    transforms += normalization_transforms(
        ["observation"] if normalize_observation else [], gamma if scale_reward else None
    )
    # what hardly moved in few demonstrations may lie a thousand times their range away
    transforms.append(ClipTransform(in_keys=["observation"], low=-OBSERVATION_CLIP, high=OBSERVATION_CLIP))
    env = TransformedEnv(base, Compose(*transforms), auto_unwrap=False)
    if seed is not None:
        env.set_seed(seed)
    return env


def _make_batch(make: Any, num_envs: int, device: torch.device | str = "cpu") -> EnvBase:
    def clipped() -> gymnasium.Env:
        return gymnasium.wrappers.ClipAction(make())

    disabled = gymnasium.vector.AutoresetMode.DISABLED
    simulators = gymnasium.vector.SyncVectorEnv([clipped] * num_envs, autoreset_mode=disabled)
    return TransformedEnv(BatchedGymWrapper(simulators, device=device), Compose(RewardSum(), StepCounter()))
