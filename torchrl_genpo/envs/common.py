# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the simulator families share beside transforms."""

from __future__ import annotations

import contextlib
import signal
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from torchrl.envs import EnvBase, ParallelEnv, TransformedEnv
from torchrl.envs.batched_envs import BatchedEnvBase

__all__ = ["WorkerError", "close_quietly", "name_worker_failure", "simulator"]


class WorkerError(RuntimeError):
    """A process that simulates environments died or hung; the message says which."""


def simulator(env: EnvBase) -> Any:
    """What TorchRL's wrapper below all transforms wraps, or an environment without a wrapper itself.

    ``None`` where that is in other processes.
    """
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return None if isinstance(env, BatchedEnvBase) else getattr(env, "_env", env)


def close_quietly(env: EnvBase) -> None:
    """Closes an environment, whatever state its processes are in."""
    if not env.is_closed:
        # a dead worker cannot say goodbye, and TorchRL may close one that has not ended yet
        with contextlib.suppress(RuntimeError, OSError, EOFError, ValueError):
            env.close()


def _is_closed(process: BaseProcess) -> bool:
    """Whether TorchRL has ended it, and closed the object, after another one had died."""
    try:
        return process.sentinel is None
    except ValueError:
        return True


def name_worker_failure(env: EnvBase, error: Exception) -> str | None:
    """What happened to the worker processes of an environment, in a sentence, if they are why ``error`` was raised.

    Args:
        env (EnvBase): whose worker processes to look at.
        error (Exception): raised by a step or a reset.
    """
    if isinstance(error, WorkerError):  # it names them itself
        return str(error)
    while isinstance(env, TransformedEnv):
        env = env.base_env
    if not isinstance(env, ParallelEnv):
        return None
    patience = 1.0 if isinstance(error, (EOFError, OSError)) else 0.0  # s; a pipe breaks before its process has ended
    workers = {index: worker for index, worker in enumerate(env._workers) if not _is_closed(worker)}
    ended = wait([worker.sentinel for worker in workers.values()], patience)
    dead = {}
    for index, worker in workers.items():
        if worker.sentinel in ended:
            worker.join(1)  # s; its exit code comes a moment later
            dead[index] = worker.exitcode
    if len(set(dead.values())) > 1:  # TorchRL has ended the others
        dead = {index: code for index, code in dead.items() if code != -signal.SIGTERM}
    if dead:
        numbers, codes = (", ".join(map(str, part)) for part in (dead.keys(), dead.values()))
        return f"Worker {numbers} of the environment died (exit code {codes})."
    if "time limit" in str(error):  # TorchRL's own words
        return f"A worker of the environment did not answer for {env.BATCHED_PIPE_TIMEOUT} s."
    return None
