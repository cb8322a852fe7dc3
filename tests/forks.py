# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Runs scripts in processes of their own, as a user runs them, while Python's imports are paid for once."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

__all__ = ["SCRIPT", "Outcome", "run_entry_script", "run_forked", "run_script"]

SCRIPT = Path(__file__).parents[1] / "sota-implementations" / "genpo.py"

# The server has done nothing but import: what this process has begun, threads or a renderer, does not survive a fork.
multiprocessing.get_context("forkserver").set_forkserver_preload(["torchrl_genpo.commands.train"])


@dataclass(frozen=True)
class Outcome:
    """How a command line of the entry script ended.

    Attributes:
        command (tuple of str): the options.
        code (int): the exit code, or minus the signal.
        output (str): what was written to both streams.
        seconds (float): the wall-clock time.
        left (tuple of str): the files and run folders that it left behind.
    """

    command: tuple[str, ...]
    code: int
    output: str
    seconds: float
    left: tuple[str, ...]

    @property
    def fault(self) -> str | None:
        """What a user could complain about in the answer to a mistake, or ``None``."""
        if self.code < 0:
            return f"ended by signal {-self.code} after {self.seconds:.0f} s"
        if self.code == 0:
            return "accepted"
        if "Traceback (most recent call last)" in self.output:
            return "traceback"
        if len(self.output.strip()) < 10:
            return "no message"
        return f"left {', '.join(self.left)}" if self.left else None


def run_entry_script(options: Sequence[str], folder: Path, limit: float = 60.0) -> Outcome:
    """Runs the entry script in a new folder; ``run`` in it is the folder of the run."""
    folder.mkdir(parents=True)
    output = folder / "output.txt"
    code, seconds = run_script(SCRIPT, options, output, limit)
    left = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != output]
    left += [path for path in (folder / "run",) if path.is_dir() and not any(path.rglob("*"))]
    others = ("multirun.yaml", "MUJOCO_LOG.TXT")  # where new versions of MuJoCo warn of Gymnasium's models
    names = tuple(str(path.relative_to(folder)) for path in left if path.name not in others)
    return Outcome(tuple(options), code, output.read_text(errors="replace"), seconds, names)


def run_script(
    path: Path, options: Sequence[object], output: Path, limit: float = 300.0, until: Callable[[], bool] | None = None
) -> tuple[int, float]:
    """Runs a script with these options; see :func:`run_forked`."""
    return run_forked(partial(_script, str(path), *map(str, options)), output, limit, until=until)


def run_forked(
    function: Callable[[], None],
    output: Path,
    limit: float,
    method: str = "forkserver",
    until: Callable[[], bool] | None = None,
) -> tuple[int, float]:
    """Calls a function in another process, with a session, a folder and an output of its own.

    Args:
        function (Callable): the function, which must pickle unless the method is ``fork``.
        output (Path): the file of both streams; its folder is the working directory.
        limit (float): the seconds after which the whole session is killed.
        method (str, optional): ``forkserver``, or ``fork`` for a process that holds what this one holds.
        until (Callable, optional): says when the whole session is killed before that.

    Returns:
        tuple of int and float: the exit code, or minus the signal; and the seconds.
    """
    start = time.monotonic()
    process = multiprocessing.get_context(method).Process(target=_redirected, args=(function, output))
    process.start()
    while until is not None and process.is_alive() and time.monotonic() < start + limit and not until():
        process.join(0.005)
    process.join(0 if until is not None else limit)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode, time.monotonic() - start


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
