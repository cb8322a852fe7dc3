# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers which policy learns best: Gaussian PPO, the paper's flow, what lies beyond it, and the methods of others.

    python -m benchmarks.learning.curves --tasks half_cheetah hopper walker2d --policies gaussian paper learned_scale
    python -m benchmarks.learning.curves --seeds 1 2 3 4 5 --policies gaussian learned_scale genpo fpo policyflow
    python -m benchmarks.learning.curves --report       # tables and plots of the runs that are there

The first command is 27 runs, about 50 minutes on two cores. Every finished run is a line of ``learning.jsonl`` and is
never run again; an interrupted one resumes. The reports are ``learning.md`` and ``learning.png``, task by task, and
``learning_iqm.md`` and ``learning_iqm.png`` over the tasks that all seeds of Gaussian PPO have finished, and over those
that some have (``aggregate.py``). All files lie in ``benchmarks/results``.
"""

from __future__ import annotations

import csv
import math
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks._lib.origin import RESULTS
from benchmarks._lib.policies import BASELINES, UNEQUAL
from benchmarks._lib.report import origins, parser, pyplot, save, spread
from benchmarks._lib.runs import Run, execute_all, last, median_curves, read_results, training_seconds
from benchmarks.learning import aggregate

TASKS = ("half_cheetah", "hopper", "walker2d", "ant", "humanoid", "multi_goal")
POLICIES = {
    "gaussian": ("Gaussian", ["policy=gaussian"]),
    "gaussian_published": (  # of PPO's paper, arXiv 1707.06347, table 3, and CleanRL's schedule
        "Gaussian, its own setting",
        ["policy=gaussian", "optim.schedule=linear", "loss.mini_batch_size=64"],
    ),
    "gaussian_kl_001": ("Gaussian, target KL 0.01", ["policy=gaussian", "optim.target_kl=0.01"]),  # that of rsl_rl
    "paper": ("flow, paper's start", ["start=paper"]),
    "learned_scale": ("flow, learned scale", ["start=learned_scale"]),
    "consistent_03": ("flow, consistent start, tau 0.3", ["start=consistent", "start.tau=0.3"]),
    "consistent_1": ("flow, consistent start, tau 1", ["start=consistent", "start.tau=1.0"]),
    "learned_scale_entropy": (
        "flow, learned scale, entropy bonus",
        ["start=learned_scale", "loss.entropy_coeff=0.001"],
    ),
    "state_dependent": ("flow, state-dependent scale", ["start=state_dependent_scale"]),
    "state_dependent_entropy": (
        "flow, state-dependent scale, entropy bonus",
        ["start=state_dependent_scale", "loss.entropy_coeff=0.001"],
    ),
    "action_ratio": (
        "flow, learned scale, action ratio",
        ["start=learned_scale", "loss.ratio=action", "loss.num_memories=4"],
    ),
    **BASELINES,
}
"""The label and the options of the entry script of each policy."""
SHARED = [policy for policy in BASELINES if not policy.endswith("_published")]
DRAWN = ("gaussian", "paper", "learned_scale", *SHARED)
"""The policies whose curves are drawn, all in one setting; the tables have every policy."""
FLOWS = ("paper", "learned_scale")
"""The policies whose time is that of table 1's ``reversible_flow``."""


def write_table(records: list[dict[str, Any]], path: Path) -> None:
    """Writes the returns at the end, task by task."""
    frames = max(record["frames"] for record in records)
    overrides = dict.fromkeys(override for record in records for override in record["overrides"])
    lines = [
        f"# Learning: returns after {frames:,} frames",
        "",
        "Median of the seeds (each in brackets, from 1 up), mean of 10 evaluation episodes, with zero noise and with "
        "random noise. One set of hyper-parameters, `torchrl_genpo/config/genpo.yaml`"
        + "".join(f", `{override}`" for override in overrides)
        + ".",
        "",
        UNEQUAL,
        "",
        "| task | policy | zero noise | random noise | seconds |",
        "|---|---|---:|---:|---:|",
    ]
    for task in TASKS:
        for policy, (label, _) in POLICIES.items():
            chosen = [r for r in records if (r["task"], r["policy"]) == (task, policy)]
            if not chosen:
                continue
            cells = []
            for mode in ("zero", "random"):
                values = [last(record, f"eval/{mode}_noise/return") for record in chosen]
                cells.append(spread(values, 0))
            lines.append(f"| {task} | {label} | {' | '.join(cells)} | {training_seconds(chosen):.0f} |")
    lines += goal_entropies(records)
    recorded = {record["policy"]: record["options"] for record in records}
    options = "\n".join(
        f"- {label}: `{' '.join(recorded[policy])}`" for policy, (label, _) in POLICIES.items() if policy in recorded
    )
    lines += [
        "",
        "Seconds are of collection and updates on one core, evaluation aside: the first decile of a frame, of the "
        "fastest seed, times the frames, since runs shared their machines with other work; of one or two seeds they "
        "may still be several times too many, and runs from before curves had times count whole. `table1.md` compares.",
        "",
        "Each run is `python sota-implementations/genpo.py env=<task> seed=<seed> collector.total_frames="
        f"{frames}` with",
        "",
        options,
        *origins(records),
    ]
    save(path, lines)


def goal_entropies(records: list[dict[str, Any]]) -> list[str]:
    """Returns a table of the entropy of the reached goals, empty if no task has several."""
    column = "eval/random_noise/goal_entropy"
    chosen = [record for record in records if column in record["curves"]]
    lines = ["", "Entropy, in nats, of the goals that random noise reaches (log 4 = 1.39 is all four alike):", ""]
    lines += ["| task | policy | entropy |", "|---|---|---:|"]
    for task, policy in dict.fromkeys((record["task"], record["policy"]) for record in chosen):
        values = [last(record, column) for record in chosen if (record["task"], record["policy"]) == (task, policy)]
        cell = spread(values, 2)
        lines.append(f"| {task} | {POLICIES[policy][0]} | {cell} |")
    return lines if chosen else []


def relative_times() -> dict[str, float]:
    """Returns the time of a whole run of the policies in ``DRAWN``, evaluation aside, as a ratio to Gaussian PPO's.

    The times are those of ``table1.csv``, whose methods took turns in one process; the times of the runs here depend on
    what ran beside them.
    """
    with (RESULTS / "table1.csv").open() as file:
        rows = {row["method"]: float(row["iteration"]) for row in csv.DictReader(file) if row["task"] == "half_cheetah"}
    methods = {policy: "reversible_flow" if policy in FLOWS else policy for policy in DRAWN}
    return {policy: rows[method] / rows["gaussian"] for policy, method in methods.items()}


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draws the training curves, a panel for each task."""
    tasks = [task for task in TASKS if any(record["task"] == task for record in records)]
    columns = min(len(tasks), 3)
    rows = math.ceil(len(tasks) / columns)
    size = (4.4 * columns, 3.6 * rows)
    figure, axes = pyplot().subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for panel in axes.flat[len(tasks) :]:
        panel.set_axis_off()
    for panel, task in zip(axes.flat, tasks, strict=False):
        for color, policy in enumerate(DRAWN):
            chosen = [record for record in records if (record["task"], record["policy"]) == (task, policy)]
            median_curves(panel, chosen, POLICIES[policy][0], f"C{color}", unit=1e3)
        panel.set_title(task)
        panel.grid(alpha=0.3)
    for panel in axes[-1]:
        panel.set_xlabel("thousand frames")
    figure.supylabel("training return (20 episodes)", fontsize=10)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=4)
    figure.suptitle("Median and range of the seeds", fontsize=10)
    figure.savefig(path, dpi=130)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    arguments.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    arguments.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    arguments.add_argument("--frames", type=int, default=500_000)
    arguments.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    arguments.add_argument("--override", nargs="+", default=[], help="options of the entry script, for every run")
    arguments.add_argument("--name", default="learning", help="name of the files in benchmarks/results")
    arguments.add_argument("--report", action="store_true", help="only write the report of the finished runs")
    options = arguments.parse_args()

    if not options.report:
        runs = [
            Run(options.name, task, policy, tuple(POLICIES[policy][1]), seed, options.frames, tuple(options.override))
            for seed in options.seeds
            for policy in options.policies
            for task in options.tasks
        ]
        execute_all(runs, options.workers)
    records = sorted(read_results(options.name).values(), key=lambda record: record["seed"])
    if not records:
        sys.exit(f"benchmarks/results/{options.name}.jsonl has no finished run; start some without --report.")
    write_table(records, RESULTS / f"{options.name}.md")
    draw(records, RESULTS / f"{options.name}.png")
    labels = {policy: label for policy, (label, _) in POLICIES.items()}
    records = [record for record in records if record["task"] != "multi_goal"]  # where the return is not what counts
    aggregate.report(records, labels, RESULTS / f"{options.name}_iqm", relative_times())


if __name__ == "__main__":
    main()
