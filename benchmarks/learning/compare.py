# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers whether a change of the library keeps what is learned: the runs of two results files, side by side.

    python -m benchmarks.learning.compare normalizer_before normalizer_after

The files are ``benchmarks/results/<name>.jsonl``, as ``curves.py --name <name>`` writes them. The table is
``<second name>.md``, of the tasks, policies and seeds that both have.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

from benchmarks._lib.origin import RESULTS
from benchmarks._lib.report import origins, parser, save, spread
from benchmarks._lib.runs import last, read_results
from benchmarks.learning.curves import POLICIES, TASKS

Key = tuple[str, str, int]


def read(name: str) -> dict[Key, dict[str, Any]]:
    """Returns the records of a results file by task, policy and seed."""
    return {(record["task"], record["policy"], record["seed"]): record for record in read_results(name).values()}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("before")
    arguments.add_argument("after")
    options = arguments.parse_args()
    before, after = read(options.before), read(options.after)
    both = sorted(
        before.keys() & after.keys(), key=lambda key: (TASKS.index(key[0]), list(POLICIES).index(key[1]), key[2])
    )
    if not both:
        sys.exit(f"{options.before}.jsonl and {options.after}.jsonl have no run in common.")
    frames = {record["frames"] for key in both for record in (before[key], after[key])}
    lines = [
        f"# Learning before and after: {options.before}, {options.after}",
        "",
        f"Returns after {', '.join(f'{n:,}' for n in sorted(frames))} frames: median of the seeds (each in brackets), "
        "mean of 10 evaluation episodes. After a change a seed takes another random path, so that its two numbers are "
        "two draws of one law where the change does nothing; seeds of one setting differ by factors.",
        "",
        "| task | policy | noise | before | after |",
        "|---|---|---|---:|---:|",
    ]
    ratios: dict[str, list[float]] = {}
    for task, policy in dict.fromkeys(key[:2] for key in both):
        keys = [key for key in both if key[:2] == (task, policy)]
        for noise in ("zero", "random"):
            column = f"eval/{noise}_noise/return"
            old, new = ([last(records[key], column) for key in keys] for records in (before, after))
            lines.append(f"| {task} | {POLICIES[policy][0]} | {noise} | {spread(old, 0)} | {spread(new, 0)} |")
            ratios.setdefault(policy, []).append(statistics.mean(new) / statistics.mean(old))
    means = ", ".join(f"{POLICIES[policy][0]} {statistics.mean(values):.2f}" for policy, values in ratios.items())
    lines += ["", f"Mean return after over before, mean of the rows: {means}."]
    save(RESULTS / f"{options.after}.md", [*lines, *origins([*before.values(), *after.values()])])


if __name__ == "__main__":
    main()
