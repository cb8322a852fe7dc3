# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Runs the whole core suite in several installations and records what passed.

    python -m benchmarks.installations ~/py310/bin/python ~/newest/bin/python

Each argument is the interpreter of a virtual environment in which README's test command was run, or another
installation (``.ci/nightly`` makes those of TorchRL's nightly and of the newest version of everything). The suite tests
this source tree, whichever tree was installed there. Writes ``installations.md`` to ``benchmarks/results``, and fails
if a suite does.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks._lib.origin import RESULTS, ROOT, commit, machine

PACKAGES = (
    *("torch", "torchrl", "torchrl-nightly", "tensordict", "tensordict-nightly"),
    *("numpy", "gymnasium", "mujoco", "hydra-core", "pydantic", "onnxruntime"),
)
VERSIONS = f"""
import platform
from importlib.metadata import PackageNotFoundError, version
found = []
for name in {PACKAGES}:
    try:
        found.append(f"{{name}} {{version(name)}}")
    except PackageNotFoundError:
        pass
print(platform.python_version(), *found, sep="|")
"""
COMMAND = ("-m", "pytest", "-p", "no:cacheprovider")
OUTCOMES = ("passed", "skipped", "failed", "error")


def run_suite(python: Path) -> tuple[list[str], bool]:
    """Runs the suite by one interpreter; returns a row of the table and whether everything passed."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    env["PATH"] = f"{python.parent}{os.pathsep}{env['PATH']}"  # commands that the tests start
    found = subprocess.run([python, "-c", VERSIONS], env=env, capture_output=True, text=True, check=True)
    version, *packages = found.stdout.strip().split("|")
    begin = time.monotonic()
    result = subprocess.run([python, *COMMAND], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    minutes = (time.monotonic() - begin) / 60
    summary = result.stdout.strip().splitlines()[-1] if result.stdout.strip() else ""
    counts = dict.fromkeys(OUTCOMES, 0)
    for number, outcome in re.findall(r"(\d+) (passed|skipped|failed|error)", summary):
        counts[outcome] = int(number)
    if result.returncode:
        print(result.stdout)
    row = [version, *(str(counts[outcome]) for outcome in OUTCOMES), f"{minutes:.0f}", ", ".join(packages)]
    return row, result.returncode == 0 and counts["passed"] > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="+", type=Path, help="interpreters of virtual environments")
    pythons = [python.absolute() for python in parser.parse_args().pythons]  # a link to Python is its environment
    rows, passed = zip(*map(run_suite, pythons), strict=True)
    header = ["Python", *OUTCOMES, "minutes", "packages"]
    lines = [
        "# The core suite in several installations",
        "",
        "`.ci/run` runs README's own installation, extras, tests that take long and the simulators'; these are skipped "
        "here.",
        "",
        f"| {' | '.join(header)} |",
        f"|{'|'.join(['---', *['---:'] * (len(OUTCOMES) + 1), '---'])}|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"Command: `python {' '.join(COMMAND)}` by each, from `python -m benchmarks.installations`. "
        f"Commit: {commit()}. Machine: {machine()}.",
    ]
    (RESULTS / "installations.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
