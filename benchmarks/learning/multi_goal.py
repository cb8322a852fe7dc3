# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers whether a policy keeps several equally good goals, which its return does not ask for.

    python -m benchmarks.learning.multi_goal              # nine runs of about a minute on one core
    python -m benchmarks.learning.multi_goal --report

Finished runs are lines of ``multi_goal.jsonl`` in ``benchmarks/results`` and are not run again; ``multi_goal.md`` lies
beside it.
"""

from __future__ import annotations

from benchmarks._lib.origin import RESULTS
from benchmarks._lib.report import origins, parser, save, spread
from benchmarks._lib.runs import by_task_and_policy, evaluation_cells, execute_asked, last

POLICIES = {
    "gaussian": ("Gaussian", ("policy=gaussian",)),
    "gaussian_entropy": ("Gaussian, bonus 0.1 on its entropy", ("policy=gaussian", "loss.entropy_coeff=0.1")),
    "flow": ("flow", ()),
}
"""The label of each policy and its options of the entry script."""


def main() -> None:
    records = execute_asked("multi_goal", POLICIES, parser(__doc__), ["multi_goal"], [1, 2, 3], frames=150_000)
    lines = [
        "# Several equally good goals",
        "",
        f"MultiGoal after {records[0]['frames']:,} frames: median return (each seed) of the evaluations, and the "
        "entropy in nats of the goals that random noise reaches, whatever the first position: 0 of one, log 4 = 1.39 "
        "of all four alike.",
        "",
        "| policy | zero noise | random noise | entropy of the goals |",
        "|---|---:|---:|---:|",
    ]
    for _, policy, chosen in by_task_and_policy(records, POLICIES):
        entropies = [last(record, "eval/random_noise/goal_entropy") for record in chosen]
        cells = [*evaluation_cells(chosen), spread(entropies, 2)]
        lines.append(f"| {POLICIES[policy][0]} | {' | '.join(cells)} |")
    save(RESULTS / "multi_goal.md", [*lines, *origins(records)])


if __name__ == "__main__":
    main()
