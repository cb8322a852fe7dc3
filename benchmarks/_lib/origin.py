# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Says where a result comes from: its commit, the versions of the packages and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["RESULTS", "ROOT", "command", "commit", "machine", "origin", "record_origin", "versions"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "torchrl", "tensordict", "gymnasium", "mujoco", "numpy")


def commit() -> str:
    """Returns the short hash of the checked-out commit, marked as dirty if files other than results differ from it.

    The environment variable ``GENPO_COMMIT`` names the commit of a copy that has no history.
    """
    if "GENPO_COMMIT" in os.environ:
        return os.environ["GENPO_COMMIT"]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        is_dirty = git("diff", "HEAD", "--name-only", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if is_dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> str:
    """Returns the installed versions of the packages that shape a result."""
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def machine() -> str:
    """Returns the processor's model, the number of cores and, where there is one, the GPU."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line for line in cpuinfo.read_text().splitlines() if line.startswith("model name"))
        model = next(lines, f": {model}").split(":", 1)[1].strip()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores{gpu}"


def record_origin() -> dict[str, str]:
    """Returns commit, versions and machine as fields of a line of results."""
    return {"commit": commit(), "versions": versions(), "machine": machine()}


def command(*options: str) -> str:
    """Returns the command line of the running script, with its own options unless others are given."""
    spec = sys.modules["__main__"].__spec__
    return " ".join(["python", *(("-m", spec.name) if spec else sys.argv[:1]), *(options or sys.argv[1:])])


def origin() -> list[str]:
    """Returns the last lines of a report: the command that wrote it, commit, versions and machine."""
    return [
        "",
        f"Command: `{command()}`. Commit: {commit()}.  ",
        f"Versions: {versions()}.  ",
        f"Machine: {machine()}.",
    ]
