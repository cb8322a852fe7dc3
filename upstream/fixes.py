# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Applies our fixes for TorchRL to a copy of it, and shows that each is needed and works.

    python upstream/fixes.py FOLDER --test [--clone RL] [--record NAME]

FOLDER is new: the installed TorchRL is copied into it, and the functions of every ``upstream/fixes/*/fix.py`` take the
place of TorchRL's. The test of each fix has to fail with the TorchRL that is installed, and to pass with that of the
folder. With a clone of https://github.com/pytorch/rl, TorchRL's own tests of what is changed run too, with both.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

from layout import copy_torchrl  # beside this file

ROOT = Path(__file__).resolve().parents[1]
FIXES = sorted((ROOT / "upstream" / "fixes").glob("*/fix.py"))
NEIGHBOURS = {
    "kl_adaptive_lr": ("test_trainer.py", "-k", "scheduler or Scheduler or LR"),
    "vecnorm_variance": ("transforms/test_normalization.py", "-k", "VecNorm or vecnorm"),
    "vtrace_stored_action": ("objectives/test_values.py", "-k", "vtrace or VTrace"),
}
"""TorchRL's own tests of what a fix changes."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def apply(fix: Path, folder: Path) -> int:
    """Puts the functions and methods of a fix into a copy of TorchRL; returns the number of its lines.

    Raises:
        ValueError: if TorchRL has no class or function of that name any more.
    """
    text = fix.read_text()
    lines, module = text.splitlines(), ast.parse(text)
    (target,) = re.findall(r'^TARGET = "(.+)"$', text, re.M)
    path, count = folder / target, 0
    for node in module.body:
        owner, members = (node.name, node.body) if isinstance(node, ast.ClassDef) else (None, [node])
        for member in members:
            if isinstance(member, Function):
                new = lines[_first_line(member) - 1 : member.end_lineno]
                path.write_text(_replaced(path.read_text(), owner, member.name, new))
                count += len(new)
    return count


def _replaced(text: str, owner: str | None, name: str, new: list[str]) -> str:
    """The text of a module with a new function in place of the last one of this name, or as a new last method."""
    lines, parent = text.splitlines(), ast.parse(text)
    if owner is not None:
        classes = [node for node in ast.walk(parent) if isinstance(node, ast.ClassDef) and node.name == owner]
        if not classes:
            raise ValueError(f"TorchRL has no class {owner} any more, of which {name} is replaced.")
        parent = classes[0]  # type: ignore[assignment]
    found = [node for node in parent.body if isinstance(node, Function) and node.name == name]
    if found:
        first, last = _first_line(found[-1]) - 1, found[-1].end_lineno
    elif owner is None:
        raise ValueError(f"TorchRL has no function {name} any more.")
    else:
        first = last = parent.body[-1].end_lineno  # type: ignore[assignment]
        new = ["", *new]
    return "\n".join([*lines[:first], *new, *lines[last:]]) + "\n"


def _first_line(function: Function) -> int:
    return min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])


def outcome(tests: tuple[str, ...], folder: Path | None, cwd: Path) -> str:
    """Runs tests with the installed TorchRL, or with that of a folder, and returns pytest's last line."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = "" if folder is None else str(folder)
    environment["PYTHONSAFEPATH"] = "1"  # not the TorchRL of the working folder
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests], cwd=cwd, env=environment, capture_output=True, text=True
    )
    found = re.findall(r"(?:\d+ (?:passed|failed|error|errors)(?:, )?)+", result.stdout)
    return (found[-1].rstrip(", ") if found else result.stdout[-300:] + result.stderr[-300:]) or "nothing ran"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--test", action="store_true", help="run the test of each fix without and with it")
    parser.add_argument("--clone", type=Path, help="a clone of TorchRL, whose own tests of what is changed run too")
    parser.add_argument("--record", help="write the outcome to benchmarks/results/<name>.md")
    options = parser.parse_args()
    folder = options.folder.resolve()
    copy_torchrl(folder)
    sizes = {fix.parent.name: apply(fix, folder) for fix in FIXES}
    if not options.test:
        return
    found = {name: importlib.metadata.version(name) for name in ("torchrl", "torchrl-nightly") if _is_there(name)}
    version = ", ".join(f"{name} {number}" for name, number in found.items())
    rows, failures = [], []
    for name, size in sizes.items():
        tests = (str(ROOT / "upstream" / "fixes" / name / "test_fix.py"),)
        without, fixed = (outcome(tests, where, ROOT) for where in (None, folder))
        if "failed" not in without or "failed" in fixed or "passed" not in fixed:
            failures.append(f"{name}: {without} without the fix, {fixed} with it.")
        own = ["", ""]
        if options.clone is not None and name in NEIGHBOURS:
            own = [outcome(NEIGHBOURS[name], where, options.clone.resolve() / "test") for where in (None, folder)]
        rows.append(f"| `{name}` | {size} | {without} | {fixed} | {own[0]} | {own[1]} |")
        print(rows[-1], flush=True)
    lines = [
        f"# Fixes for TorchRL: {version}",
        "",
        "| fix | lines | its test without it | with it | TorchRL's own tests without it | with it |",
        "|---|---:|---|---|---|---|",
        *rows,
    ]
    if options.record:
        sys.path.append(str(ROOT))
        from benchmarks._lib.origin import RESULTS, origin

        sys.argv[1:] = ["FOLDER", "--test", *(["--clone", "RL"] if options.clone else []), "--record", options.record]
        (RESULTS / f"{options.record}.md").write_text("\n".join([*lines, *origin()]) + "\n")
    if failures:
        raise SystemExit("\n".join(failures))


def _is_there(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
