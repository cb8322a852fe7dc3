# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers what else changes how a flow learns: its tuned setting with one thing changed, on the seeds of the tuning.

    python -m benchmarks.learning.variants              # nine runs of about a minute for each of the variants
    python -m benchmarks.learning.variants --report

A variant that is better here is a candidate for the default; it is compared with a Gaussian on other seeds, by
``curves.py``. Finished runs are lines of ``variants.jsonl`` in ``benchmarks/results`` and are not run again;
``variants.md`` lies beside it. The tuned setting's own runs are those of ``tuning.jsonl``.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from benchmarks._lib.origin import RESULTS
from benchmarks._lib.report import origins, parser, save
from benchmarks._lib.runs import execute_asked, last
from benchmarks.learning.tuning import BASE, FRAMES, NOISES, SEEDS, TASKS, Tuning, name

VARIANTS = {
    "action_ratio": ("ratio of the action alone", ("loss.ratio=action",)),
    "steps_2": ("M = 2", ("solver.num_steps=2",)),
    "steps_3": ("M = 3", ("solver.num_steps=3",)),
    "sigma_0.9": ("sigma 0.9", ("solver.sigma=0.9",)),
    "wider_head": ("a head of two layers", ("policy.head_sizes=[64,64]",)),
    "no_head": ("the whole network in every step", ("policy.head_sizes=[]",)),
    "pair_entropy": ("a bonus on the entropy of the pair", ("loss.entropy_coeff=0.002",)),
    "action_entropy": ("a bonus on the entropy of the action", ("loss.action_entropy_coeff=0.002",)),
    "floor": ("deviation of actions not below 0.2", ("policy.min_std=0.2",)),
    "ewma": ("ratio to an average of past policies", ("loss.proximal_decay=0.9",)),
    "plain_advantage": ("advantages as they are", ("loss.normalize_advantage=false",)),
}
"""The label of each variant, and what it changes."""


def main() -> None:
    tuning = Tuning()
    chosen = tuning.chosen("reversible_flow")
    if chosen is None:
        raise SystemExit("The flow is not tuned yet: python -m benchmarks.learning.tuning first.")
    setting, options = chosen
    known = {key: (label, ("policy=reversible_flow", *options, *extra)) for key, (label, extra) in VARIANTS.items()}
    records = execute_asked("variants", known, parser(__doc__), TASKS, SEEDS, frames=FRAMES)
    ends = {
        (record["policy"], record["task"], record["seed"]): [last(record, f"eval/{n}_noise/return") for n in NOISES]
        for record in records
    }
    for task in TASKS:
        for seed in SEEDS:
            ends["tuned", task, seed] = tuning.ends[name("reversible_flow", setting), task, seed]
    gaussian = {task: _mean(tuning.ends[name("gaussian", BASE), task, seed] for seed in SEEDS) for task in TASKS}
    lines = [
        "# Variants of the tuned flow",
        "",
        f"{', '.join(TASKS)}, {FRAMES:,} frames, seeds {SEEDS[0]} to {SEEDS[-1]}: median return of both evaluations, "
        "and the score of tuning.md, the mean of the tasks as ratios to the Gaussian in the shared setting. "
        f"The tuned setting: `{' '.join(options)}`.",
        "",
        f"| variant | {' | '.join(TASKS)} | score |",
        f"|---|{'---:|' * (len(TASKS) + 1)}",
    ]
    rows = []
    for variant, label in [("tuned", "the tuned setting"), *((key, label) for key, (label, _) in VARIANTS.items())]:
        if all((variant, task, seed) in ends for task in TASKS for seed in SEEDS):
            means = {task: [statistics.fmean(ends[variant, task, seed]) for seed in SEEDS] for task in TASKS}
            score = statistics.fmean(statistics.fmean(means[task]) / gaussian[task] for task in TASKS)
            cells = [f"{statistics.median(means[task]):.0f}" for task in TASKS]
            rows.append((score, f"| {label} | {' | '.join(cells)} | {score:.2f} |"))
    lines += [row for _, row in sorted(rows, reverse=True)]
    save(RESULTS / "variants.md", [*lines, *origins(records)])


def _mean(ends: Iterable[Sequence[float]]) -> float:
    return statistics.fmean(value for pair in ends for value in pair)


if __name__ == "__main__":
    main()
