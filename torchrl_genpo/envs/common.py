# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Helpers that all simulator families share."""

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
    """Is raised when a process that simulates environments died or hung; the message says which."""


def simulator(env: EnvBase) -> Any:
    """Returns the innermost simulator object.

    This is what TorchRL's wrapper holds below all transforms, or the innermost environment itself where it wraps
    nothing. It is ``None`` where the simulators run in other processes.
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
    """Says whether TorchRL has ended this process and closed its object, after another process had died."""
    try:
        return process.sentinel is None
    except ValueError:
        return True


def name_worker_failure(env: EnvBase, error: Exception) -> str | None:
    """Says in a sentence what happened to the worker processes of an environment.

    Args:
        env (EnvBase): the environment whose worker processes are looked at.
        error (Exception): the error that a step or a reset raised.

    Returns:
        The sentence, or ``None`` if no worker is the reason for the error.
    """
    if isinstance(error, WorkerError):  # it names the worker itself
        return str(error)
    while isinstance(env, TransformedEnv):
        env = env.base_env
    if not isinstance(env, ParallelEnv):
        return None
    patience = 1.0 if isinstance(error, (EOFError, OSError)) else 0.0  # s; a pipe breaks before its process ends
    workers = {index: worker for index, worker in enumerate(env._workers) if not _is_closed(worker)}
    ended = wait([worker.sentinel for worker in workers.values()], patience)
    dead = {}
    for index, worker in workers.items():
        if worker.sentinel in ended:
            worker.join(1)  # s; the exit code comes a moment later
            dead[index] = worker.exitcode
    dead = {index: code for index, code in dead.items() if code != 0}  # the others were told to end
    if len(set(dead.values())) > 1:  # TorchRL has terminated the workers that were well
        dead = {index: code for index, code in dead.items() if code != -signal.SIGTERM}
    if dead:
        numbers, codes = (", ".join(map(str, part)) for part in (dead.keys(), dead.values()))
        return f"Worker {numbers} of the environment died (exit code {codes})."
    if "time limit" in str(error):  # these are words of TorchRL's error
        return f"A worker of the environment did not answer for {env.BATCHED_PIPE_TIMEOUT} s."
    return None
