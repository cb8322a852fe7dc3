# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers what a choice of the flow changes in what is learned: its tuned setting, with one thing changed at a time.

    python -m benchmarks.learning.ablations               # 140 runs of two to four minutes on one core
    python -m benchmarks.learning.ablations --policies base sigma_0.5 sigma_1 --seeds 1 2 3
    python -m benchmarks.learning.ablations --report

The weight of the memory and the number of steps are the ablations of the paper (its Figures 4 and 9). Finished runs are
lines of ``ablations.jsonl`` in ``benchmarks/results`` and are not run again; ``ablations.md`` and ``ablations.png`` lie
beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._lib.origin import RESULTS
from benchmarks._lib.report import origins, parser, pyplot, save
from benchmarks._lib.runs import evaluation_cells, execute_asked, last
from benchmarks.learning.aggregate import COLUMNS, intervals, iqm
from benchmarks.learning.tuning import Tuning

METHOD = "reversible_flow"
TASKS = ("half_cheetah", "hopper")
SIGMAS = (0.5, 0.65, 0.85, 1)
STEPS = (1, 2, 3, 8)
BASE_SIGMA, BASE_STEPS = 0.75, 5
ABLATIONS = {
    "base": ("the tuned setting", ()),
    **{f"sigma_{sigma}": (f"sigma {sigma}", (f"solver.sigma={sigma}",)) for sigma in SIGMAS},
    **{f"steps_{steps}": (f"M = {steps}", (f"solver.num_steps={steps}",)) for steps in STEPS},
    "one_rate": ("one rate for the head and the rest", ("optim.head_lr=3e-4",)),
    "unit_noise": ("the paper's unit noise, not the scale of a Gaussian", ("policy.scale=unit",)),
    "whole_network": ("the whole network in every step, not a head", ("policy.head_sizes=[]", "optim.head_lr=null")),
    "squash": ("actions bounded by a tanh, not clipped by the environment", ("policy.squash=true",)),
    "entropy": ("a bonus on the entropy of the pair", ("loss.entropy_coeff=0.002",)),
}
"""The label of each ablation, and what it changes. Names become folders, in which Hydra takes no ``=``."""
PANELS = {
    "sigma": {BASE_SIGMA: "base"} | {sigma: f"sigma_{sigma}" for sigma in SIGMAS},
    "M": {BASE_STEPS: "base"} | {steps: f"steps_{steps}" for steps in STEPS},
}
"""The runs that belong to each value of what the picture shows."""
Runs = dict[tuple[str, str], list[dict[str, Any]]]


def draw(runs: Runs, path: Path) -> None:
    """Draws the returns by sigma and by M: interquartile means with intervals, and every seed."""
    size = {"figsize": (9, 3 * len(TASKS)), "layout": "constrained"}
    figure, axes = pyplot().subplots(len(TASKS), len(PANELS), sharex="col", sharey="row", squeeze=False, **size)
    for row, task in zip(axes, TASKS, strict=True):
        for panel, (name, values) in zip(row, PANELS.items(), strict=True):
            found = {value: runs[task, key] for value, key in sorted(values.items()) if (task, key) in runs}
            for noise, column in COLUMNS.items():
                returns = {value: np.array([[last(one, column)] for one in ones]) for value, ones in found.items()}
                means, bounds = intervals(returns, iqm, 2000)
                centres = [means[value][0] for value in returns]
                (line,) = panel.plot(list(returns), centres, "-", label=f"{noise} noise")
                panel.fill_between(list(returns), *np.array([bounds[value][:, 0] for value in returns]).T, alpha=0.15)
                for value, ones in returns.items():
                    panel.plot([value] * len(ones), ones, ".", color=line.get_color())
            panel.grid(alpha=0.3)
            panel.set(title=f"{task}, {'M = 5' if name == 'sigma' else 'sigma = 0.75'}", xlabel=name)
        row[0].set_ylabel("return")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    arguments = parser(__doc__)
    arguments.parse_known_args()  # --help comes before what is missing
    chosen = Tuning().chosen(METHOD)
    if chosen is None:
        raise SystemExit("The flow is not tuned yet: python -m benchmarks.learning.tuning first.")
    options = (f"policy={METHOD}", *chosen[1])
    known = {name: (label, (*options, *changed)) for name, (label, changed) in ABLATIONS.items()}
    arguments.add_argument("--policies", nargs="+", default=list(known), choices=known, metavar="NAME")
    records = execute_asked("ablations", known, arguments, TASKS, [1, 2, 3, 4, 5])
    runs: Runs = {}
    for record in records:
        runs.setdefault((record["task"], record["policy"]), []).append(record)
    lines = [
        "# Ablations of the flow",
        "",
        f"{records[0]['frames']:,} frames, median return of the seeds (each in brackets), mean of 10 evaluation "
        f"episodes. The tuned setting is `{' '.join(options)}` with M = {BASE_STEPS} and sigma = {BASE_SIGMA}.",
        "",
        f"| changed |{''.join(f' {task}, zero noise | random noise |' for task in TASKS)}",
        f"|---|{'---:|' * 2 * len(TASKS)}",
    ]
    for name, (label, _) in known.items():
        if all((task, name) in runs for task in TASKS):
            cells = [cell for task in TASKS for cell in evaluation_cells(runs[task, name])]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    draw(runs, RESULTS / "ablations.png")
    save(RESULTS / "ablations.md", [*lines, *origins(records)])


if __name__ == "__main__":
    main()
