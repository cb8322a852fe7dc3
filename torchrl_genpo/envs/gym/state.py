# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The exact state of Gymnasium's simulators, for checkpoints."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import (
    ClipAction,
    DtypeObservation,
    FlattenObservation,
    OrderEnforcing,
    PassiveEnvChecker,
    RescaleAction,
    TimeLimit,
)
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_genpo.envs.common import simulator
from torchrl_genpo.envs.gym.spaces import PolicySpaces

__all__ = ["GymState"]

STATELESS = (
    ClipAction,
    DtypeObservation,
    FlattenObservation,
    OrderEnforcing,
    PassiveEnvChecker,
    PolicySpaces,
    RescaleAction,
)
"""The wrappers that hold nothing that the next step depends on."""

MUJOCO = "gymnasium.envs.mujoco."
CLASSIC = (
    "gymnasium.envs.classic_control.continuous_mountain_car.Continuous_MountainCarEnv",
    "gymnasium.envs.classic_control.pendulum.PendulumEnv",
    "torchrl_genpo.envs.hidden_goals.HiddenPointEnv",
    "torchrl_genpo.envs.hidden_goals.HiddenReachEnv",
    "torchrl_genpo.envs.multi_goal.MultiGoalEnv",
)
"""The tasks whose attribute ``state`` is all that they hold."""


class GymState:
    """Saves and restores the exact state of the simulators of a :func:`make_gym_env` environment, for checkpoints.

    A restored environment continues to the last bit. This is possible for the MuJoCo and classic-control tasks that
    Gymnasium itself has, with the wrappers that Gymnasium puts around a task and a few others that are known to keep
    nothing. Any other task or wrapper, or a second time limit, may hold more than is saved; for them :attr:`exact` is
    ``False`` and a resumed run starts with fresh episodes.

    Args:
        env (EnvBase): the environment.

    Attributes:
        exact (bool): whether the state can be saved and restored exactly.
    """

    # MuJoCo tasks read these before they step. They derive from the positions of an earlier sub-step, so that
    # neither the integration state nor a forward pass would reproduce them.
    _DERIVED = ("xpos", "xquat", "xipos", "xmat", "site_xpos", "cinert", "cvel", "cfrc_ext", "qfrc_actuator")

    def __init__(self, env: EnvBase) -> None:
        self._vector_env = simulator(env)
        envs = getattr(self._vector_env, "envs", None)  # other families have none
        self.exact = envs is not None and all(map(_is_known, envs))

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of every simulator, of its random generator and of its time limit."""
        if not self.exact:
            return {}
        return {str(i): self._get(i) for i in range(self._vector_env.num_envs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        for i in range(len(state_dict)):
            self._set(i, state_dict[str(i)])
        self._vector_env._autoreset_envs[:] = False

    def _get(self, index: int) -> dict[str, Any]:
        env = self._vector_env.envs[index]
        rng = env.unwrapped.np_random.bit_generator.state
        state: dict[str, Any] = {
            "observation": _apply(lambda x: torch.from_numpy(np.array(x)), self._vector_env._env_obs[index]),
            "elapsed_steps": getattr(_time_limit(env), "_elapsed_steps", None),
            # these are integers of 128 bits, which no tensor holds
            "rng": {"state": hex(rng["state"]["state"]), "inc": hex(rng["state"]["inc"])},
            "rng_uint32": [rng["has_uint32"], rng["uinteger"]],
        }
        if _is_classic(env):
            state["state"] = torch.from_numpy(np.array(env.unwrapped.state))
            return state
        import mujoco

        model, data = env.unwrapped.model, env.unwrapped.data
        physics = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model, data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        state["physics"] = torch.from_numpy(physics)
        state["derived"] = {key: torch.from_numpy(np.array(getattr(data, key))) for key in self._DERIVED}
        return state

    def _set(self, index: int, state: dict[str, Any]) -> None:
        env = self._vector_env.envs[index]
        generator = env.unwrapped.np_random.bit_generator
        has_uint32, uinteger = state["rng_uint32"]
        generator.state = {
            "bit_generator": type(generator).__name__,
            "state": {key: int(value, 16) for key, value in state["rng"].items()},
            "has_uint32": has_uint32,
            "uinteger": uinteger,
        }
        if state["elapsed_steps"] is not None:
            _time_limit(env)._elapsed_steps = state["elapsed_steps"]
        self._vector_env._env_obs[index] = _apply(_as_array, state["observation"])
        if _is_classic(env):
            env.unwrapped.state = _as_array(state["state"])
            return
        import mujoco

        model, data = env.unwrapped.model, env.unwrapped.data
        mujoco.mj_setState(model, data, _as_array(state["physics"]), mujoco.mjtState.mjSTATE_INTEGRATION)
        for key, value in state["derived"].items():
            getattr(data, key)[:] = _as_array(value)


def _as_array(value: Tensor) -> np.ndarray:
    """A copy for the simulator, on the CPU, of what was loaded to the device of the run."""
    return value.cpu().numpy().copy()


def _is_known(env: Any) -> bool:
    """Whether all that the task and every wrapper around it hold is what :class:`GymState` saves."""
    limits = 0
    while isinstance(env, gymnasium.Wrapper):
        limits += type(env) is TimeLimit
        if type(env) not in (TimeLimit, *STATELESS):
            return False
        env = env.env
    generator = type(env.np_random.bit_generator) is np.random.PCG64
    return generator and limits <= 1 and (_is_classic(env) or type(env).__module__.startswith(MUJOCO))


def _is_classic(env: Any) -> bool:
    kind = type(env.unwrapped)
    return f"{kind.__module__}.{kind.__qualname__}" in CLASSIC


def _apply(function: Any, observation: Any) -> Any:
    """Applies a function to an observation, or to every part of one that has several."""
    if isinstance(observation, dict):
        return {key: function(value) for key, value in observation.items()}
    return function(observation)


def _time_limit(env: Any) -> Any:
    """Returns the wrapper that counts the steps of an episode, or ``None`` if there is none."""
    while env is not None and "_elapsed_steps" not in vars(env):
        env = getattr(env, "env", None)
    return env
