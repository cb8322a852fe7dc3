# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Training runs of the entry script that outlive their process: each finished one is a line of a results file.

A line holds what was run, its curves, commit, versions and machine. A finished run is never run again, an interrupted
one resumes, so that the benchmarks on top may be stopped and repeated at will, on any machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from provenance import RESULTS, ROOT, commit, machine, versions

from torchrl_genpo.runs import read_metrics

METRICS = (
    "frames",
    "time/seconds",
    "time/collect",
    "time/update",
    "train/return",
    "train/success",
    "train/kl",
    "train/lr",
    "eval/",
    "task/turns/",
)  # names or beginnings of columns
FEW = ("train/success", "task/")  # beginnings of columns
BASELINES = {  # name -> (label, options of the entry script): the shared setting, and where it differs each one's own
    "dummy_flow": ("GenPO (dummy flow)", ["policy=dummy_flow"]),
    "dummy_flow_published": (
        "GenPO (dummy flow), its own setting",
        ["policy=dummy_flow", "start=paper", "optim.target_kl=0.01"],
    ),
    "self_adjoint_flow": ("self-adjoint flow", ["policy=self_adjoint_flow"]),
    "fpo": ("FPO++", ["policy=fpo"]),
    "fpo_published": (
        "FPO++, its own setting",
        [
            "policy=fpo",
            "policy.options.num_steps=64",
            "policy.loss.num_samples=16",
            "loss.clip_epsilon=0.05",
            "loss.epochs=16",
            "optim.schedule=constant",
            "optim.lr=1e-4",
        ],
    ),
    "policyflow": ("PolicyFlow", ["policy=policyflow"]),
    "policyflow_published": (
        "PolicyFlow, its own setting",
        ["policy=policyflow", "loss.epochs=5", "loss.entropy_coeff=0.0025", "optim.lr=1e-4", "optim.target_kl=0.01"],
    ),
}
POINTS = 60  # of each curve that are kept
UNEQUAL = (
    "**These rows do not compare policies like for like.** The Gaussian has the activation tanh and a first "
    "standard deviation of 1; every flow has mish, and the reversible flows begin at a standard deviation of 0.714."
    " Both choices matter more than the policy: with mish and 0.714 the Gaussian reaches 4533 and 3038 on "
    "HalfCheetah (seeds 1 and 2, zero noise), where its rows here have 1599 and 1799 and the flow's 4260 and 5182; "
    "with mish and 0.5 it reaches 5301, the flow set alike 6388 (one seed). A comparison of equal settings is under"
    " way."
)
UNEQUAL_NOISE = (
    "**These rows do not compare policies like for like.** The Gaussian begins at a standard deviation of 1, the "
    "reversible flows at 0.714 (and their KL target is another), which alone changes a curve as much as the policy "
    "does. A comparison of equal settings is under way."
)
LOCK = threading.Lock()


@dataclass(frozen=True)
class Run:
    """What tells one training run of the entry script from another."""

    name: str  # of the benchmark
    task: str
    policy: str
    options: tuple[str, ...]  # of the entry script, that make the policy
    seed: int
    frames: int | None  # None: as the task's configuration has it
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Another one for every configuration."""
        digest = hashlib.sha256(json.dumps(self.command).encode()).hexdigest()[:8]
        return ROOT / "outputs" / self.name / self.task / self.policy / f"{self.seed}-{digest}"

    @property
    def command(self) -> list[str]:
        """The entry script's options."""
        frames = [] if self.frames is None else [f"collector.total_frames={self.frames}"]
        return [f"env={self.task}", *self.options, *self.overrides, f"seed={self.seed}", *frames]

    def is_finished(self) -> bool:
        """Whether all frames are collected; the exit code does not say so, for a run that was stopped has 0 too."""
        total = OmegaConf.load(self.folder / "config.yaml").collector.total_frames
        return read_metrics(self.folder / "metrics.csv")["frames"][-1] >= total

    def execute(self) -> None:
        """Runs or resumes the entry script and adds a line to the results."""
        self.folder.mkdir(parents=True, exist_ok=True)
        origin_path, output_path = self.folder / "origin.json", self.folder / "output.txt"
        if any((self.folder / "checkpoints").glob("*")):
            command = [f"resume={self.folder}"]
        else:
            for name in ("config.yaml", "metrics.csv"):  # of a start that never reached a checkpoint
                (self.folder / name).unlink(missing_ok=True)
            command = [*self.command, f"hydra.run.dir={self.folder}"]
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
        is_done = code == 0 and self.is_finished()
        outcome = "done" if is_done else "stopped" if code == 0 else f"FAILED, {output_path}"
        print(f"{self.task}, {self.policy}, seed {self.seed}: {outcome}", flush=True)
        if is_done:
            record = asdict(self) | json.loads(origin_path.read_text()) | summary(self.folder / "metrics.csv")
            with LOCK, results_path(self.name).open("a") as file:
                file.write(json.dumps(record) + "\n")


def summary(metrics_path: Path) -> dict[str, Any]:
    """A curve of ``POINTS`` updates and every evaluation; seconds of the whole run.

    What is said of the few episodes that ended in an update (``FEW``) is averaged since the point before.
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
    for key in (key for key in columns if key.startswith(FEW)):
        parts = [columns[key][before + 1 : i + 1] for before, i in zip([-1, *chosen], chosen, strict=False)]
        known = [[value for value in part if value == value] for part in parts]
        means = [sum(part) / len(part) if part else float("nan") for part in known]
        columns[key] = [means[chosen.index(i)] if i in chosen else float("nan") for i in range(updates)]
    curves = {
        key: [None if (value := column[i]) != value else float(f"{value:.5g}") for i in chosen]
        for key, column in columns.items()
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
        found[Run(**(key | {field: tuple(record[field]) for field in ("options", "overrides")}))] = record
    return found


def execute_all(runs: Sequence[Run], workers: int) -> None:
    """Executes what is not finished, ``workers`` at a time."""
    RESULTS.mkdir(exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        finished = {run for name in {run.name for run in runs} for run in read_results(name)}
        list(pool.map(Run.execute, [run for run in runs if run not in finished]))


def last(record: dict[str, Any], column: str) -> float:
    """The final value of a column; ``nan`` where there is none."""
    return next((value for value in reversed(record["curves"][column]) if value is not None), float("nan"))


def training_seconds(records: Sequence[dict[str, Any]]) -> float:
    """Seconds of collection and updates in a run that nothing else slows down.

    Runs share their machines, and wait where they have the lower priority: the first decile of the seconds a frame
    between the points of a curve, of the fastest seed, times the frames. Few points hold an evaluation. Lines from
    before curves had times tell the whole alone.
    """
    import numpy as np

    def seconds(record: dict[str, Any]) -> float:
        if "time/seconds" not in record["curves"]:
            return record["seconds"]
        frames, times = (np.array(record["curves"][column], float) for column in ("frames", "time/seconds"))
        return float(np.quantile(np.diff(times) / np.diff(frames), 0.1)) * frames[-1]

    return min(map(seconds, records))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median, and each in brackets."""
    return f"{statistics.median(values):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def median_curves(
    panel: Any,
    records: Sequence[dict[str, Any]],
    label: str,
    color: str,
    unit: float,
    column: str = "train/return",
) -> None:
    """Draws the median and range of a column of some seeds; ``unit`` frames to one of the axis."""
    import numpy as np

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
    """A panel of training curves for every task; ``policies`` holds their labels first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(record["task"] for record in records))
    figure, axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 3.8), layout="constrained", squeeze=False)
    for panel, task in zip(axes[0], tasks, strict=True):
        for color, (policy, (label, _)) in enumerate(policies.items()):
            chosen = [record for record in records if (record["task"], record["policy"]) == (task, policy)]
            median_curves(panel, chosen, label, f"C{color}", unit, column)
        panel.set(title=task, xlabel=xlabel, ylabel=ylabel)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    figure.savefig(path, dpi=130)


def origins(records: Sequence[dict[str, Any]], command: str) -> list[str]:
    """The last lines of a report: its command, and where its runs come from."""
    found = {key: "; ".join(sorted({record[key] for record in records})) for key in ("commit", "versions", "machine")}
    return [
        "",
        f"Command: `{command}`; commit, versions and machine of each run are in the `.jsonl` beside this file.  ",
        f"Commits: {found['commit']}.  ",
        f"Versions: {found['versions']}.  ",
        f"Machines: {found['machine']}.",
    ]
