# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers whether a change of the library keeps what is learned: the runs of two results files, side by side.

    python -m benchmarks.learning.compare learning normalizer_after

The files are ``benchmarks/results/<name>.jsonl``, as ``curves.py --name <name>`` writes them. The table is
``<second name>.md``, of what both have run, whatever the seeds.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import replace
from typing import Any

from benchmarks._lib.origin import RESULTS
from benchmarks._lib.report import origins, parser, save, spread
from benchmarks._lib.runs import Run, last, read_results
from benchmarks.learning.curves import POLICIES


def read(name: str) -> dict[Run, list[dict[str, Any]]]:
    """Returns the records of a results file by what was run, its seeds together."""
    found = defaultdict(list)
    for run, record in read_results(name).items():
        found[replace(run, name="", seed=0)].append(record)
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("before")
    arguments.add_argument("after")
    options = arguments.parse_args()
    before, after = read(options.before), read(options.after)
    both = sorted(before.keys() & after.keys(), key=lambda run: (run.task, run.policy))
    if not both:
        sys.exit(f"{options.before}.jsonl and {options.after}.jsonl have no run in common.")
    frames = ", ".join(f"{n:,}" for n in sorted({run.frames for run in both}))
    lines = [
        f"# Learning before and after: {options.before}, {options.after}",
        "",
        f"Returns after {frames} frames: median (each seed), mean of 10 evaluation episodes. After a change a seed "
        "takes another random path, so that where the change does nothing both columns are draws of one law.",
        "",
        "| task | policy | noise | before | after |",
        "|---|---|---|---:|---:|",
    ]
    better = defaultdict(list)
    for run in both:
        for noise in ("zero", "random"):
            old, new = (
                [last(record, f"eval/{noise}_noise/return") for record in records[run]] for records in (before, after)
            )
            lines.append(f"| {run.task} | {POLICIES[run.policy][0]} | {noise} | {spread(old, 0)} | {spread(new, 0)} |")
            better[run.policy].append(sum(b > a for a in old for b in new) / (len(old) * len(new)))
    found = ", ".join(f"{POLICIES[policy][0]} {sum(values) / len(values):.2f}" for policy, values in better.items())
    lines += ["", f"Probability that a run after is better than one before, mean of the rows: {found}."]
    records = [record for run in both for record in (*before[run], *after[run])]
    save(RESULTS / f"{options.after}.md", [*lines, *origins(records)])


if __name__ == "__main__":
    main()
