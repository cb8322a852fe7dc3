# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Thousands of random examples of the properties, hundreds of invalid command lines and malformed files.

    python benchmarks/fuzz.py                       # all of it: about an hour on one core
    python benchmarks/fuzz.py --examples 0 --files 0 # the command lines only; what was counted before stays

atheris is not used: it guides by the coverage of Python code, and what parses these files (HDF5, zip, JSON, YAML,
ONNX) is in C. JSON that lies inside of an archive with the right checksums gets farther than its mutations would.

Writes the counts, and every failure with what reproduces it, to ``benchmarks/results/fuzz.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fuzz_command_lines import command_lines, foreign_files, full_command, run
from provenance import RESULTS, ROOT, commit, machine, versions
from reliability import write_report

PATH = RESULTS / "fuzz.json"


class Count:
    """A plugin of pytest that adds up Hypothesis' examples."""

    def __init__(self) -> None:
        self.examples = 0
        self.properties = 0
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        self.properties += 1
        if report.failed:
            self.failures.append(f"{report.nodeid}: {str(report.longrepr)[-1000:]}")

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        numbers = re.findall(r"(\d+) passing, (\d+) failing", getattr(item, "hypothesis_statistics", ""))
        self.examples += sum(int(number) for pair in numbers for number in pair)


def fuzz_properties(examples: int) -> dict[str, Any]:
    """The suite's properties, each with so many random examples."""
    os.environ["GENPO_FUZZ_EXAMPLES"] = str(examples)
    count = Count()
    pytest.main(["-q", "-n", "0", "--tb=short", "-W", "ignore", str(ROOT / "tests" / "properties")], plugins=[count])
    if not count.examples:
        raise RuntimeError("Hypothesis told of no example: its statistics have another form than Count reads.")
    return {"properties": count.properties, "examples": count.examples, "failures": count.failures}


def fuzz_command_lines(number: int, seed: int, folder: Path) -> dict[str, Any]:
    """Invalid command lines, each of which has to end with a message."""
    files = foreign_files(folder / "files")
    failures, seconds = [], []
    for index, line in enumerate(command_lines(number, files, seed)):
        outcome = run(full_command(line), folder / str(index))
        seconds.append(outcome.seconds)
        if outcome.fault is not None:
            failures.append(f"{' '.join(line)}: {outcome.fault}: {outcome.output.strip()[-300:]}")
            print(failures[-1], flush=True)
        shutil.rmtree(folder / str(index))
    return {"command lines": number, "longest, s": round(max(seconds), 1), "failures": failures}


def fuzz_files(number: int, seed: int, folder: Path) -> dict[str, Any]:
    """Malformed files, so many for each reader, and those made to harm."""
    from fuzz_files import KINDS, Samples, malformed, read
    from fuzz_hostile import hostile

    samples, marker, rng = Samples(folder / "good"), folder / "marker", random.Random(seed)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    failures = []

    def judge(kind: str, name: str, result: str, must_be_refused: bool) -> None:
        outcome = result.partition(":")[0]
        counts[kind][outcome] += 1
        if marker.exists() or outcome == "fault" or (must_be_refused and outcome != "refused"):
            failures.append(f"{kind} {name}: {'CODE RAN: ' * marker.exists()}{result[:300]}")
            print(failures[-1], flush=True)
            marker.unlink(missing_ok=True)

    number_hostile = 0
    for kind, name, path in hostile(samples, folder / "hostile", marker):
        number_hostile += 1
        judge(kind, name, read(samples, kind, path, folder / "output"), must_be_refused=True)
    for kind in KINDS:
        for index in range(number):
            place = folder / f"{kind}{index}"
            place.mkdir()
            judge(
                kind, f"seed {seed}, {index}", read(samples, kind, malformed(samples, kind, rng, place), place), False
            )
            shutil.rmtree(place)
    total = sum(sum(count.values()) for count in counts.values())
    return {
        "files": total,
        "made to harm": number_hostile,
        "outcomes": {kind: dict(count) for kind, count in counts.items()},
        "failures": failures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=500, help="of each property; 0 for none")
    parser.add_argument("--command-lines", type=int, default=300, help="0 for none")
    parser.add_argument("--files", type=int, default=500, help="of each kind; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = json.loads(PATH.read_text()) if PATH.exists() else {}
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    parts = {
        "command lines": (options.command_lines, lambda n: fuzz_command_lines(n, options.seed, folder / "lines")),
        "files": (options.files, lambda n: fuzz_files(n, options.seed, folder / "samples")),
        "properties": (options.examples, fuzz_properties),
    }
    try:
        for name, (number, fuzz) in parts.items():
            if number == 0:
                continue
            start = time.monotonic()
            result = fuzz(number)
            origin = {"seconds": round(time.monotonic() - start), "seed": options.seed, "commit": commit()}
            results[name] = result | origin | {"machine": machine(), "versions": versions()}
            PATH.write_text(json.dumps(results, indent=2) + "\n")
            write_report()
            print(f"{name}: {len(result['failures'])} failures")
    finally:
        shutil.rmtree(folder)
    sys.exit(1 if any(result["failures"] for result in results.values()) else 0)


if __name__ == "__main__":
    main()
