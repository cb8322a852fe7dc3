# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Learning curves through the entry script: Gaussian PPO, the paper's flow, and what lies beyond it.

    python benchmarks/learning.py --policies gaussian paper learned_scale   # 27 runs, about 50 minutes on two cores
    python benchmarks/learning.py --seeds 1 2 3 4 5                         # everything, about ten hours
    python benchmarks/learning.py --report                                  # table and plots of the runs that are there

Every finished run is a line of ``learning.jsonl`` in ``benchmarks/results``, with its commit, versions and machine, and
is never run again; interrupted ones resume. So the command may be repeated at will, on any machine. The reports are
``learning.md`` and ``learning.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from provenance import RESULTS, ROOT, commit, machine, versions

from torchrl_genpo.runs import read_metrics

TASKS = ("half_cheetah", "hopper", "walker2d")
POLICIES = {  # name -> (label, options of the entry script)
    "gaussian": ("Gaussian", ["policy=gaussian"]),
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
    "three_step": ("flow, three-step, learned scale", ["solver=three_step", "start=learned_scale"]),
    "action_ratio": (
        "flow, learned scale, action ratio",
        ["start=learned_scale", "loss.ratio=action", "loss.num_memories=4"],
    ),
}
METRICS = ("frames", "train/return", "train/kl", "train/lr", "eval/zero_noise/return", "eval/random_noise/return")
POINTS = 60  # of each curve that are kept
LOCK = threading.Lock()


@dataclass(frozen=True)
class Run:
    """What tells one training run of the entry script from another."""

    name: str
    task: str
    policy: str
    seed: int
    frames: int
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return ROOT / "outputs" / self.name / self.task / self.policy / str(self.seed)

    def command(self) -> list[str]:
        return [
            f"env={self.task}",
            *POLICIES[self.policy][1],
            *self.overrides,
            f"seed={self.seed}",
            f"collector.total_frames={self.frames}",
        ]

    def execute(self) -> None:
        """Runs or resumes the entry script and adds a line to the results."""
        self.folder.mkdir(parents=True, exist_ok=True)
        origin_path, output_path = self.folder / "origin.json", self.folder / "output.txt"
        if any((self.folder / "checkpoints").glob("*")):
            command = [f"resume={self.folder}"]
        else:
            for name in ("config.yaml", "metrics.csv"):  # of a start that never reached a checkpoint
                (self.folder / name).unlink(missing_ok=True)
            command = [*self.command(), f"hydra.run.dir={self.folder}"]
            origin_path.write_text(json.dumps({"commit": commit(), "versions": versions(), "machine": machine()}))
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with output_path.open("a") as output:
            code = subprocess.run(
                [sys.executable, "sota-implementations/genpo.py", *command],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
            ).returncode
        print(f"{self.task}, {self.policy}, seed {self.seed}: {'done' if code == 0 else f'FAILED, {output_path}'}")
        if code == 0:
            record = asdict(self) | json.loads(origin_path.read_text()) | summary(self.folder / "metrics.csv")
            with LOCK, results_path(self.name).open("a") as file:
                file.write(json.dumps(record) + "\n")


def summary(metrics_path: Path) -> dict[str, Any]:
    """A curve of ``POINTS`` updates and every evaluation; seconds of the whole run."""
    metrics = read_metrics(metrics_path)
    updates = len(metrics["frames"])
    chosen = [
        i
        for i in range(updates)
        if i % max(1, updates // POINTS) == 0
        or metrics["eval/zero_noise/return"][i] == metrics["eval/zero_noise/return"][i]
    ]
    curves = {
        key: [None if (value := metrics[key][i]) != value else float(f"{value:.5g}") for i in chosen] for key in METRICS
    }
    return {"seconds": metrics["time/seconds"][-1], "curves": curves}


def results_path(name: str) -> Path:
    return RESULTS / f"{name}.jsonl"


def read_results(name: str) -> dict[Run, dict[str, Any]]:
    """Every finished run: its description and its line of the results."""
    path, found = results_path(name), {}
    for line in path.read_text().splitlines() if path.exists() else []:
        record = json.loads(line)
        key = {field: record[field] for field in Run.__dataclass_fields__}
        found[Run(**(key | {"overrides": tuple(record["overrides"])}))] = record
    return found


def last(record: dict[str, Any], column: str) -> float:
    return record["curves"][column][-1]


def write_table(records: list[dict[str, Any]], path: Path) -> None:
    frames = max(record["frames"] for record in records)
    overrides = dict.fromkeys(override for record in records for override in record["overrides"])
    lines = [
        f"# Learning: returns after {frames:,} frames",
        "",
        "Median of the seeds (each in brackets, from 1 up), mean of 10 evaluation episodes, with zero noise and with "
        "random noise. One set of hyper-parameters, `sota-implementations/config/genpo.yaml`"
        + "".join(f", `{override}`" for override in overrides)
        + ".",
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
                cells.append(f"{statistics.median(values):.0f} ({', '.join(f'{value:.0f}' for value in values)})")
            seconds = statistics.median(record["seconds"] for record in chosen)
            lines.append(f"| {task} | {label} | {' | '.join(cells)} | {seconds:.0f} |")
    options = "\n".join(f"- {label}: `{' '.join(options)}`" for label, options in POLICIES.values())
    lines += [
        "",
        "Seconds are wall-clock of one run on one core, evaluation included, with other work beside it.",
        "",
        "Each run is `python sota-implementations/genpo.py env=<task> seed=<seed> collector.total_frames="
        f"{frames}` with",
        "",
        options,
        "",
        f"Command: `python {' '.join(['benchmarks/learning.py', *sys.argv[1:]])}`; commit, versions, machine of each "
        f"run: `{path.stem}.jsonl`.  ",
        f"Commits: {', '.join(sorted({record['commit'] for record in records}))}.  ",
        f"Versions: {'; '.join(sorted({record['versions'] for record in records}))}.  ",
        f"Machines: {'; '.join(sorted({record['machine'] for record in records}))}.",
    ]
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def draw(records: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(1, len(TASKS), figsize=(4.4 * len(TASKS), 3.8), layout="constrained")
    for panel, task in zip(axes, TASKS, strict=True):
        for color, (policy, (label, _)) in enumerate(POLICIES.items()):
            curves = []
            for record in records:
                if (record["task"], record["policy"]) == (task, policy):
                    points = zip(record["curves"]["frames"], record["curves"]["train/return"], strict=True)
                    curves.append(np.array([point for point in points if point[1] is not None]).T)
            if not curves:
                continue
            grid = np.linspace(max(c[0, 0] for c in curves), min(c[0, -1] for c in curves), 200)
            values = np.stack([np.interp(grid, *curve) for curve in curves])
            (line,) = panel.plot(grid / 1e3, np.median(values, 0), label=label, color=f"C{color}")
            panel.fill_between(grid / 1e3, values.min(0), values.max(0), color=line.get_color(), alpha=0.12, lw=0)
        panel.set(title=task, xlabel="thousand frames")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("training return (20 episodes)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=4)
    figure.suptitle("Median and range of the seeds", fontsize=10)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--frames", type=int, default=500_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    parser.add_argument("--override", nargs="+", default=[], help="options of the entry script, for every run")
    parser.add_argument("--name", default="learning", help="of the files in benchmarks/results and of the run folders")
    parser.add_argument("--report", action="store_true", help="only write the report of the finished runs")
    options = parser.parse_args()

    RESULTS.mkdir(exist_ok=True)
    if not options.report:
        finished = read_results(options.name)
        runs = [
            Run(options.name, task, policy, seed, options.frames, tuple(options.override))
            for seed in options.seeds
            for policy in options.policies
            for task in options.tasks
        ]
        with ThreadPoolExecutor(options.workers) as pool:
            list(pool.map(Run.execute, [run for run in runs if run not in finished]))
    records = sorted(read_results(options.name).values(), key=lambda record: record["seed"])
    if not records:
        sys.exit(f"No finished run in {results_path(options.name)}; start some without --report.")
    write_table(records, RESULTS / f"{options.name}.md")
    draw(records, RESULTS / f"{options.name}.png")


if __name__ == "__main__":
    main()
