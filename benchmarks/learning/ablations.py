# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers how the weight of the memory and the number of steps change what is learned, as the paper's ablations do.

    python -m benchmarks.learning.ablations               # the paper's start, HalfCheetah, one seed: 12 runs
    python -m benchmarks.learning.ablations --seeds 1 2 3
    python -m benchmarks.learning.ablations --report

A run takes five to ten minutes on one core. Finished runs are lines of ``ablations.jsonl`` in ``benchmarks/results``
and are not run again; ``ablations.md`` and ``ablations.png`` lie beside it.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks._lib.origin import RESULTS
from benchmarks._lib.report import origins, parser, pyplot, save, spread
from benchmarks._lib.runs import Run, execute_all, last, read_results, training_seconds

SIGMAS = (0.5, 0.65, 0.7, 0.75, 0.8, 0.85, 0.95, 1.0)
"""The weights of the memory of the paper's Figure 4."""
STEPS = (1, 2, 5, 8, 16)
"""The numbers of steps of the paper's Figure 9."""
DEFAULT_SIGMA, DEFAULT_STEPS = 0.75, 5
NOISES = ("zero", "random")


def name_of(sigma: float, steps: int) -> str:
    """Returns the name of the policy and of its folder, which Hydra takes without quotes."""
    return f"sigma_{sigma}_steps_{steps}"


def ablation_run(task: str, sigma: float, steps: int, seed: int, frames: int) -> Run:
    """Returns the run of one pair of sigma and M."""
    options = ("policy.scale=unit", f"solver.sigma={sigma}", f"solver.num_steps={steps}")
    return Run("ablations", task, name_of(sigma, steps), options, seed, frames)


def settings() -> dict[str, list[tuple[float, int]]]:
    """Returns for each quantity that varies the pairs of sigma and M that are compared."""
    return {
        "sigma": [(sigma, DEFAULT_STEPS) for sigma in SIGMAS],
        "M": [(DEFAULT_SIGMA, steps) for steps in STEPS],
    }


def report(records: list[dict[str, Any]], path: Path) -> None:
    """Writes the table and the picture."""
    frames = max(record["frames"] for record in records)
    lines = [
        "# Ablations of the paper: the weight of the memory, the number of steps",
        "",
        f"{records[0]['task']}, {frames:,} frames, the paper's start. Median of the seeds (each in brackets), mean of "
        "10 evaluation episodes; seconds of a run that nothing else slows down.",
    ]
    figure, panels = pyplot().subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    for panel, (name, pairs) in zip(panels, settings().items(), strict=True):
        lines += ["", f"| {name} | zero noise | random noise | seconds |", "|---:|---:|---:|---:|"]
        points: dict[str, list[tuple[float, float]]] = {noise: [] for noise in NOISES}
        for sigma, steps in pairs:
            chosen = [record for record in records if record["policy"] == name_of(sigma, steps)]
            if not chosen:
                continue
            value, cells = sigma if name == "sigma" else steps, []
            for noise in NOISES:
                returns = [last(record, f"eval/{noise}_noise/return") for record in chosen]
                points[noise] += [(value, one) for one in returns]
                cells.append(spread(returns, 0))
            lines.append(f"| {value} | {' | '.join(cells)} | {training_seconds(chosen):.0f} |")
        for noise, color in zip(NOISES, ("C0", "C1"), strict=True):
            if not points[noise]:
                continue
            values = sorted({value for value, _ in points[noise]})
            medians = [statistics.median(y for x, y in points[noise] if x == value) for value in values]
            panel.plot(values, medians, "-", color=color, label=f"{noise} noise")
            panel.plot(*zip(*points[noise], strict=True), "o", color=color, ms=4)
        panel.set(xlabel=name, title=f"M = {DEFAULT_STEPS}" if name == "sigma" else f"sigma = {DEFAULT_SIGMA}")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"return after {frames:,} frames")
    panels[0].legend(frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=130)
    save(path, [*lines, *origins(records)])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--task", default="half_cheetah", help="default: half_cheetah")
    arguments.add_argument("--seeds", nargs="+", type=int, default=[1])
    arguments.add_argument("--frames", type=int, default=500_000)
    arguments.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    arguments.add_argument("--report", action="store_true", help="only write the report of the finished runs")
    options = arguments.parse_args()

    if not options.report:
        pairs = dict.fromkeys(pair for group in settings().values() for pair in group)
        runs = [
            ablation_run(options.task, sigma, steps, seed, options.frames)
            for seed in options.seeds
            for sigma, steps in pairs
        ]
        execute_all(runs, options.workers)
    records = sorted(read_results("ablations").values(), key=lambda record: record["seed"])
    records = [record for record in records if record["task"] == options.task]
    if not records:
        sys.exit(f"No finished run of {options.task}; start some without --report.")
    report(records, RESULTS / "ablations.md")


if __name__ == "__main__":
    main()
