# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Scripts in processes of their own, as a user runs them, but Python's imports are paid for once."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

# The server has done nothing but import: what this process has begun, threads or a renderer, does not survive a fork.
multiprocessing.get_context("forkserver").set_forkserver_preload(["torchrl_genpo.commands.train"])


def run_forked(
    function: Callable[[], None], output: Path, limit: float, method: str = "forkserver"
) -> tuple[int, float]:
    """Calls a function in another process, with a session, a folder and an output of its own.

    Args:
        function (Callable): must pickle, unless the method is ``fork``.
        output (Path): the file of both streams; its folder is the working directory.
        limit (float): seconds, after which all of its session is killed.
        method (str, optional): ``forkserver``, or ``fork`` for a process that holds what this one holds.

    Returns:
        tuple of int and float: exit code, or minus the signal; and seconds.
    """
    start = time.monotonic()
    process = multiprocessing.get_context(method).Process(target=_redirected, args=(function, output))
    process.start()
    process.join(limit)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode, time.monotonic() - start


def run_script(path: Path, options: Sequence[object], output: Path, limit: float = 300.0) -> tuple[int, float]:
    """Runs a script with these options; see :func:`run_forked`."""
    return run_forked(partial(_script, str(path), *map(str, options)), output, limit)


def _script(*command: str) -> None:
    sys.argv = list(command)
    runpy.run_path(command[0], run_name="__main__")


def _redirected(function: Callable[[], None], output: Path) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(output.parent)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
        function()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
