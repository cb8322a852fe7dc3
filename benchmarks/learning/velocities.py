# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers which network of a flow learns best for its price, beside a Gaussian with the same settings.

    python -m benchmarks.learning.velocities              # 60 runs of two to four minutes on one core
    python -m benchmarks.learning.velocities --tasks ant humanoid --seeds 1 2 3
    python -m benchmarks.learning.velocities --tasks xhand/nut_bolt --frames 500_000 --seeds 1 2 3
    python -m benchmarks.learning.velocities --report

All have the same hidden layers, activation, first deviation of actions and KL target. The whole network of a flow is
evaluated in every step, or a head alone, behind layers that an observation passes once. Finished runs are lines of
``velocities.jsonl`` in ``benchmarks/results`` and are not run again; ``velocities.md`` and ``velocities.png`` lie
beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks._lib.origin import RESULTS
from benchmarks._lib.report import origins, parser, save
from benchmarks._lib.runs import by_task_and_policy, draw, evaluation_cells, execute_asked, training_seconds
from benchmarks.learning.aggregate import BASE, complete_runs, curves, final_scores, intervals, iqm, scales

STEPS = "solver.num_steps"
RELU, TANH = "policy.activation=relu", "policy.activation=tanh"
HEAD = ("policy.head_sizes=[64]", f"{STEPS}=3")
POLICIES = {
    "gaussian": ("Gaussian", ("policy=gaussian",)),
    "whole_5": ("whole network, M = 5", ("policy.head_sizes=[]", f"{STEPS}=5")),
    "head_5": ("head 64, M = 5", ("policy.head_sizes=[64]", f"{STEPS}=5")),
    "head_3": ("head 64, M = 3", HEAD),
    "whole_3": ("whole network, M = 3", ("policy.head_sizes=[]", f"{STEPS}=3")),
    "head_2": ("head 64, M = 2", ("policy.head_sizes=[64]", f"{STEPS}=2")),
    "head_1": ("head 64, M = 1", ("policy.head_sizes=[64]", f"{STEPS}=1")),
    "head_small_5": ("head 32, M = 5", ("policy.head_sizes=[32]", f"{STEPS}=5")),
    "head_wide_5": ("head 128, M = 5", ("policy.head_sizes=[128]", f"{STEPS}=5")),
    "gaussian_relu": ("Gaussian, ReLU", ("policy=gaussian", RELU)),
    "head_5_relu": ("head 64, M = 5, ReLU", ("policy.head_sizes=[64]", f"{STEPS}=5", RELU)),
    "gaussian_tanh": ("Gaussian, tanh", ("policy=gaussian", TANH)),
    "head_5_tanh": ("head 64, M = 5, tanh", ("policy.head_sizes=[64]", f"{STEPS}=5", TANH)),
    "head_deep_5": ("head 64-64, M = 5", ("policy.head_sizes=[64,64]", f"{STEPS}=5")),
}
"""The label of each policy and its options of the entry script."""
TASKS = ("half_cheetah", "hopper", "walker2d")
MORE_TASKS = (*TASKS, "ant", "humanoid", "xhand/nut_bolt")
MAIN = ("gaussian", "whole_5", "head_5", "head_3")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--policies", nargs="+", default=MAIN, choices=POLICIES)
    records = execute_asked("velocities", POLICIES, arguments, TASKS, [1, 2, 3, 4, 5])
    lines = [
        "# The network of a flow",
        "",
        "At the end: median return (each seed), mean over the evaluation episodes; the mean of the training return "
        "over the run's frames, median of the seeds; seconds of a run that nothing else slows down.",
        "",
        "| task | frames | policy | zero noise | random noise | over the run | seconds |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for task, policy, chosen in by_task_and_policy(records, POLICIES):
        whole = statistics.median(over_the_run(record) for record in chosen)
        cells = [*evaluation_cells(chosen), f"{whole:.0f}", f"{training_seconds(chosen):.0f}"]
        lines.append(f"| {task} | {chosen[0]['frames']:,} | {POLICIES[policy][0]} | {' | '.join(cells)} |")
    lines += ["", *over_tasks(records, TASKS), "", *over_tasks(records, MORE_TASKS)]
    shown = {policy: POLICIES[policy] for policy in MAIN}
    draw(records, shown, RESULTS / "velocities.png", unit=1e3, xlabel="thousand frames", ylabel="training return")
    save(RESULTS / "velocities.md", [*lines, *origins(records)])


def over_tasks(records: list[dict], tasks: Sequence[str]) -> list[str]:
    """Returns the table of means over tasks, of the seeds that finished all of them."""
    if not complete_runs(records, [BASE], tasks):
        return []
    column = "eval/random_noise/return"
    runs, scale = complete_runs(records, list(POLICIES), tasks), scales(records, tasks, column)
    ends = {policy: final_scores(rows, scale, column) for policy, rows in runs.items()}
    means = {policy: curves(rows, scale).mean(-1) for policy, rows in runs.items()}
    found = [intervals(scores, iqm, 2000) for scores in (ends, means)]
    lines = [
        f"Interquartile mean over {', '.join(tasks)} and seeds of the return that is 0 where training begins and 1 "
        "where the Gaussian's random noise ends, of the seeds that finished every task, with 95 % stratified bootstrap "
        "intervals (2,000 resamples, rliable) of three seeds or more.",
        "",
        "| policy | seeds | random noise, at the end | training, over the run |",
        "|---|---:|---:|---:|",
    ]
    for policy, rows in runs.items():
        cells = []
        for values, bounds in found:
            low, high = bounds[policy][:, 0]
            cells.append(f"{values[policy][0]:.2f}" + ("" if low != low else f" [{low:.2f}, {high:.2f}]"))
        lines.append(f"| {POLICIES[policy][0]} | {len(rows)} | {' | '.join(cells)} |")
    return lines


def over_the_run(record: dict) -> float:
    """Returns the mean of the training return over the points of a run's curve."""
    values = [value for value in record["curves"]["train/return"] if value is not None]
    return statistics.fmean(values)


if __name__ == "__main__":
    main()
