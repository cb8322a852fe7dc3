# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers whether a flow learns better with actions that a tanh bounds, or that the environment clips.

    python -m benchmarks.learning.squash              # 18 runs of four to eight minutes on one core
    python -m benchmarks.learning.squash --report

Finished runs are lines of ``squash.jsonl`` in ``benchmarks/results`` and are not run again; ``squash.md`` and
``squash.png`` lie beside it.
"""

from __future__ import annotations

import os
import sys

from benchmarks._lib.origin import RESULTS
from benchmarks._lib.report import origins, parser, save, spread
from benchmarks._lib.runs import Run, draw, execute_all, last, read_results

POLICIES = {"clipped": ("clipped by the environment", ()), "squashed": ("tanh", ("policy.squash=true",))}
TASKS = ("half_cheetah", "hopper", "walker2d")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--tasks", nargs="+", default=TASKS, help=f"default: {' '.join(TASKS)}")
    arguments.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    arguments.add_argument("--frames", type=int, default=200_000)
    arguments.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    arguments.add_argument("--report", action="store_true", help="only write the report of the finished runs")
    options = arguments.parse_args()

    if not options.report:
        runs = [
            Run("squash", task, policy, choices, seed, options.frames)
            for seed in options.seeds
            for task in options.tasks
            for policy, (_, choices) in POLICIES.items()
        ]
        execute_all(runs, options.workers)
    records = sorted(read_results("squash").values(), key=lambda record: record["seed"])
    if not records:
        sys.exit("No run is finished; start some without --report.")
    frames = max(record["frames"] for record in records)
    lines = [
        "# Actions bounded by a tanh, or clipped by the environment",
        "",
        f"GenPO++ after {frames:,} frames: median return (each seed), mean of 10 evaluation episodes.",
        "",
        "| task | actions | zero noise | random noise |",
        "|---|---|---:|---:|",
    ]
    for task in dict.fromkeys(record["task"] for record in records):
        for policy, (label, _) in POLICIES.items():
            chosen = [record for record in records if (record["task"], record["policy"]) == (task, policy)]
            returns = [[last(one, f"eval/{noise}_noise/return") for one in chosen] for noise in ("zero", "random")]
            if chosen:
                lines.append(f"| {task} | {label} | {spread(returns[0], 0)} | {spread(returns[1], 0)} |")
    draw(records, POLICIES, RESULTS / "squash.png", unit=1e3, xlabel="thousand frames", ylabel="training return")
    save(RESULTS / "squash.md", [*lines, *origins(records)])


if __name__ == "__main__":
    main()
