# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The report on reliability, from what crash.py, fuzz.py, soak.py and scaling.py have measured.

python benchmarks/reliability.py     # writes reliability.md again from the parts that are there
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from provenance import RESULTS, commit, machine, versions


def save_part(name: str, data: dict[str, Any]) -> None:
    """Saves what a script has measured, with where it comes from, and writes the report again."""
    origin = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(data | origin, indent=1) + "\n")
    write_report()


def crash_lines(data: dict[str, Any]) -> list[str]:
    return [
        f"Runs of {', '.join(data['tasks'])} that met a fault, were resumed, and were compared with an undisturbed run "
        "to the last bit. Lost: could not be resumed. Wrong: another result.",
        "",
        "| fault | injected | lost | wrong | |",
        "|---|---:|---:|---:|---|",
        *(f"| {f['fault']} | {f['injected']} | {f['lost']} | {f['wrong']} | {f['note']} |" for f in data["faults"]),
    ]


def fuzz_lines(data: dict[str, Any]) -> list[str]:
    """``fuzz.py`` measures its parts one by one, each with where it comes from."""
    lines = ["| what | tried | failed | seed | commit |", "|---|---:|---:|---:|---|"]
    for name, part in data.items():
        tried = part["examples"] if name == "properties" else part[name]
        lines.append(f"| {name} | {tried:,} | {len(part['failures'])} | {part['seed']} | {part['commit']} |")
    harmful, refused = data["files"]["made to harm"], sum(o["refused"] for o in data["files"]["outcomes"].values())
    return [
        f"Random examples of {data['properties']['properties']} properties; command lines that are wrong; checkpoints, "
        f"exported policies, configurations, metrics and HDF5 files that are malformed ({refused:,} refused, the "
        f"others' damage is harmless), {harmful} of them made to run code or to fill the memory. Failed: a bare "
        "traceback, a hang, a folder left behind, code that ran.",
        "",
        *lines,
    ]


def soak_lines(data: dict[str, Any]) -> list[str]:
    return [
        f"{data['frames']:,} environment steps of `{data['options']}` in {data['hours']:.2f} h.",
        "",
        "| | second tenth | last tenth | change |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {before:.5g} | {after:.5g} | {100 * (after / before - 1):+.2f} % |"
            for name, (before, after) in data["quantities"].items()
        ),
    ]


PARTS = {
    "crash": ("Crashes", crash_lines),
    "fuzz": ("Fuzzing", fuzz_lines),
    "soak": ("Soak", soak_lines),
    "scaling": ("Scale", lambda data: data["lines"]),
}


def write_report() -> None:
    """Writes ``reliability.md``."""
    lines = ["# Reliability"]
    for name, (title, write) in PARTS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            data = json.loads(path.read_text())
            lines += ["", f"## {title}", "", *write(data), ""]
            origin = data["files"] | {"command": "python benchmarks/fuzz.py"} if name == "fuzz" else data
            lines += [f"Command: `{origin['command']}`. Commit: {origin['commit']}.  "]
            lines += [f"Versions: {origin['versions']}.  ", f"Machine: {origin['machine']}."]
    (RESULTS / "reliability.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_report()
