# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What every script does with its command line and its results."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks._lib.origin import command

__all__ = ["append_line", "origins", "parser", "pyplot", "read_lines", "save", "spread"]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser of options that explains the script by its docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def pyplot() -> ModuleType:
    """Returns Matplotlib's interface, set to draw into files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(path: Path, lines: Sequence[str]) -> None:
    """Writes a report and prints it."""
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a ``.jsonl`` file, none if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Adds a record to a ``.jsonl`` file."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Formats the median of some values, with each value in brackets."""
    return f"{statistics.median(values):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def origins(records: Sequence[dict[str, Any]], *options: str) -> list[str]:
    """Returns the last lines of a report on many runs: the command that makes them, and where they come from."""
    made_by = command(*options)
    found = {key: "; ".join(sorted({record[key] for record in records})) for key in ("commit", "versions", "machine")}
    return [
        "",
        f"Command: `{made_by}`; commit, versions and machine of each run are in the `.jsonl` beside this file.  ",
        f"Commits: {found['commit']}.  ",
        f"Versions: {found['versions']}.  ",
        f"Machines: {found['machine']}.",
    ]
