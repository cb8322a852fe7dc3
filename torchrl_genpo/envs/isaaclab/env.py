# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Isaac Lab environments on TorchRL's wrapper: 3.x on Newton physics without a kit, or 2.x on Isaac Sim."""

from __future__ import annotations

import atexit
import importlib.util
import os
import re
import sys
import weakref
from collections.abc import Mapping
from typing import Any

import gymnasium
import torch
from torchrl.data import Composite
from torchrl.envs import ClipTransform, EnvBase, RenameTransform, RewardSum, StepCounter

from torchrl_genpo.config.checks import did_you_mean
from torchrl_genpo.envs.isaaclab.transforms import LOG, EpisodeLog, FinalObservation, LastObservationAtReset
from torchrl_genpo.envs.seeds import SIMULATOR_BITS, spawn_seed

__all__ = ["INSTALL", "ISAACLAB_TASKS", "make_isaaclab_env"]

ISAACLAB_TASKS = {
    "ant": ("Isaac-Ant-v0", "Isaac-Ant"),
    "anymal_d_rough": ("Isaac-Velocity-Rough-Anymal-D-v0", "Isaac-Velocity-Rough-AnymalD"),
    "cartpole": ("Isaac-Cartpole-v0", "Isaac-Cartpole"),
    "digit_locomanip": ("Isaac-Tracking-LocoManip-Digit-v0", "IsaacContrib-Tracking-LocoManip-Digit"),
    "g1_flat": ("Isaac-Velocity-Flat-G1-v0", "Isaac-Velocity-Flat-G1"),
    "g1_rough": ("Isaac-Velocity-Rough-G1-v0", "Isaac-Velocity-Rough-G1"),
    "go2_flat": ("Isaac-Velocity-Flat-Unitree-Go2-v0", "Isaac-Velocity-Flat-UnitreeGo2"),
    "go2_rough": ("Isaac-Velocity-Rough-Unitree-Go2-v0", "Isaac-Velocity-Rough-UnitreeGo2"),
    "h1_flat": ("Isaac-Velocity-Flat-H1-v0", "Isaac-Velocity-Flat-H1"),
    "h1_rough": ("Isaac-Velocity-Rough-H1-v0", "Isaac-Velocity-Rough-H1"),
    "humanoid": ("Isaac-Humanoid-v0", "Isaac-Humanoid"),
    "open_drawer": ("Isaac-Open-Drawer-Franka-v0", "Isaac-Open-Drawer-Franka"),
}
"""Short names of tasks, with their ids in Isaac Lab 2.x and in 3.x; any other id that Isaac Lab registers works too."""

INSTALL = (
    "with Python 3.12 pip install torchrl-genpo isaaclab==3.0.0; or, far smaller and for a CPU, "
    "pip install 'torchrl-genpo[isaaclab]' && pip install --no-deps --ignore-requires-python isaaclab==3.0.0"
)
CAMERA = {"width": 640, "height": 352}

_simulation: weakref.ReferenceType[EnvBase] | None = None  # Isaac Lab has one simulation a process
_app: Any = None  # Isaac Sim, where it is needed


def make_isaaclab_env(
    task: str,
    num_envs: int | None = None,
    device: torch.device | str = "cuda:0",
    seed: int | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    physics: str | None = None,
    asset_root: str | None = None,
    render: bool = False,
) -> EnvBase:
    """Builds an Isaac Lab task as one batched TorchRL environment, and launches first what it needs.

    Isaac Lab draws from PyTorch's global random state, which making the environment, ``env.set_seed`` and ``seed`` set.

    Keys: ``observation`` ``[num_envs, n]`` (Isaac Lab's group ``policy``); ``critic_observation`` where the task has a
    group ``critic``; ``reward``, ``episode_reward`` (its sum as the task gives it) and ``step_count``, each
    ``[num_envs, 1]``; and ``("log", <name>)`` ``[num_envs, 1]``, Isaac Lab's own statistics of the episodes that ended
    last (its ``extras["log"]``; read them where ``("next", "done")`` is set). Actions are those of the task, which has
    no bounds; the environment clips them if the task's reference configuration does.

    Isaac Lab resets finished environments inside the step. The observation that ended the episode, which a time-out
    bootstraps from, is read before that (``compute_final_obs``) and stands in ``next``. TorchRL's wrapper alone would
    leave NaN there; its ``native_autoreset=True``, which is not used here, would also break the transforms at the end
    of an episode. Isaac Lab 2.x cannot tell that observation; there the one before it takes its place, as in rsl_rl.

    Args:
        task (str): a name from :data:`ISAACLAB_TASKS`, or a manager-based task's id of Isaac Lab 2.x or 3.x.
        num_envs (int, optional): the batch size. Defaults to the task's own.
        device (torch.device or str, optional): the device of simulation and data. Defaults to ``"cuda:0"``.
        seed (int, optional): the seed of the task's randomisation.

    Keyword Args:
        overrides (mapping, optional): changes to the task's configuration, nested as it is, such as
            ``{"episode_length_s": 5.0, "scene": {"env_spacing": 4.0}}``.
        physics (str, optional): the physics of Isaac Lab 3.x, such as ``newton_mjwarp`` (the default) or
            ``isaacsim_physx``.
        asset_root (str, optional): a folder with Isaac Lab's assets, which becomes ``ISAACSIM_ASSET_ROOT``. It is
            needed where NVIDIA's server cannot be reached.
        render (bool, optional): adds ``pixels`` ``[num_envs, height, width, 3]``, for :class:`IsaacLabView`.

    Raises:
        ImportError: if Isaac Lab or a package that it needs is missing; the message says how to install it.
        FileNotFoundError: if a robot's file is missing; the message says where it was looked for.
        RuntimeError: if another simulation of this process is still open.
        ValueError: if the task, an override or the physics is unknown, or the task is not manager-based.

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

    import isaaclab_tasks  # noqa: F401  # registers the tasks
    from isaaclab.envs import ManagerBasedRLEnvCfg
    from isaaclab_tasks.utils import parse_env_cfg
    from torchrl.envs.libs.isaac_lab import IsaacLabWrapper

    task_id = _find_task(task, gymnasium.registry)
    cfg = _configure(parse_env_cfg, task_id, str(device), num_envs, physics)
    if not isinstance(cfg, ManagerBasedRLEnvCfg):
        raise ValueError(f"{task_id} is not a manager-based task; TorchRL cannot reset its environments one by one.")
    cfg.seed = None if seed is None else spawn_seed(seed, bits=SIMULATOR_BITS)
    if hasattr(cfg, "compute_final_obs"):
        cfg.compute_final_obs = True
    _override(cfg, overrides or {}, task_id)
    if render:
        IsaacLabWrapper.add_tiled_camera_config(cfg, renderer_backend="newton_warp" if is_kitless else None, **CAMERA)
    try:
        raw = _Seeded(gymnasium.make(task_id, cfg=cfg))
    except ModuleNotFoundError as error:  # Isaac Lab imports much of what it needs only where it needs it
        raise ImportError(
            f"{task_id} needs {error.name!r}, and this installation of Isaac Lab lacks it: {INSTALL}."
        ) from error
    except FileNotFoundError as error:
        root = os.environ.get("ISAACSIM_ASSET_ROOT")
        raise FileNotFoundError(
            f"{error} {task_id} loads its robot from "
            + (f"ISAACSIM_ASSET_ROOT={root}." if root else "NVIDIA's server, which this machine does not reach.")
            + " Give a folder with Isaac Lab's assets as asset_root (env.options.asset_root=<folder>), or write "
            "stand-ins to try things, from a clone of this repository: python examples/isaaclab_standins <folder>."
        ) from error
    _, info = raw.reset(seed=seed)  # fills the statistics, so that their names are known

    env = IsaacLabWrapper(raw, device=torch.device(device), from_tiled_camera=render)
    base = env.base_env
    _simulation = weakref.ref(base)
    # both are read in every step; VecGymEnvTransform, which TorchRL adds, swaps the final observation in
    base.set_info_dict_reader(FinalObservation())
    base.set_info_dict_reader(EpisodeLog(info.get("log", {}), base.batch_size, base.device))
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
    return env


class _Seeded(gymnasium.Wrapper):
    """Gives the simulation a seed that is small enough for NumPy's global state, which Isaac Lab sets."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=None if seed is None else spawn_seed(seed, bits=SIMULATOR_BITS), options=options)


def _set_asset_root(asset_root: str | None) -> None:
    """Sets the folder of the assets, which Isaac Lab reads once, when it is imported."""
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
    """Starts Isaac Sim without a window, once; it has to run before a task is imported."""
    global _app
    if _app is not None:
        return
    if importlib.util.find_spec("isaacsim") is None:
        raise ImportError(f"This physics needs Isaac Sim, which is not installed. Without it: {INSTALL}.")
    from isaaclab.app import AppLauncher

    _app = AppLauncher(headless=True, enable_cameras=camera, device=str(device)).app
    atexit.register(_app.close)


def _find_task(task: str, registry: Mapping[str, Any]) -> str:
    """Finds the id of a task in the installed version."""
    ids = next((ids for name, ids in ISAACLAB_TASKS.items() if task in (name, *ids)), ())
    for candidate in (*ids, task, re.sub(r"-v\d+$", "", task)):  # 3.x dropped the versions
        if candidate in registry:
            return candidate
    known = [task_id for task_id in registry if task_id.startswith("Isaac")]
    raise ValueError(
        f"Unknown Isaac Lab task {task!r}.{did_you_mean(task, [*ISAACLAB_TASKS, *known])} "
        f"Names: {', '.join(ISAACLAB_TASKS)}. Ids: {', '.join(sorted(known))}."
    )


def _configure(parse_env_cfg: Any, task_id: str, device: str, num_envs: int | None, physics: str | None) -> Any:
    """Returns the configuration of a task."""
    if physics is None:  # 2.x
        return parse_env_cfg(task_id, device=device, num_envs=num_envs)
    try:
        return parse_env_cfg(task_id, device=device, num_envs=num_envs, overrides=[f"physics={physics}"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{task_id} cannot use physics={physics}: {error}") from error


def _override(cfg: Any, overrides: Mapping[str, Any], name: str) -> None:
    """Sets what a nested mapping names; ``cfg.from_dict`` would refuse a float where the default is an int."""
    for key, value in overrides.items():
        if not hasattr(cfg, key):
            raise ValueError(f"{name} has no {key!r}; it has {', '.join(sorted(vars(cfg)))}.")
        old = getattr(cfg, key)
        if isinstance(value, Mapping) and hasattr(old, "__dataclass_fields__"):
            _override(old, value, f"{name}.{key}")
        else:
            setattr(cfg, key, tuple(value) if isinstance(old, tuple) else value)


def _reference_action_clip(task_id: str) -> float | None:
    """Returns the bound of actions in rsl_rl's configuration of a task, if it has one."""
    from isaaclab_tasks.utils import load_cfg_from_registry

    if gymnasium.spec(task_id).kwargs.get("rsl_rl_cfg_entry_point") is None:
        return None
    return getattr(load_cfg_from_registry(task_id, "rsl_rl_cfg_entry_point"), "clip_actions", None)
