# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Training runs of the entry script that outlive their process: each finished one is a line of a results file.

A line holds what was run, its curves, commit, versions and machine. A finished run is never run again and an
interrupted one resumes, so that the benchmarks may be stopped and repeated at will, on any machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from benchmarks._lib.origin import RESULTS, ROOT, record_origin
from benchmarks._lib.report import append_line, pyplot, read_lines, spread
from torchrl_genpo.training import read_metrics

__all__ = [
    "Run",
    "by_task_and_policy",
    "cost",
    "draw",
    "evaluation_cells",
    "execute_all",
    "execute_asked",
    "last",
    "median_curves",
    "read_results",
    "run_script",
]

METRICS = (
    *("frames", "time/seconds", "time/collect", "time/update"),
    *("train/return", "train/success", "train/kl", "train/lr", "eval/", "task/turns/"),
)
"""Names, or the beginnings of names, of the columns that are kept."""
SPARSE = ("train/success", "task/")
"""The beginnings of columns that describe the few episodes that ended in an update."""
POINTS = 60
"""The number of points of a curve that are kept."""
LOCK = threading.Lock()


def run_script(*command: str, output: Any = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Runs a Python script of the repository on one thread, with this copy of the library."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
    )


@dataclass(frozen=True)
class Run:
    """What tells one training run of the entry script from another.

    Attributes:
        name (str): the name of the benchmark.
        task (str): the choice of the ``env`` group.
        policy (str): the name that the benchmark gives the policy.
        options (tuple of str): the options of the entry script that make the policy.
        seed (int): the seed of the run.
        frames (int or None): the number of frames, ``None`` for that of the task's configuration.
        overrides (tuple of str): further options, the same for every policy.
    """

    name: str
    task: str
    policy: str
    options: tuple[str, ...]
    seed: int
    frames: int | None
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run folder, another one for every configuration."""
        digest = hashlib.sha256(json.dumps(self.command).encode()).hexdigest()[:8]
        return ROOT / "outputs" / self.name / self.task / self.policy / f"{self.seed}-{digest}"

    @property
    def command(self) -> list[str]:
        """The options of the entry script."""
        frames = [] if self.frames is None else [f"collector.total_frames={self.frames}"]
        return [f"env={self.task}", *self.options, *self.overrides, f"seed={self.seed}", *frames]

    def is_finished(self) -> bool:
        """Returns whether all frames are collected, which the exit code 0 of a stopped run does not say."""
        total = OmegaConf.load(self.folder / "config.yaml").collector.total_frames
        return read_metrics(self.folder / "metrics.csv")["frames"][-1] >= total

    def execute(self) -> None:
        """Runs or resumes the entry script and adds a line to the results."""
        self.folder.mkdir(parents=True, exist_ok=True)
        origin_path, output_path = self.folder / "origin.json", self.folder / "output.txt"
        if any((self.folder / "checkpoints").glob("*")):
            command = [f"resume={self.folder}"]
        else:
            for name in ("config.yaml", "metrics.csv"):  # a start that never reached a checkpoint left them
                (self.folder / name).unlink(missing_ok=True)
            command = [*self.command, f"hydra.run.dir={self.folder}"]
            origin_path.write_text(json.dumps(record_origin()))
        with output_path.open("a") as output:
            code = run_script("sota-implementations/genpo.py", *command, output=output).returncode
        is_done = code == 0 and self.is_finished()
        outcome = "done" if is_done else "stopped" if code == 0 else f"FAILED, {output_path}"
        print(f"{self.task}, {self.policy}, seed {self.seed}: {outcome}", flush=True)
        if is_done:
            record = asdict(self) | json.loads(origin_path.read_text()) | summary(self.folder / "metrics.csv")
            with LOCK:
                append_line(RESULTS / f"{self.name}.jsonl", record)


def summary(metrics_path: Path) -> dict[str, Any]:
    """Returns a curve of ``POINTS`` updates with every evaluation, and the seconds of the whole run.

    A column that describes the few episodes that ended in an update (``SPARSE``) is averaged since the point before.
    """
    metrics = read_metrics(metrics_path)
    updates = len(metrics["frames"])
    chosen = [
        i
        for i in range(updates)
        if i % max(1, updates // POINTS) == 0
        or metrics["eval/zero_noise/return"][i] == metrics["eval/zero_noise/return"][i]
    ]
    columns = {
        key: values
        for key, values in metrics.items()
        if key.startswith(METRICS) and any(value == value for value in values)
    }
    for key in (key for key in columns if key.startswith(SPARSE)):
        parts = [columns[key][before + 1 : i + 1] for before, i in zip([-1, *chosen], chosen, strict=False)]
        known = [[value for value in part if value == value] for part in parts]
        means = [sum(part) / len(part) if part else float("nan") for part in known]
        columns[key] = [means[chosen.index(i)] if i in chosen else float("nan") for i in range(updates)]
    curves = {
        key: [None if (value := column[i]) != value else float(f"{value:.5g}") for i in chosen]
        for key, column in columns.items()
    }
    return {"seconds": metrics["time/seconds"][-1], "curves": curves}


def read_results(name: str) -> dict[Run, dict[str, Any]]:
    """Returns every finished run of a benchmark, with its line of the results."""
    found = {}
    for record in read_lines(RESULTS / f"{name}.jsonl"):
        key = {field: record[field] for field in Run.__dataclass_fields__}
        found[Run(**(key | {field: tuple(record[field]) for field in ("options", "overrides")}))] = record
    return found


def execute_all(runs: Sequence[Run], workers: int) -> None:
    """Executes what is not finished, ``workers`` runs at a time."""
    with ThreadPoolExecutor(workers) as pool:
        finished = {run for name in {run.name for run in runs} for run in read_results(name)}
        list(pool.map(Run.execute, [run for run in runs if run not in finished]))


def execute_asked(
    name: str,
    policies: Mapping[str, tuple[str, Sequence[str]]],
    arguments: argparse.ArgumentParser,
    tasks: Sequence[str],
    seeds: Sequence[int],
    frames: int = 200_000,
) -> list[dict[str, Any]]:
    """Executes what the command line asks for, unless it wants the report alone, and returns all finished runs.

    Args:
        name (str): the name of the benchmark.
        policies (mapping): from the names of policies to their labels and options; all of them are run, unless the
            script has an argument ``--policies``.
        arguments (ArgumentParser): of the script, to which those of the runs are added.
        tasks (sequence of str): the tasks, unless the command line has others.
        seeds (sequence of int): the seeds, unless the command line has others.
        frames (int, optional): the frames of a run, unless the command line has others. Defaults to ``200_000``.

    Returns:
        The lines of the results, in the order of their seeds.
    """
    arguments.add_argument("--tasks", nargs="+", default=tasks, help=f"default: {' '.join(tasks)}")
    arguments.add_argument("--seeds", nargs="+", type=int, default=seeds)
    arguments.add_argument("--frames", type=int, default=frames)
    arguments.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    arguments.add_argument("--report", action="store_true", help="only write the report of the finished runs")
    options = arguments.parse_args()
    if not options.report:
        runs = [
            Run(name, task, policy, tuple(policies[policy][1]), seed, options.frames)
            for seed in options.seeds
            for task in options.tasks
            for policy in getattr(options, "policies", policies)
        ]
        execute_all(runs, options.workers)
    records = sorted(read_results(name).values(), key=lambda record: record["seed"])
    if not records:
        sys.exit("No run is finished; start some without --report.")
    return records


def by_task_and_policy(
    records: Sequence[dict[str, Any]], policies: Iterable[str]
) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Yields the tasks and policies that have finished runs, with these."""
    for task in dict.fromkeys(record["task"] for record in records):
        for policy in policies:
            chosen = [record for record in records if (record["task"], record["policy"]) == (task, policy)]
            if chosen:
                yield task, policy, chosen


def evaluation_cells(records: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the final returns with zero and with random noise as two cells of a table."""
    return [spread([last(one, f"eval/{noise}_noise/return") for one in records], 0) for noise in ("zero", "random")]


def cost(records: Iterable[dict[str, Any]]) -> str:
    """Describes how many runs there are and what they took, each on one core beside others."""
    seconds = [record["seconds"] for record in records]
    return f"{len(seconds)} runs, {sum(seconds) / 3600:.1f} hours of a core"


def last(record: dict[str, Any], column: str) -> float:
    """Returns the final value of a column, ``nan`` where there is none."""
    return next((value for value in reversed(record["curves"][column]) if value is not None), float("nan"))


def median_curves(
    panel: Any,
    records: Sequence[dict[str, Any]],
    label: str,
    color: str,
    unit: float,
    column: str = "train/return",
) -> None:
    """Draws the median and the range of a column over the seeds, with ``unit`` frames to one of the axis."""
    curves = []
    for record in records:
        points = zip(record["curves"]["frames"], record["curves"][column], strict=True)
        curves.append(np.array([point for point in points if point[1] is not None]).T)
    if not curves:
        return
    grid = np.linspace(max(c[0, 0] for c in curves), min(c[0, -1] for c in curves), 200)
    values = np.stack([np.interp(grid, *curve) for curve in curves])
    panel.plot(grid / unit, np.median(values, 0), label=label, color=color)
    panel.fill_between(grid / unit, values.min(0), values.max(0), color=color, alpha=0.12, lw=0)


def draw(
    records: Sequence[dict[str, Any]],
    policies: Mapping[str, tuple[str, Sequence[str]]],
    path: Path,
    *,
    unit: float,
    xlabel: str,
    ylabel: str,
    column: str = "train/return",
) -> None:
    """Draws a panel of training curves for every task, three side by side.

    ``policies`` maps names to their labels and options.
    """
    tasks = list(dict.fromkeys(record["task"] for record in records))
    columns = min(len(tasks), 3)
    rows = -(-len(tasks) // columns)
    size = (5 * columns, 3.8 * rows)
    figure, axes = pyplot().subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for panel in axes.flat[len(tasks) :]:
        panel.set_axis_off()
    for panel, task in zip(axes.flat, tasks, strict=False):
        for color, (policy, (label, _)) in enumerate(policies.items()):
            chosen = [record for record in records if (record["task"], record["policy"]) == (task, policy)]
            median_curves(panel, chosen, label, f"C{color}", unit, column)
        panel.set(title=task, xlabel=xlabel, ylabel=ylabel)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    figure.savefig(path, dpi=130)
