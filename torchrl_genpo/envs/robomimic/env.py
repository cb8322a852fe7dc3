# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""robosuite's manipulation tasks as batched TorchRL environments, with chunks of actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torchrl._utils import seed_generator
from torchrl.envs import EnvBase, ParallelEnv, TransformedEnv

from torchrl_genpo.config.checks import did_you_mean
from torchrl_genpo.data.robomimic import read_env_args
from torchrl_genpo.envs.gym import PolicySpaces, batch_gym_envs
from torchrl_genpo.envs.robomimic.simulator import (
    ROBOMIMIC_TASKS,
    SIMULATION_TIMESTEP,
    RobomimicTask,
    make_simulator,
    observation_parts,
    require_robosuite,
    set_simulator_seed,
)

__all__ = ["RobosuiteEnv", "make_robomimic_env"]

WORKER_TIMEOUT = 300.0  # s, after which a worker that does not answer is taken to hang


class RobosuiteEnv(gymnasium.Env):
    """Makes a robosuite task a Gymnasium environment whose horizon truncates and whose success may terminate.

    An action is a chunk of ``chunk_size`` control steps, executed open loop. The reward of a chunk is the discounted
    sum over its steps. The observation is a dict of ``observation`` ``[n]`` and of ``success`` ``[1]``, which is 1 once
    the task has been solved in this episode.

    Args:
        env_args (mapping): the environment, as a robomimic file describes it; see :meth:`RobomimicTask.env_args`.
        observation_keys (sequence of str): the parts of the observation.
        horizon (int): the length of an episode in control steps.

    Keyword Args:
        chunk_size (int, optional): the control steps of an action. Defaults to ``1``.
        gamma (float, optional): the discount from step to step inside a chunk. Defaults to ``1.0``.
        model_seed (int, optional): of what is drawn once for all episodes, such as the size of the cube of ``Lift``.
            Defaults to ``0``.
        **others: see :func:`~torchrl_genpo.envs.make_robomimic_env`.

    Raises:
        ImportError: if robosuite, or the package that defines the environment, is missing.
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
        model_seed: int = 0,
        render: bool = False,
    ) -> None:
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1 control step, got {horizon}.")
        if not observation_keys:
            raise ValueError("observation_keys must name at least one part of the observation, or be left out.")
        self.make_simulator = partial(
            make_simulator, env_args, simulation_timestep, reward_shaping=reward_shaping, model_seed=model_seed
        )
        self.simulator = self.make_simulator(has_visuals=render, has_offscreen_renderer=render)
        self.render_mode = "rgb_array" if render else None
        self.dt = chunk_size * float(self.simulator.control_timestep)  # s, of an action
        self.metadata = self.metadata | {"render_fps": 1 / self.dt}  # there is one frame for each chunk
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
        """Starts an episode; if a seed is given, this and all later episodes are drawn from it."""
        super().reset(seed=seed)
        if seed is not None:
            set_simulator_seed(self.simulator, seed)
        self._elapsed, self._has_succeeded = 0, False
        self.simulator.reset()
        # robosuite's relative poses are zero until they have been computed twice
        return self._observe(self.simulator._get_observations(force_update=True)), {}

    def step(self, action: np.ndarray) -> Any:
        """Executes a chunk, or the part of it up to the end of the episode."""
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
        """Draws a frame ``[height, width, 3]``."""
        frame = self.simulator.sim.render(width=512, height=384, camera_name=self.CAMERA)
        return frame[::-1]  # MuJoCo's frames are upside down

    def close(self) -> None:
        """Frees the simulator."""
        self.simulator.close()


def make_robomimic_env(
    task: str,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    *,
    gamma: float = 0.99,
    chunk_size: int = 4,
    end_at_success: bool = True,
    reward_shaping: bool = False,
    horizon: int | None = None,
    observation_keys: Sequence[str] | None = None,
    dataset: str | None = None,
    simulation_timestep: float = SIMULATION_TIMESTEP,
    num_workers: int = 0,
    render: bool = False,
) -> EnvBase:
    """Builds a batch of robosuite tasks as one TorchRL environment.

    Observations, rewards and actions are in robosuite's own units, and actions beyond its bounds are clipped inside. An
    action is a chunk of control steps ``[..., chunk_size * d]``, see :class:`RobosuiteEnv`. Keys: ``observation``
    ``[..., n]``; ``success``, ``reward`` and ``episode_reward`` ``[..., 1]``; ``step_count`` ``[..., 1]``, in chunks.

    Args:
        task (str): a name from :data:`ROBOMIMIC_TASKS`, or robosuite's name of an environment.
        num_envs (int, optional): the batch size. Defaults to ``1``.
        device (torch.device or str, optional): where the data lives; the simulation runs on the CPU.
        seed (int, optional): the seed, from which every environment's stream of random numbers is spawned.

    Keyword Args:
        gamma (float, optional): the discount from one chunk to the next; inside a chunk it is its ``chunk_size``-th
            root. Defaults to ``0.99``.
        chunk_size (int, optional): the control steps of an action. Defaults to ``4``.
        end_at_success (bool, optional): whether success terminates the episode. Defaults to ``True``.
        reward_shaping (bool, optional): whether the reward is robosuite's dense one. Defaults to ``False``, the sparse
            one.
        horizon (int, optional): the length of an episode in control steps. Defaults to the task's.
        observation_keys (sequence of str, optional): the parts of the observation. Defaults to the task's.
        dataset (str, optional): a robomimic file, whose environment is used as it was recorded.
        simulation_timestep (float, optional): the seconds of physics in a simulation step; ``0.005`` is twice as fast.
        num_workers (int, optional): the most processes among which ``num_envs`` is divided evenly; the batch is then
            ``[num_workers, num_envs / num_workers]``. Defaults to ``0``, which simulates in this process.
        render (bool, optional): makes frames for :class:`~torchrl_genpo.envs.GymView`; there are no workers then.

    Raises:
        FileNotFoundError: if ``dataset`` is missing.
        ImportError: if robosuite or the package of the task is missing; the message says how to install it.
        ValueError: if the task is unknown, or ``num_envs``, ``chunk_size`` or ``horizon`` is not positive.
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
    require_robosuite()
    if dataset is not None and not Path(dataset).is_file():
        raise FileNotFoundError(
            f"dataset={dataset} is missing: give the path that the file has now (env.options.dataset=<file>)."
        )
    known = known or RobomimicTask(task)
    env_args = known.env_args() if dataset is None else read_env_args(dataset)
    make = partial(
        RobosuiteEnv,
        env_args,
        known.observation_keys if observation_keys is None else tuple(observation_keys),
        known.horizon if horizon is None else horizon,
        chunk_size=chunk_size,
        end_at_success=end_at_success,
        gamma=gamma ** (1 / chunk_size),
        reward_shaping=reward_shaping,
        simulation_timestep=simulation_timestep,
        render=render,
    )
    env: Any
    if num_workers > 1 and not render:
        # pipes, because with shared buffers this process would spin while it waits, on a core that a simulator can use
        workers = _Workers(
            num_workers,
            partial(_make_batch, task, make, num_envs // num_workers),
            create_env_kwargs=[{"worker": worker} for worker in range(num_workers)],
            device=device,
            use_buffers=False,
        )
        workers.BATCHED_PIPE_TIMEOUT = WORKER_TIMEOUT
        env = TransformedEnv(workers)
    else:
        env = _make_batch(task, make, num_envs, device)
    if seed is not None:
        env.set_seed(seed)
    return env


class _Workers(ParallelEnv):
    """Workers that are all told the same seed, of which each environment spawns its own stream.

    Its processes are known after it was closed, too: a collector closes it before anyone can ask which of them died.
    """

    _workers: list[BaseProcess]

    def _shutdown_workers(self) -> None:
        workers = self._workers
        super()._shutdown_workers()
        self._workers = workers

    def set_seed(self, seed: int | None = None, static_seed: bool = False) -> int | None:
        super().set_seed(seed, static_seed=True)
        return seed if seed is None or static_seed else seed_generator(seed)


def _make_batch(task: str, make: Any, num_envs: int, device: torch.device | str = "cpu", worker: int = 0) -> EnvBase:
    """Makes a batch of environments that are stepped one after the other in one process."""
    first = worker * num_envs
    makers = [
        lambda index=index: PolicySpaces(make(model_seed=index), task) for index in range(first, first + num_envs)
    ]
    return batch_gym_envs(makers, device, worker)
