# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Gymnasium environments, batched, and their pictures."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec, load_env_creator
from tensordict import TensorDictBase
from torchrl.envs import Compose, EnvBase, GymWrapper, RewardSum, StepCounter, TransformedEnv

from torchrl_genpo.config.checks import did_you_mean
from torchrl_genpo.envs.common import simulator
from torchrl_genpo.envs.gym.spaces import PolicySpaces
from torchrl_genpo.envs.hidden_goals import HIDDEN_POINT, HIDDEN_REACH
from torchrl_genpo.envs.multi_goal import MULTI_GOAL
from torchrl_genpo.envs.seeds import SIMULATOR_BITS, spawn_generator, spawn_seed

__all__ = ["GYM_TASKS", "BatchedGymWrapper", "GymView", "batch_gym_envs", "make_gym_env"]

GYM_TASKS = {
    "ant": "Ant-v5",
    "half_cheetah": "HalfCheetah-v5",
    "hidden_point": HIDDEN_POINT,
    "hidden_reach": HIDDEN_REACH,
    "hopper": "Hopper-v5",
    "humanoid": "Humanoid-v5",
    "multi_goal": MULTI_GOAL,
    "pendulum": "InvertedPendulum-v5",
    "walker2d": "Walker2d-v5",
}
"""Short names of the Gymnasium tasks; any other Gymnasium id works too."""


def make_gym_env(
    name: str,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    *,
    max_episode_steps: int | None = None,
    render: bool = False,
) -> EnvBase:
    """Builds a batch of Gymnasium environments as one TorchRL environment.

    Observations, rewards and actions are in the task's own units. The environment clips an action to the task's bounds,
    which ``env.action_spec`` has; TorchRL neither projects nor refuses an action beyond them, so that the policy stays
    unbounded and its likelihood untouched. The batch resets through TorchRL, not by itself: the observation that ended
    an episode is kept, so that truncated episodes bootstrap.

    Keys: ``observation`` ``[num_envs, n]`` (float32), the numbers of an observation of any shape; ``pixels``
    ``[num_envs, channels, height, width]`` (float32, in ``[0, 1]``) where the task observes a picture; ``action``
    ``[num_envs, d]``, whatever its shape in the task; ``reward``, ``episode_reward`` (the sum of the episode's rewards)
    and ``step_count``, each ``[num_envs, 1]``. :class:`~torchrl_genpo.envs.gym.PolicySpaces` says what is read of a
    dictionary; a warning names what is not.

    Args:
        name (str): a name from :data:`GYM_TASKS` or a Gymnasium id.
        num_envs (int, optional): the batch size. Defaults to ``1``.
        device (torch.device or str, optional): where the data lives; the simulation runs on the CPU.
        seed (int, optional): the seed, from which every environment's stream of random numbers is spawned.

    Keyword Args:
        max_episode_steps (int, optional): the steps after which an episode is truncated. Defaults to the task's own
            limit, if it has one.
        render (bool, optional): makes frames for :class:`GymView`. Defaults to ``False``.

    Raises:
        ValueError: if the name is unknown, its entry point needs arguments, ``num_envs`` or ``max_episode_steps`` is
            not positive, ``num_envs`` does not fit in memory, ``seed`` is out of its range, the actions cannot be
            scaled from ``[-1, 1]``, or the observations are neither floating numbers nor a picture.
        ImportError: if the task needs a package that is missing.

    Examples:
        >>> from torchrl_genpo.envs import make_env
        >>> env = make_env("pendulum", num_envs=2, seed=0)
        >>> env.rollout(3)["observation"].shape
        torch.Size([2, 3, 4])
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}.")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ValueError(f"max_episode_steps must be at least 1, got {max_episode_steps}.")
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

    def make() -> PolicySpaces:
        try:
            _check_arguments(gymnasium.spec(env_id))
            env = gymnasium.make(env_id, max_episode_steps=max_episode_steps, **rendering)
        except (gymnasium.error.Error, ImportError) as error:  # a package is missing, or the version is deprecated
            raise ImportError(f"Gymnasium cannot make {env_id}: {error}") from error
        return PolicySpaces(env, env_id)

    env = batch_gym_envs([make] * num_envs, device)
    if left_out := simulator(env).envs[0].left_out:
        warnings.warn(
            f"{env_id}: of its observation the policy does not read {', '.join(left_out)}, which is left out; what it "
            "needs must be in 'observation'.",
            stacklevel=2,
        )
    if max_episode_steps is None and gymnasium.spec(env_id).max_episode_steps is None:
        warnings.warn(
            f"{env_id} has no time limit, and an episode that does not end is evaluated for 10,000 steps: give it one "
            "by env.max_episode_steps.",
            stacklevel=2,
        )
    if seed is not None:
        env.set_seed(seed)
    return env


def batch_gym_envs(makers: Sequence[Callable[[], PolicySpaces]], device: Any = "cpu", worker: int = 0) -> EnvBase:
    """Batches tasks that are stepped one after the other in this process, and counts their steps and rewards.

    Args:
        makers (sequence of callables): each makes one task.
        device (torch.device or str, optional): where the data lives. Defaults to ``"cpu"``.
        worker (int, optional): the number of this process among those that share a seed. Defaults to ``0``.
    """
    disabled = gymnasium.vector.AutoresetMode.DISABLED
    base = BatchedGymWrapper(gymnasium.vector.SyncVectorEnv(makers, autoreset_mode=disabled), device=device)
    base.worker = worker
    return TransformedEnv(base, Compose(RewardSum(), StepCounter()))


def _check_arguments(spec: EnvSpec) -> None:
    """Refuses a task whose entry point has arguments that nobody gives."""
    creator = spec.entry_point if callable(spec.entry_point) else load_env_creator(str(spec.entry_point))
    missing = [
        parameter.name
        for parameter in inspect.signature(creator).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in spec.kwargs
    ]
    if missing:
        raise ValueError(
            f"{spec.id}: its entry point needs {', '.join(missing)}: give it a default, or a value where the task is "
            f"registered, gymnasium.register({spec.id!r}, ..., kwargs={{{missing[0]!r}: ...}})."
        )


class BatchedGymWrapper(GymWrapper):
    """Adapts TorchRL's wrapper to Gymnasium's batches where they do not fit: in seeds, partial resets and steps.

    Attributes:
        worker (int): the number of this process among those that share a seed.
    """

    worker = 0

    def _set_seed(self, seed: int | None) -> None:
        """Spawns a stream for each environment; what draws by a generator of its own has 31 bits of it."""
        if seed is None:
            self.reset()
            return
        keys = [(self.worker, index) for index in range(self._env.num_envs)]
        self.reset(seed=[spawn_seed(seed, *key, bits=SIMULATOR_BITS) for key in keys])
        for env, key in zip(self._env.envs, keys, strict=True):
            env.unwrapped.np_random = spawn_generator(seed, *key)

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
