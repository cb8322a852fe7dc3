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

from benchmarks._lib.origin import RESULTS
from benchmarks._lib.report import origins, parser, save
from benchmarks._lib.runs import execute_asked
from benchmarks.learning.tuning import FRAMES, SEEDS, TASKS, Tuning, both_ends, name

METHOD = "reversible_flow"
VARIANTS = {
    "steps_2": ("M = 2", ("solver.num_steps=2",)),
    "steps_3": ("M = 3", ("solver.num_steps=3",)),
    "sigma_0.9": ("sigma 0.9", ("solver.sigma=0.9",)),
    "wider_head": ("a head of two layers", ("policy.head_sizes=[64,64]",)),
    "no_head": ("the whole network in every step", ("policy.head_sizes=[]",)),
    "pair_entropy": ("a bonus on the entropy of the pair", ("loss.entropy_coeff=0.002",)),
    "floor": ("deviation of actions not below 0.2", ("policy.min_std=0.2",)),
    "ewma": ("ratio to an average of past policies", ("loss.proximal_decay=0.9",)),
    "plain_advantage": ("advantages as they are", ("loss.normalize_advantage=false",)),
}
"""The label of each variant, and what it changes."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.parse_known_args()  # --help comes before what is missing
    tuning = Tuning()
    chosen = tuning.chosen(METHOD)
    if chosen is None:
        raise SystemExit("The flow is not tuned yet: python -m benchmarks.learning.tuning first.")
    setting, options = chosen
    known = {key: (label, (f"policy={METHOD}", *options, *extra)) for key, (label, extra) in VARIANTS.items()}
    arguments.add_argument("--policies", nargs="+", default=list(known), choices=known, metavar="VARIANT")
    records = execute_asked("variants", known, arguments, TASKS, SEEDS, frames=FRAMES)
    for record in records:
        tuning.ends[name(METHOD, record["policy"]), record["task"], record["seed"]] = both_ends(record)
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
    for key, label in [(setting, "the tuned setting"), *((key, label) for key, (label, _) in VARIANTS.items())]:
        if tuning.is_finished(METHOD, key, SEEDS):
            runs = [[tuning.ends[name(METHOD, key), task, seed] for seed in SEEDS] for task in TASKS]
            medians = [f"{statistics.median(map(statistics.fmean, ends)):.0f}" for ends in runs]
            score = tuning.score(METHOD, key, SEEDS)
            rows.append((score, f"| {label} | {' | '.join(medians)} | {score:.2f} |"))
    lines += [row for _, row in sorted(rows, reverse=True)]
    save(RESULTS / "variants.md", [*lines, *origins(records)])


if __name__ == "__main__":
    main()
