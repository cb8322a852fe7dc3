# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Learning curves: Gaussian PPO against reversible flows, through the entry script, same hyper-parameters.

    python benchmarks/learning.py                      # 27 runs, about 50 minutes on two cores
    python benchmarks/learning.py --report             # table and plot of the runs that are there

Finished runs are skipped and interrupted ones resumed, so that the command may be repeated at will. Writes
``learning.csv`` (every evaluation and training return), ``learning.md`` (the table) and ``learning.png`` to
``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from provenance import RESULTS, ROOT, commit, machine, versions

TASKS = ("half_cheetah", "hopper", "walker2d")
POLICIES = {
    "gaussian": ["policy=gaussian"],
    "flow, paper's start": ["policy=reversible_flow", "start=paper"],
    "flow, learned scale": ["policy=reversible_flow", "start=learned_scale"],
}
FINAL = {  # what the table shows: column of metrics.csv -> heading
    "eval/zero_noise/return": "zero noise",
    "eval/random_noise/return": "random noise",
}


def slug(policy: str) -> str:
    """A folder name: the value of the option that tells the policies apart."""
    return POLICIES[policy][-1].split("=")[1]


@dataclass(frozen=True)
class Run:
    """One training run of the entry script."""

    task: str
    policy: str
    seed: int
    frames: int
    folder: Path
    overrides: tuple[str, ...] = ()

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.csv"

    def rows(self) -> list[dict[str, str]]:
        if not self.metrics_path.exists():
            return []
        with self.metrics_path.open(newline="") as file:
            return list(csv.DictReader(file))

    def is_finished(self) -> bool:
        rows = self.rows()
        return bool(rows) and int(rows[-1]["frames"]) >= self.frames

    def command(self) -> list[str]:
        script = "sota-implementations/genpo.py"
        if any((self.folder / "checkpoints").glob("*")):
            return [script, f"resume={self.folder}"]
        return [
            script,
            f"env={self.task}",
            *POLICIES[self.policy],
            *self.overrides,
            f"seed={self.seed}",
            f"collector.total_frames={self.frames}",
            f"hydra.run.dir={self.folder}",
        ]

    def execute(self) -> None:
        if self.is_finished():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        command = self.command()
        if not command[1].startswith("resume"):
            for name in ("config.yaml", "metrics.csv"):  # of a start that never reached a checkpoint
                (self.folder / name).unlink(missing_ok=True)
            origin = {"commit": commit(), "versions": versions(), "machine": machine(), "command": command}
            (self.folder / "provenance.json").write_text(json.dumps(origin, indent=2))
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (self.folder / "output.txt").open("a") as output:
            code = subprocess.run(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=output, stderr=output
            ).returncode
        print(f"{self.task}, {self.policy}, seed {self.seed}: {'done' if code == 0 else f'FAILED, {output.name}'}")


def final_returns(runs: list[Run], task: str, policy: str, column: str) -> list[float]:
    chosen = [run for run in runs if (run.task, run.policy) == (task, policy)]
    return [float(run.rows()[-1][column]) for run in chosen]


def write_csv(runs: list[Run], path: Path) -> None:
    columns = ["frames", "time/seconds", "train/return", "train/kl", "train/lr", "train/inversion_error", *FINAL]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "policy", "seed", *columns])
        for run in runs:
            for index, row in enumerate(run.rows()):
                if index % 4 == 0 or row["eval/zero_noise/return"]:  # a quarter of the updates draws the same curve
                    writer.writerow([run.task, run.policy, run.seed, *(row[column] for column in columns)])


def write_table(runs: list[Run], path: Path) -> None:
    origins = [json.loads((run.folder / "provenance.json").read_text()) for run in runs]
    seeds = sorted({run.seed for run in runs})
    lines = [
        f"# Learning: returns after {runs[0].frames:,} frames",
        "",
        f"Median of seeds {', '.join(map(str, seeds))} (every seed in brackets), mean of 10 evaluation episodes, with "
        "zero noise and with random noise. One set of hyper-parameters: `sota-implementations/config/genpo.yaml`"
        + "".join(f", `{override}`" for override in runs[0].overrides)
        + ".",
        "",
        "| task | policy | " + " | ".join(FINAL.values()) + " | seconds |",
        "|---|---|" + "---:|" * (len(FINAL) + 1),
    ]
    for task in dict.fromkeys(run.task for run in runs):
        for policy in dict.fromkeys(run.policy for run in runs if run.task == task):
            cells = []
            for column in FINAL:
                values = final_returns(runs, task, policy, column)
                seeds_text = ", ".join(f"{value:.0f}" for value in values)
                cells.append(f"{statistics.median(values):.0f} ({seeds_text})")
            seconds = statistics.median(final_returns(runs, task, policy, "time/seconds"))
            lines.append(f"| {task} | {policy} | {' | '.join(cells)} | {seconds:.0f} |")
    lines += [
        "",
        "Seconds are wall-clock of one run on one core, evaluation included, with another run beside it.",
        "",
        f"Command: `python {' '.join(['benchmarks/learning.py', *sys.argv[1:]])}`, each run: `"
        + " ".join(["python", *origins[0]["command"][:-1]])
        + "`.  ",
        f"Commit: {', '.join(sorted({origin['commit'] for origin in origins}))}.  ",
        f"Versions: {'; '.join(sorted({origin['versions'] for origin in origins}))}.  ",
        f"Machine: {'; '.join(sorted({origin['machine'] for origin in origins}))}.",
    ]
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def draw(runs: list[Run], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    tasks = list(dict.fromkeys(run.task for run in runs))
    figure, axes = plt.subplots(1, len(tasks), figsize=(4 * len(tasks), 3.4), layout="constrained", squeeze=False)
    for panel, task in zip(axes[0], tasks, strict=True):
        for index, policy in enumerate(dict.fromkeys(run.policy for run in runs if run.task == task)):
            curves = []
            for run in runs:
                if (run.task, run.policy) == (task, policy):
                    rows = [row for row in run.rows() if row["train/return"]]
                    points = [[float(row["frames"]), float(row["train/return"])] for row in rows]
                    curves.append(np.array(points).T)
            grid = np.linspace(max(c[0, 0] for c in curves), min(c[0, -1] for c in curves), 200)
            values = np.stack([np.interp(grid, *curve) for curve in curves])
            (line,) = panel.plot(grid / 1e3, np.median(values, 0), label=policy, color=f"C{index}")
            panel.fill_between(grid / 1e3, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, lw=0)
        panel.set(title=task, xlabel="thousand frames")
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("training return (20 episodes)")
    axes[0][0].legend(frameon=False)
    figure.suptitle("Median and range of the seeds", fontsize=10)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--frames", type=int, default=500_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs", help="where the run folders are")
    parser.add_argument("--override", nargs="+", default=[], help="options of the entry script, for every run")
    parser.add_argument("--name", default="learning", help="of the files in benchmarks/results and of the run folders")
    parser.add_argument("--report", action="store_true", help="only write the report of the finished runs")
    options = parser.parse_args()

    folder = options.runs.resolve() / options.name
    overrides = tuple(options.override)
    runs = [
        Run(task, policy, seed, options.frames, folder / task / slug(policy) / str(seed), overrides)
        for seed in options.seeds
        for task in options.tasks
        for policy in options.policies
    ]
    if not options.report:
        with ThreadPoolExecutor(options.workers) as pool:
            list(pool.map(Run.execute, runs))
    finished = sorted((run for run in runs if run.is_finished()), key=lambda run: options.tasks.index(run.task))
    if not finished:
        sys.exit(f"No finished run in {options.runs}; start them without --report.")
    RESULTS.mkdir(exist_ok=True)
    write_csv(finished, RESULTS / f"{options.name}.csv")
    write_table(finished, RESULTS / f"{options.name}.md")
    draw(finished, RESULTS / f"{options.name}.png")


if __name__ == "__main__":
    main()
