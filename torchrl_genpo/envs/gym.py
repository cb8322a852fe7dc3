# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Gymnasium environments, batched, and the exact state of their simulators."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.envs import Compose, DoubleToFloat, EnvBase, GymWrapper, RewardSum, StepCounter, TransformedEnv

from torchrl_genpo.config.checks import check_memory, did_you_mean
from torchrl_genpo.envs.common import simulator
from torchrl_genpo.envs.multi_goal import MULTI_GOAL

__all__ = ["GYM_TASKS", "BatchedGymWrapper", "GymState", "GymView", "clip_action", "make_gym_env"]

GYM_TASKS = {
    "ant": "Ant-v5",
    "half_cheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "humanoid": "Humanoid-v5",
    "multi_goal": MULTI_GOAL,
    "pendulum": "InvertedPendulum-v5",
    "walker2d": "Walker2d-v5",
}
"""Short names of the Gymnasium tasks; any other Gymnasium id works too."""

SIMULATION = 2**18  # bytes that one environment takes at least


def make_gym_env(
    name: str,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    *,
    render: bool = False,
) -> EnvBase:
    """Builds a batch of Gymnasium environments as one TorchRL environment.

    Observations, rewards and actions are in the task's own units. The environment clips an action to the task's bounds,
    which ``env.action_spec`` has; TorchRL neither projects nor refuses an action beyond them, so that the policy stays
    unbounded and its likelihood untouched. The batch resets through TorchRL, not by itself: the observation that ended
    an episode is kept, so that truncated episodes bootstrap.

    Keys: ``observation`` ``[num_envs, n]`` (float32); ``reward``, ``episode_reward`` (the sum of the episode's rewards)
    and ``step_count``, each ``[num_envs, 1]``.

    Args:
        name (str): a name from :data:`GYM_TASKS` or a Gymnasium id.
        num_envs (int, optional): the batch size. Defaults to ``1``.
        device (torch.device or str, optional): where the data lives; the simulation runs on the CPU.
        seed (int, optional): the seed of the first environment; the others count up from it.

    Keyword Args:
        render (bool, optional): makes frames for :class:`GymView`. Defaults to ``False``.

    Raises:
        ValueError: if the name is unknown, ``num_envs`` is not positive or does not fit in memory, the actions are no
            bounded ``Box``, or the observations are no ``Box`` of floating numbers.
        ImportError: if the task needs a package that is missing.

    Examples:
        >>> from torchrl_genpo.envs import make_env
        >>> env = make_env("pendulum", num_envs=2, seed=0)
        >>> env.rollout(3)["observation"].shape
        torch.Size([2, 3, 4])
    """
    import gymnasium

    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}.")
    check_memory(SIMULATION * num_envs, f"num_envs={num_envs}")
    module, _, env_id = GYM_TASKS.get(name, name).rpartition(":")
    if module:  # Gymnasium's way to name an environment that a module registers
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module.partition(".")[0]:
                raise
            raise ImportError(
                f"{name}: there is no module {module!r}; install it, or name its folder in PYTHONPATH."
            ) from error
    if env_id not in gymnasium.registry:
        raise ValueError(
            f"Unknown environment {name!r}.{did_you_mean(name, [*GYM_TASKS, *gymnasium.registry])} "
            f"Names: {', '.join(sorted(GYM_TASKS))}; or any Gymnasium id, '<module>:<id>' where a module registers it."
        )

    rendering: dict[str, Any] = {"render_mode": "rgb_array"} if render else {}  # not every environment has the keyword

    def make() -> gymnasium.Env:
        try:
            env = gymnasium.make(env_id, **rendering)
        except (gymnasium.error.Error, ImportError) as error:  # a package is missing, or the version is deprecated
            raise ImportError(f"Gymnasium cannot make {env_id}: {error}") from error
        _check_spaces(env_id, env)
        return clip_action(env)

    disabled = gymnasium.vector.AutoresetMode.DISABLED
    base = BatchedGymWrapper(gymnasium.vector.SyncVectorEnv([make] * num_envs, autoreset_mode=disabled), device=device)
    transforms: list[Any] = [RewardSum(), StepCounter()]
    if base.observation_spec["observation"].dtype == torch.float64:
        transforms.append(DoubleToFloat(in_keys=["observation"]))
    env = TransformedEnv(base, Compose(*transforms))
    if seed is not None:
        env.set_seed(seed)
    return env


def clip_action(env: Any) -> Any:
    """Wraps a Gymnasium environment so that it clips actions to its bounds.

    Gymnasium's ``ClipAction`` does the same and then declares an unbounded action space, which would hide the bounds
    from whoever reads ``env.action_spec``.
    """
    import gymnasium

    space = env.action_space
    return gymnasium.wrappers.TransformAction(env, lambda action: np.clip(action, space.low, space.high), space)


def _check_spaces(env_id: str, env: Any) -> None:
    """Refuses actions that are not a bounded box, and observations that are not a box of floating numbers."""
    from gymnasium.spaces import Box, Dict

    action, observation = env.action_space, env.observation_space
    if not isinstance(action, Box):
        raise ValueError(f"{env_id} has a {type(action).__name__} action space; a flow needs a Box.")
    if not action.is_bounded():
        raise ValueError(f"{env_id} has actions without bounds; give its Box a low and a high.")
    if isinstance(observation, Dict):
        if "observation" not in observation.spaces:
            raise ValueError(
                f"{env_id} observes {', '.join(observation.spaces)}, and nothing called 'observation', which the "
                "policy reads: wrap it in gymnasium.wrappers.FlattenObservation where it is registered."
            )
        observation = observation["observation"]
    if not isinstance(observation, Box) or not np.issubdtype(observation.dtype, np.floating):
        raise ValueError(f"{env_id} observes {observation}; the policy needs a Box of floating numbers.")


class BatchedGymWrapper(GymWrapper):
    """Adapts TorchRL's wrapper to Gymnasium's batches where they do not fit: in partial resets and partial steps."""

    def _replace_reset(self, reset: torch.Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        return super()._replace_reset(reset.cpu(), kwargs)  # Gymnasium cannot read a mask on a GPU

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if "_step" in tensordict.keys():
            # the rollout ignores the episodes that have ended, which Gymnasium would refuse to step
            self._env._autoreset_envs[:] = False
        return super()._step(tensordict)


class GymView:
    """Films the first environment of :func:`make_gym_env`, made with ``render=True``.

    Attributes:
        fps (int): the frames of a second; there is one frame for each step.
    """

    def __init__(self, env: EnvBase) -> None:
        self._simulator = simulator(env).envs[0]
        self.fps = self._simulator.metadata.get("render_fps", 30)

    def frame(self, tensordict: TensorDictBase) -> np.ndarray:
        """Returns the picture ``[height, width, 3]`` of the present state."""
        return self._simulator.render()


class GymState:
    """Saves and restores the exact state of the simulators of a :func:`make_gym_env` environment, for checkpoints.

    A restored environment continues to the last bit. This is possible for Gymnasium's own MuJoCo and classic-control
    tasks. Other tasks may hold more than can be known; for them :attr:`exact` is ``False`` and a resumed run starts
    with fresh episodes.

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
        self.exact = envs is not None and all(self._is_known(env.unwrapped) for env in envs)

    @staticmethod
    def _is_known(env: Any) -> bool:
        is_own = type(env).__module__.startswith(("gymnasium.envs.", "torchrl_genpo."))
        return is_own and (hasattr(env, "state") or (hasattr(env, "data") and hasattr(env, "model")))

    @staticmethod
    def _is_classic(env: Any) -> bool:
        return hasattr(env.unwrapped, "state")

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
        if self._is_classic(env):
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
        self._vector_env._env_obs[index] = _apply(lambda x: x.numpy().copy(), state["observation"])
        if self._is_classic(env):
            env.unwrapped.state = state["state"].numpy().copy()
            return
        import mujoco

        model, data = env.unwrapped.model, env.unwrapped.data
        mujoco.mj_setState(model, data, state["physics"].numpy(), mujoco.mjtState.mjSTATE_INTEGRATION)
        for key, value in state["derived"].items():
            getattr(data, key)[:] = value.numpy()


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
