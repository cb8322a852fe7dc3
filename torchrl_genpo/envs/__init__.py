# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Environments: one file or folder for each simulator family."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torchrl.envs import EnvBase

from torchrl_genpo.envs.common import WorkerError, close_quietly, name_worker_failure, simulator
from torchrl_genpo.envs.gym import GYM_TASKS, GymState, GymView, make_gym_env
from torchrl_genpo.envs.isaaclab import (
    ISAACLAB_TASKS,
    IsaacLabView,
    make_isaaclab_env,
    stagger_episodes,
)
from torchrl_genpo.envs.robomimic import ROBOMIMIC_TASKS, make_robomimic_env
from torchrl_genpo.envs.seeds import Purpose, check_seed, spawn_seed
from torchrl_genpo.envs.transforms import DiscountedReturn
from torchrl_genpo.envs.xhand import XHAND_TASKS, NutBoltEnv, NutBoltView, make_xhand_env

__all__ = [
    "GYM_TASKS",
    "ISAACLAB_TASKS",
    "ROBOMIMIC_TASKS",
    "XHAND_TASKS",
    "DiscountedReturn",
    "GymState",
    "GymView",
    "IsaacLabView",
    "NutBoltEnv",
    "NutBoltView",
    "Purpose",
    "WorkerError",
    "close_quietly",
    "make_env",
    "make_gym_env",
    "make_isaaclab_env",
    "make_robomimic_env",
    "make_view",
    "make_xhand_env",
    "name_worker_failure",
    "one_simulation",
    "simulator_state",
    "spawn_seed",
    "stagger_episodes",
]

ISAACLAB, ROBOMIMIC, XHAND = "isaaclab/", "robomimic/", "xhand/"


def make_env(
    name: str, num_envs: int = 1, device: torch.device | str = "cpu", seed: int | None = None, **options: Any
) -> EnvBase:
    """Builds a batch of environments by name.

    Args:
        name (str): ``isaaclab/<task>`` for :func:`make_isaaclab_env`, ``robomimic/<task>`` for
            :func:`make_robomimic_env`, ``xhand/nut_bolt`` for :func:`make_xhand_env`, anything else for
            :func:`make_gym_env`.
        num_envs (int, optional): the batch size. Defaults to ``1``.
        device (torch.device or str, optional): where the data lives. Defaults to ``"cpu"``.
        seed (int, optional): the seed, from which every environment's stream of random numbers is spawned: two seeds
            share none.
        **options: the keyword arguments of the family's function; every family has ``render``.

    Returns:
        The environment. Observations, rewards and actions are in the task's own units, and actions beyond its bounds
        are clipped inside.

    Raises:
        ValueError: for an unknown name or option, or a seed that is no integer from 0 to ``2**63 - 1``.

    Examples:
        >>> from torchrl_genpo.envs import make_env
        >>> make_env("pendulum", num_envs=2, seed=0).rollout(3)["observation"].shape
        torch.Size([2, 3, 4])
    """
    if seed is not None:
        seed = check_seed(seed)
    make: Any = make_gym_env
    families = ((ISAACLAB, make_isaaclab_env), (ROBOMIMIC, make_robomimic_env), (XHAND, make_xhand_env))
    for prefix, function in families:
        if name.startswith(prefix):
            make, name = function, name.removeprefix(prefix)
    known = [key for key, value in inspect.signature(make).parameters.items() if value.kind is value.KEYWORD_ONLY]
    unknown = set(options) - set(known)
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(sorted(unknown))}; it has {', '.join(known)}.")
    return make(name, num_envs, device, seed, **options)


def one_simulation(name: str) -> bool:
    """Says whether a process can hold only one environment of this family, as it is with Isaac Lab."""
    return name.startswith(ISAACLAB)


def make_view(env: EnvBase) -> GymView | IsaacLabView | NutBoltView:
    """Returns the camera of an environment made with ``render=True``, which has ``frame(td)`` and ``fps``."""
    base = simulator(env)
    if isinstance(base, NutBoltEnv):
        return NutBoltView(env)
    return GymView(env) if hasattr(base, "envs") else IsaacLabView(env)


def simulator_state(env: EnvBase) -> GymState | NutBoltEnv | None:
    """Returns the object whose ``state_dict`` saves and restores a simulation to the last bit.

    It is ``None`` where the simulation cannot be saved exactly.
    """
    base = simulator(env)
    if isinstance(base, NutBoltEnv):
        return base
    state = GymState(env)
    return state if state.exact else None
