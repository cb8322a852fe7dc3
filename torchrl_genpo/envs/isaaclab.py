# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Isaac Lab environments, 3.x on kit-less Newton physics or 2.x on Isaac Sim, on TorchRL's wrapper."""

from __future__ import annotations

import atexit
import importlib.util
import os
import re
import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import expand_as_right
from torch import Tensor
from torchrl.data import Composite, Unbounded
from torchrl.envs import (
    ClipTransform,
    EnvBase,
    RenameTransform,
    RewardSum,
    StepCounter,
    Transform,
    VecNormV2,
)
from torchrl.envs import RewardScaling as AffineReward
from torchrl.envs.gym_like import BaseInfoDictReader

from torchrl_genpo.config.checks import did_you_mean
from torchrl_genpo.envs.common import simulator
from torchrl_genpo.envs.transforms import normalization_transforms

__all__ = ["ISAACLAB_TASKS", "IsaacLabSymmetry", "IsaacLabView", "make_isaaclab_env", "stagger_episodes"]

ISAACLAB_TASKS = {
    "ant": ("Isaac-Ant-v0", "Isaac-Ant"),
    "anymal_d_rough": ("Isaac-Velocity-Rough-Anymal-D-v0", "Isaac-Velocity-Rough-AnymalD"),
    "cartpole": ("Isaac-Cartpole-v0", "Isaac-Cartpole"),
    "digit_locomanip": ("Isaac-Tracking-LocoManip-Digit-v0", "IsaacContrib-Tracking-LocoManip-Digit"),
    "g1_rough": ("Isaac-Velocity-Rough-G1-v0", "Isaac-Velocity-Rough-G1"),
    "go2_rough": ("Isaac-Velocity-Rough-Unitree-Go2-v0", "Isaac-Velocity-Rough-UnitreeGo2"),
    "h1_rough": ("Isaac-Velocity-Rough-H1-v0", "Isaac-Velocity-Rough-H1"),
    "humanoid": ("Isaac-Humanoid-v0", "Isaac-Humanoid"),
    "open_drawer": ("Isaac-Open-Drawer-Franka-v0", "Isaac-Open-Drawer-Franka"),
}
"""Short names of tasks: their ids in Isaac Lab 2.x and in 3.x. Any other id that Isaac Lab registers works too."""

INSTALL = (
    "pip install 'torchrl-genpo[isaaclab]' && "
    "pip install --no-deps --ignore-requires-python isaaclab==3.0.0 (Isaac Lab 3 on Newton physics, no Isaac Sim)"
)
FINAL, LOG = "final", "log"
CAMERA = {"width": 640, "height": 352}

_simulation: weakref.ReferenceType[EnvBase] | None = None  # Isaac Lab has one simulation a process
_app: Any = None  # of Isaac Sim, where it is needed


def make_isaaclab_env(
    task: str,
    num_envs: int | None = None,
    device: torch.device | str = "cuda:0",
    seed: int | None = None,
    *,
    normalize_observation: bool = False,
    scale_reward: bool = False,
    gamma: float = 0.99,
    reward_scale: float = 1.0,
    overrides: Mapping[str, Any] | None = None,
    physics: str | None = None,
    asset_root: str | None = None,
    render: bool = False,
) -> EnvBase:
    """Builds an Isaac Lab task as one batched TorchRL environment; launches what it needs first.

    Isaac Lab draws from PyTorch's global random state, which making the environment, ``env.set_seed`` and
    ``seed`` set.

    Keys: ``observation`` ``[num_envs, n]`` (Isaac Lab's group ``policy``), ``critic_observation`` where the
    task has a group ``critic``, ``reward`` ``[num_envs, 1]``, ``episode_reward`` (its sum as the task gives it),
    ``step_count``, and ``("log", <name>)`` ``[num_envs, 1]``, Isaac Lab's own statistics of the episodes that
    ended last (its ``extras["log"]``; read them where ``("next", "done")`` is set). Actions are those of the
    task, clipped inside the environment if its reference configuration clips them.

    Isaac Lab resets finished environments inside the step. The observation that ended the episode, which a
    time-out bootstraps from, is read before that (``compute_final_obs``) and stands in ``next``; TorchRL's
    wrapper alone would leave NaN there, and with ``native_autoreset=True``, which is not used here, would also
    break the transforms at the end of an episode. Isaac Lab 2.x cannot tell that observation; there the one
    before it takes its place, as in rsl_rl.

    Args:
        task (str): a name from :data:`ISAACLAB_TASKS`, or a manager-based task's id of Isaac Lab 2.x or 3.x.
        num_envs (int, optional): batch size. Defaults to the task's own.
        device (torch.device or str, optional): of simulation and data. Defaults to ``"cuda:0"``.
        seed (int, optional): of the task's randomisation.

    Keyword Args:
        normalize_observation (bool, optional): running normalisation with ``VecNormV2``.
        scale_reward (bool, optional): see :class:`~torchrl_genpo.envs.RewardScaling`.
        gamma (float, optional): its discount.
        reward_scale (float, optional): constant factor of the reward (not of ``episode_reward``).
        overrides (mapping, optional): changes to the task's configuration, nested as it is:
            ``{"episode_length_s": 5.0, "scene": {"env_spacing": 4.0}}``.
        physics (str, optional): Isaac Lab 3.x: ``newton_mjwarp`` (default), ``isaacsim_physx``, ...
        asset_root (str, optional): folder of Isaac Lab's assets; sets ``ISAACSIM_ASSET_ROOT``. Needed where
            its server cannot be reached.
        render (bool, optional): adds ``pixels`` ``[num_envs, height, width, 3]``, for :class:`IsaacLabView`.

    Raises:
        ImportError: without Isaac Lab; says how to install it.
        FileNotFoundError: if a robot's file is missing; says where it was looked for.
        RuntimeError: if another simulation of this process is still open.
        ValueError: for an unknown task, override or physics, or a task that is not manager-based.

    Examples:
        >>> env = make_isaaclab_env("ant", num_envs=64, device="cpu", asset_root="assets")  # doctest: +SKIP
        >>> env.rollout(3)["observation"].shape  # doctest: +SKIP
        torch.Size([64, 3, 60])
    """
    global _simulation
    if importlib.util.find_spec("isaaclab") is None:
        raise ImportError(f"env=isaaclab/... needs Isaac Lab: {INSTALL}.")
    if num_envs is not None and num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}.")
    previous = None if _simulation is None else _simulation()
    if previous is not None and not previous.is_closed:
        raise RuntimeError("Isaac Lab runs one simulation a process: close the other environment first.")
    _set_asset_root(asset_root)
    is_kitless = importlib.util.find_spec("isaaclab_newton") is not None  # 3.x
    physics = physics or ("newton_mjwarp" if is_kitless else None)
    if physics is None or not physics.startswith("newton"):
        _launch_isaac_sim(device, render)

    import gymnasium
    import isaaclab_tasks  # noqa: F401  # registers the tasks
    from isaaclab.envs import ManagerBasedRLEnvCfg
    from isaaclab_tasks.utils import parse_env_cfg
    from torchrl.envs.libs.isaac_lab import IsaacLabWrapper

    task_id = _find_task(task, gymnasium.registry)
    cfg = _configure(parse_env_cfg, task_id, str(device), num_envs, physics)
    if not isinstance(cfg, ManagerBasedRLEnvCfg):
        raise ValueError(f"{task_id} is not a manager-based task; TorchRL cannot reset its environments one by one.")
    cfg.seed = seed
    if hasattr(cfg, "compute_final_obs"):
        cfg.compute_final_obs = True
    _override(cfg, overrides or {}, task_id)
    if render:
        IsaacLabWrapper.add_tiled_camera_config(cfg, renderer_backend="newton_warp" if is_kitless else None, **CAMERA)
    try:
        raw = gymnasium.make(task_id, cfg=cfg)
    except FileNotFoundError as error:
        root = os.environ.get("ISAACSIM_ASSET_ROOT")
        raise FileNotFoundError(
            f"{error} {task_id} loads its robot from "
            + (f"ISAACSIM_ASSET_ROOT={root}." if root else "NVIDIA's server, which this machine does not reach.")
            + " Give a folder with Isaac Lab's assets as asset_root (env.options.asset_root=<folder>), or write "
            "stand-ins to try things: python -m torchrl_genpo.envs.isaaclab_standins <folder>."
        ) from error
    _, info = raw.reset(seed=seed)  # fills the statistics, whose names are then known

    env = IsaacLabWrapper(raw, device=torch.device(device), from_tiled_camera=render)
    base = env.base_env
    _simulation = weakref.ref(base)
    # read with every step: VecGymEnvTransform, which TorchRL adds, swaps the final observation in
    base.set_info_dict_reader(_FinalObservation())
    base.set_info_dict_reader(_Log(info.get("log", {}), base.batch_size, base.device))
    env.empty_cache()
    if not getattr(cfg, "compute_final_obs", False):  # 2.x
        env.append_transform(LastObservationAtReset(key for key in base.observation_spec.keys() if key != LOG))
    names = {"policy": "observation", "critic": "critic_observation"}
    names = {group: name for group, name in names.items() if group in base.observation_spec.keys()}
    for group in names:
        if isinstance(base.observation_spec[group], Composite):
            raise ValueError(f"The group {group!r} of {task_id} is not one tensor: set its concatenate_terms.")
    clip = _reference_action_clip(task_id)
    env.append_transform(RenameTransform(list(names), list(names.values())))
    env.append_transform(RewardSum())
    env.append_transform(StepCounter())
    if clip is not None:
        env.append_transform(ClipTransform(in_keys_inv=["action"], low=-clip, high=clip))
    if reward_scale != 1.0:
        env.append_transform(AffineReward(loc=0.0, scale=reward_scale))
    for transform in normalization_transforms(
        list(names.values()) if normalize_observation else [], gamma if scale_reward else None
    ):
        env.append_transform(transform)
    return env


class IsaacLabSymmetry:
    """The mirror images of an Isaac Lab task, where it defines them (ANYmal: left-right, front-back, both).

    Called on flat data ``[n]`` with ``observation``, ``action`` and, of a flow, ``action_memory`` (or ``flow_start``
    and ``flow_end``); returns ``[order n]``, the data itself first. These are states of the flow that the action is the
    last of, so they are mirrored like the action. Everything else is repeated: what belongs to a policy
    (log-probabilities, values) has to be computed again, see :func:`~torchrl_genpo.training.augment`.

    Args:
        env (EnvBase): of :func:`make_isaaclab_env`, without normalisation, which would not be symmetric.

    Attributes:
        order (int): number of images, the data itself included.

    Raises:
        ValueError: if the task defines no symmetry, or the observation is normalised.
    """

    ENTRY_POINT = "rsl_rl_with_symmetry_cfg_entry_point"
    GROUPS: ClassVar = {"observation": "policy", "critic_observation": "critic"}

    def __init__(self, env: EnvBase) -> None:
        import gymnasium
        from isaaclab_tasks.utils import load_cfg_from_registry

        raw = simulator(env)
        task_id = raw.spec.id
        if gymnasium.spec(task_id).kwargs.get(self.ENTRY_POINT) is None:
            raise ValueError(f"{task_id} defines no symmetry; use env.symmetry=false.")
        if any(isinstance(module, VecNormV2) for module in env.modules()):
            raise ValueError(
                "env.symmetry=true needs env.normalize_observation=false: its statistics break the symmetry."
            )
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
        for key in {"action_memory", "flow_start", "flow_end"} & set(data.keys()):
            states = data[key].split(data["action"].shape[-1], -1)
            out[key] = torch.cat([self._mirror(self._env, None, state)[1] for state in states], -1)
        return out


def stagger_episodes(env: EnvBase) -> None:
    """Sets the age of every episode at random, so that they do not all time out in the same step.

    As rsl_rl does at the start of a training; to be called after a reset. Does nothing in other families.
    """
    raw: Any = getattr(simulator(env), "unwrapped", None)
    if hasattr(raw, "episode_length_buf"):
        raw.episode_length_buf = torch.randint_like(raw.episode_length_buf, high=int(raw.max_episode_length))


class IsaacLabView:
    """Frames of the first environment of :func:`make_isaaclab_env`, made with ``render=True``; follows the robot.

    Attributes:
        fps (int): frames a second, one frame a step.
    """

    OFFSET = (-3.5, -3.5, 2.0)  # of the camera from the robot, m

    def __init__(self, env: EnvBase) -> None:
        raw = simulator(env).unwrapped
        self._scene = raw.scene
        self.fps = round(1 / raw.step_dt)
        self._follow()

    def frame(self, tensordict: TensorDictBase) -> np.ndarray:
        """The picture ``[height, width, 3]`` of the state in the tensordict."""
        self._follow()  # for the next
        return tensordict["pixels"][0].cpu().numpy()

    def _follow(self) -> None:
        position = self._scene["robot"].data.root_pos_w
        position = getattr(position, "torch", position)  # 3.x has its own arrays
        eye = position + torch.tensor(self.OFFSET, device=position.device)
        self._scene.sensors["tiled_camera"].set_world_poses_from_view(eye, position)


class LastObservationAtReset(Transform):
    """Where the observation that ended an episode is missing (NaN), the one before it takes its place.

    A NaN in any other step is the simulator's, and stays.

    That is how rsl_rl bootstraps time-outs in Isaac Lab: with the value of the state before. To be placed right
    after TorchRL's ``VecGymEnvTransform``, before anything that changes observations.

    Args:
        keys (iterable of str): of the observations.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        super().__init__()
        self._last: dict[str, Tensor] = {key: torch.empty(()) for key in keys}

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        for key, last in self._last.items():
            value = next_tensordict[key]
            is_missing = value.isnan() & expand_as_right(next_tensordict["done"].squeeze(-1), value)
            next_tensordict[key] = self._last[key] = torch.where(is_missing, last, value)
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        for key in self._last:  # after a partial reset these hold every row
            self._last[key] = tensordict_reset[key].clone()
        return tensordict_reset


class _FinalObservation(BaseInfoDictReader):
    """Hands Isaac Lab's terminal observations to TorchRL's ``VecGymEnvTransform``."""

    def __call__(self, info: dict[str, Any], tensordict: TensorDictBase) -> TensorDictBase:
        if "final_obs" in info:  # those of an earlier step stay there and are not looked at
            groups = TensorDict(info["final_obs"], batch_size=tensordict.batch_size)
            tensordict.set(FINAL, groups.to(tensordict.device))
        return tensordict

    @property
    def info_spec(self) -> dict[str, Any]:
        return {}


class _Log(BaseInfoDictReader):
    """Writes Isaac Lab's ``extras["log"]``: numbers of the whole batch, the same in every row."""

    def __init__(self, log: Mapping[str, Any], batch_size: torch.Size, device: torch.device) -> None:
        self._shape = (*batch_size, 1)
        leaf = Unbounded(self._shape, device=device)
        self._names = list(log)
        self._spec = Composite({name: leaf.clone() for name in log}, shape=batch_size, device=device)

    def __call__(self, info: dict[str, Any], tensordict: TensorDictBase) -> TensorDictBase:
        log = info.get("log", {})
        for name in self._names:
            value = torch.as_tensor(log.get(name, 0.0), dtype=torch.float32, device=tensordict.device)
            tensordict.set((LOG, name), value.expand(self._shape).clone())  # a collector writes into it
        return tensordict

    @property
    def info_spec(self) -> dict[str, Any]:
        return {LOG: self._spec} if self._names else {}


def _set_asset_root(asset_root: str | None) -> None:
    if asset_root is None:
        return
    if not os.path.isdir(asset_root):
        raise FileNotFoundError(f"asset_root={asset_root} is not a folder.")
    root = os.path.abspath(asset_root)
    if "isaaclab.utils.assets" in sys.modules and os.environ.get("ISAACSIM_ASSET_ROOT") != root:
        raise ValueError(
            f"asset_root={asset_root} comes too late: isaaclab was imported with "
            f"ISAACSIM_ASSET_ROOT={os.environ.get('ISAACSIM_ASSET_ROOT')}. Set it before."
        )
    os.environ["ISAACSIM_ASSET_ROOT"] = root


def _launch_isaac_sim(device: torch.device | str, camera: bool) -> None:
    """Starts Isaac Sim without a window, once; it must run before a task is imported."""
    global _app
    if _app is not None:
        return
    if importlib.util.find_spec("isaacsim") is None:
        raise ImportError(f"This physics needs Isaac Sim, which is not installed. Without it: {INSTALL}.")
    from isaaclab.app import AppLauncher

    _app = AppLauncher(headless=True, enable_cameras=camera, device=str(device)).app
    atexit.register(_app.close)


def _find_task(task: str, registry: Mapping[str, Any]) -> str:
    """The id of a task in the installed version."""
    for ids in ISAACLAB_TASKS.values():
        if task in ids or ISAACLAB_TASKS.get(task) == ids:
            candidates = [task_id for task_id in ids if task_id in registry]
            if candidates:
                return candidates[0]
    unversioned = re.sub(r"-v\d+$", "", task)  # 3.x dropped the versions
    for candidate in (task, unversioned):
        if candidate in registry:
            return candidate
    known = [task_id for task_id in registry if task_id.startswith("Isaac")]
    raise ValueError(
        f"Unknown Isaac Lab task {task!r}.{did_you_mean(task, [*ISAACLAB_TASKS, *known])} "
        f"Names: {', '.join(ISAACLAB_TASKS)}. Ids: {', '.join(sorted(known))}."
    )


def _configure(parse_env_cfg: Any, task_id: str, device: str, num_envs: int | None, physics: str | None) -> Any:
    if physics is None:  # 2.x
        return parse_env_cfg(task_id, device=device, num_envs=num_envs)
    try:
        return parse_env_cfg(task_id, device=device, num_envs=num_envs, overrides=[f"physics={physics}"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{task_id} cannot use physics={physics}: {error}") from error


def _override(cfg: Any, overrides: Mapping[str, Any], name: str) -> None:
    """Sets what a nested mapping names (``cfg.from_dict`` refuses a float where the default is an int)."""
    for key, value in overrides.items():
        if not hasattr(cfg, key):
            raise ValueError(f"{name} has no {key!r}; it has {', '.join(sorted(vars(cfg)))}.")
        old = getattr(cfg, key)
        if isinstance(value, Mapping) and hasattr(old, "__dataclass_fields__"):
            _override(old, value, f"{name}.{key}")
        else:
            setattr(cfg, key, tuple(value) if isinstance(old, tuple) else value)


def _reference_action_clip(task_id: str) -> float | None:
    """The bound of rsl_rl's configuration of a task, if it has one."""
    import gymnasium
    from isaaclab_tasks.utils import load_cfg_from_registry

    if gymnasium.spec(task_id).kwargs.get("rsl_rl_cfg_entry_point") is None:
        return None
    return getattr(load_cfg_from_registry(task_id, "rsl_rl_cfg_entry_point"), "clip_actions", None)
