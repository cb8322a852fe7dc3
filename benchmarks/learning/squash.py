# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers whether a flow learns better with actions that a tanh bounds, or that the environment clips.

    python -m benchmarks.learning.squash              # 18 runs of four to eight minutes on one core
    python -m benchmarks.learning.squash --report

Finished runs are lines of ``squash.jsonl`` in ``benchmarks/results`` and are not run again; ``squash.md`` and
``squash.png`` lie beside it.
"""

from __future__ import annotations

from benchmarks._lib.origin import RESULTS
from benchmarks._lib.report import origins, parser, save
from benchmarks._lib.runs import by_task_and_policy, draw, evaluation_cells, execute_asked

POLICIES = {"clipped": ("clipped by the environment", ()), "squashed": ("tanh", ("policy.squash=true",))}
TASKS = ("half_cheetah", "hopper", "walker2d")


def main() -> None:
    records = execute_asked("squash", POLICIES, parser(__doc__), TASKS, [1, 2, 3])
    frames = max(record["frames"] for record in records)
    lines = [
        "# Actions bounded by a tanh, or clipped by the environment",
        "",
        f"GenPO++ after {frames:,} frames: median return (each seed), mean of 10 evaluation episodes.",
        "",
        "| task | actions | zero noise | random noise |",
        "|---|---|---:|---:|",
    ]
    for task, policy, chosen in by_task_and_policy(records, POLICIES):
        lines.append(f"| {task} | {POLICIES[policy][0]} | {' | '.join(evaluation_cells(chosen))} |")
    draw(records, POLICIES, RESULTS / "squash.png", unit=1e3, xlabel="thousand frames", ylabel="training return")
    save(RESULTS / "squash.md", [*lines, *origins(records)])


if __name__ == "__main__":
    main()
