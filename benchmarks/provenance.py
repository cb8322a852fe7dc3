# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Where a result comes from: commit, versions, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "torchrl", "tensordict", "gymnasium", "mujoco", "numpy")


def commit() -> str:
    """The short hash of the checked-out commit, marked if files were changed since; results do not count.

    A copy without its history is told by ``GENPO_COMMIT``.
    """
    if "GENPO_COMMIT" in os.environ:
        return os.environ["GENPO_COMMIT"]

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        is_dirty = git("diff", "HEAD", "--name-only", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if is_dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> str:
    """The installed versions of the packages that shape a result."""
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def origin(command: str) -> list[str]:
    """The last lines of a report: the command that wrote it, commit, versions and machine."""
    return [
        "",
        f"Command: `{command}`. Commit: {commit()}.  ",
        f"Versions: {versions()}.  ",
        f"Machine: {machine()}.",
    ]


def machine() -> str:
    """Processor model, number of cores and, where there is one, the GPU."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line for line in cpuinfo.read_text().splitlines() if line.startswith("model name"))
        model = next(lines, f": {model}").split(":", 1)[1].strip()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores{gpu}"
