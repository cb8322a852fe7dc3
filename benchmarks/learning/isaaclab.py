# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers how long training on Isaac Lab takes and what it reaches, reversible flow against Gaussian PPO.

    python -m benchmarks.learning.isaaclab                       # GPU: Ant and Humanoid as in the paper, 4096 envs
    python -m benchmarks.learning.isaaclab --small --tasks ant   # CPU: 256 environments, 1.2M frames; 15 minutes
    python -m benchmarks.learning.isaaclab --report

It needs Isaac Lab (the README says how to install it) and, where its asset server cannot be reached,
``ISAACSIM_ASSET_ROOT``. Finished runs are lines of ``isaaclab.jsonl`` (``isaaclab_small.jsonl``) in
``benchmarks/results`` and are not run again; the report is the ``.md`` and ``.png`` beside it.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks._lib.origin import RESULTS
from benchmarks._lib.policies import BASELINES
from benchmarks._lib.report import origins, parser, save, spread
from benchmarks._lib.runs import Run, draw, execute_all, last, read_results

POLICIES = {
    "gaussian": ("Gaussian", ["policy=gaussian"]),
    "flow": ("flow", ["policy.scale=learned"]),
    "paper": ("flow, the paper's unit noise", ["policy.scale=unit"]),
    **BASELINES,
}
SMALL = ("device=cpu", "env.num_envs=256", "collector.total_frames=1_228_800")  # 150 updates
TASKS = (
    *("ant", "humanoid", "open_drawer", "anymal_d_rough", "go2_rough"),
    *("g1_rough", "h1_rough", "digit_locomanip", "cartpole"),
)


def write_table(records: list[dict[str, Any]], path: Path) -> None:
    """Writes the returns and the times of all finished runs."""
    settings = sorted({" ".join(record["overrides"]) or "the task's configuration" for record in records})
    lines = [
        "# Isaac Lab: flow against Gaussian PPO",
        "",
        f"Settings: {'; '.join(f'`{setting}`' for setting in settings)}. Return: median of the seeds (each in "
        "brackets); of training, and at its end over one episode of every environment, with zero and with random "
        "noise. Time: of the whole run, as a ratio to the Gaussian's, and of one update with its collection.",
        "",
        "The Gaussian and the flows of a learned scale have all settings in common: their first deviation is 1. "
        "That of unit noise is 0.71, which alone changes a curve as much as the policy does.",
        "",
        "| task | policy | training | zero noise | random noise | frames | minutes | to Gaussian | collection, s | "
        "update, s | frames/s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    minutes: dict[tuple[str, str], float] = {}
    for task in dict.fromkeys(record["task"] for record in records):
        for policy, (label, _) in POLICIES.items():
            chosen = [record for record in records if (record["task"], record["policy"]) == (task, policy)]
            if not chosen:
                continue
            cells = []
            for column in ("train/return", "eval/zero_noise/return", "eval/random_noise/return"):
                values = [last(record, column) for record in chosen]
                cells.append(spread(values))
            frames = last(chosen[0], "frames")
            minutes[task, policy] = statistics.median(record["seconds"] for record in chosen) / 60
            ratio = minutes[task, policy] / minutes.get((task, "gaussian"), float("nan"))
            collect, update = (
                statistics.median(value for record in chosen for value in record["curves"][column][5:])
                for column in ("time/collect", "time/update")
            )
            size = chosen[0]["curves"]["frames"][0]
            cells += [f"{frames / 1e6:.1f}M", f"{minutes[task, policy]:.1f}", f"{ratio:.2f}", f"{collect:.2f}"]
            cells += [f"{update:.2f}", f"{size / (collect + update):.0f}"]
            lines.append(f"| {task.removeprefix('isaaclab/')} | {label} | {' | '.join(cells)} |")
    save(path, [*lines, *origins(records)])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--tasks", nargs="+", default=["ant", "humanoid"], choices=TASKS)
    arguments.add_argument("--policies", nargs="+", default=["gaussian", "flow"], choices=POLICIES)
    arguments.add_argument("--seeds", nargs="+", type=int, default=[1])
    arguments.add_argument("--small", action="store_true", help=f"on a CPU: {' '.join(SMALL)}")
    arguments.add_argument("--frames", type=int, help="of each run, instead of the configuration's")
    arguments.add_argument("--workers", type=int, default=1, help="runs at a time; one measures time, more save it")
    arguments.add_argument("--report", action="store_true", help="only write the report of the finished runs")
    options = arguments.parse_args()
    name = "isaaclab_small" if options.small else "isaaclab"
    settings = SMALL if options.small else ()
    if options.frames:
        settings = (*settings, f"collector.total_frames={options.frames}")
    if not options.report:
        runs = [
            Run(name, f"isaaclab/{task}", policy, tuple(POLICIES[policy][1]), seed, None, settings)
            for seed in options.seeds
            for task in options.tasks
            for policy in options.policies
        ]
        execute_all(runs, options.workers)
    records = sorted(read_results(name).values(), key=lambda record: record["seed"])
    if not records:
        sys.exit(f"benchmarks/results/{name}.jsonl has no finished run; start some without --report.")
    write_table(records, RESULTS / f"{name}.md")
    draw(records, POLICIES, RESULTS / f"{name}.png", unit=1e6, xlabel="million frames", ylabel="training return")


if __name__ == "__main__":
    main()
