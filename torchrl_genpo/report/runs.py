# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What a report shows of runs: their metrics, grouped by configuration, and the statistics over their seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from torchrl_genpo.training.metrics import read_metrics

__all__ = ["Curve", "Group", "Run", "Task", "curve", "group_runs", "read_run", "read_runs"]

POINTS = 200  # the most points of a curve
QUARTILES_FROM = 5  # with fewer seeds, the band holds all of them
NOT_LEARNING = ("seed", "resume", "evaluate", "video", "logger", "num_threads", "checkpoint", "tolerance")


@dataclass
class Run:
    """A training run as its folder tells it.

    Args:
        path (Path): the folder.
        config (dict): the value of every option by its dotted name.
        metrics (dict): the columns of ``metrics.csv``, arrays ``[updates]``, ``nan`` where a field is empty.
        videos (list of Path): the mp4 files of the run, the final policy's first.
    """

    path: Path
    config: dict[str, Any]
    metrics: dict[str, np.ndarray]
    videos: list[Path]

    @property
    def seed(self) -> Any:
        """The seed that the configuration names, or ``None``."""
        return self.config.get("seed")

    def column(self, name: str) -> np.ndarray:
        """A column of the metrics, ``[updates]``; ``nan`` where the value is unknown or infinite."""
        values = self.metrics.get(name, np.full(len(self.metrics["frames"]), np.nan))
        return np.where(np.isfinite(values), values, np.nan)

    def options(self) -> dict[str, str]:
        """The options that matter for learning, as text; null is as good as missing, as in an older configuration."""
        config = {k: v for k, v in self.config.items() if k.split(".")[0] not in NOT_LEARNING and v is not None}
        return {k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in config.items()}


@dataclass
class Group:
    """The runs of one configuration, sorted by their seeds, and the label that tells it from others of its task."""

    label: str
    runs: list[Run]


@dataclass
class Task:
    """The groups of one environment, and each option that differs between them with its text in each group."""

    name: str
    groups: list[Group]
    differences: dict[str, list[str]]


@dataclass
class Curve:
    """A metric over the seeds of a group: frames, the edges of the band and the median, each ``[points]``."""

    frames: np.ndarray
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Reads runs.

    Args:
        paths (sequence of Path): folders of runs, or folders above several.

    Returns:
        The runs, each once, and a sentence about every one below a path that cannot be read.

    Raises:
        FileNotFoundError: if a path is not there, or no run is at or below it.
        ValueError: if a run that was named, or every run, cannot be read.
    """
    runs: dict[Path, Run] = {}
    left_out: list[str] = []
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is not a folder. Name the folder of a run, or one above several.")
        folders = sorted(file.parent for file in path.rglob("metrics.csv"))
        if not folders:
            raise FileNotFoundError(
                f"{path} is not a run, and there is none below it (no metrics.csv). A run writes its first row after "
                "its first update; the end of its output names its folder."
            )
        for folder in folders:
            try:
                runs.setdefault(folder.resolve(), read_run(folder))
            except ValueError as error:
                if folder == path:
                    raise
                left_out.append(f"{folder} is left out: {error}")
    if not runs:
        raise ValueError("\n".join(left_out))
    return list(runs.values()), left_out


def read_run(path: Path) -> Run:
    """Reads the folder of a run.

    Raises:
        ValueError: if the configuration or the metrics are missing, empty, damaged or of another program.
    """
    config_path, metrics_path = path / "config.yaml", path / "metrics.csv"
    if not config_path.exists():
        raise ValueError(f"{path} has no config.yaml: it is not a whole run folder. Copy it again, with config.yaml.")
    try:
        config = yaml.safe_load(config_path.read_bytes())
        options = dict(_flat(config)) if isinstance(config, dict) else {}
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{config_path} is not readable YAML: {error}. Restore it, or leave this run out.") from error
    if not options:
        raise ValueError(f"{config_path} holds no options. Restore it, or leave this run out.")
    metrics = {name: np.array(values) for name, values in read_metrics(metrics_path).items()}
    if "frames" not in metrics:
        raise ValueError(f"{metrics_path} has no rows of a training run. Wait for the first update, or leave it out.")
    videos = [*path.glob("video.mp4"), *sorted((path / "checkpoints").glob("*.mp4"), reverse=True)]
    return Run(path, options, metrics, videos)


def _flat(node: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def group_runs(runs: Sequence[Run]) -> list[Task]:
    """Sorts runs into tasks, and into groups that differ in nothing but the seed and options that learning ignores.

    Args:
        runs (sequence of Run): the runs, in any order.
    """
    found: dict[str, dict[str, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: run.seed if isinstance(run.seed, int) else np.inf):
        groups = found.setdefault(str(run.config.get("env.name", "unnamed environment")), {})
        groups.setdefault(json.dumps(run.options(), sort_keys=True), []).append(run)
    tasks = []
    for name, groups in found.items():
        configs = [group[0].options() for group in groups.values()]
        table = {key: [config.get(key, "-") for config in configs] for config in configs for key in config}
        differences = {key: row for key, row in table.items() if len(set(row)) > 1}
        labels = _labels(differences, [config.get("policy.name", "run") for config in configs])
        tasks.append(Task(name, [Group(*pair) for pair in zip(labels, groups.values(), strict=True)], differences))
    return tasks


def _labels(differences: dict[str, list[str]], policies: list[str]) -> list[str]:
    """Names groups by the values of as few options as tell them apart, or by their policies."""
    labels: list[tuple[str, ...]] = [()] * len(policies)
    for key in sorted(differences, key=lambda key: (key != "policy.name", not key.endswith(".name"))):
        name = "" if key.endswith(".name") else f"{key}="
        longer = [(*label, name + value) for label, value in zip(labels, differences[key], strict=True)]
        if len(set(longer)) > len(set(labels)):
            labels = longer
    return [", ".join(label) or policy for label, policy in zip(labels, policies, strict=True)]


def curve(runs: Sequence[Run], column: str) -> Curve | None:
    """Computes the curve of a metric over the seeds, on a grid of frames that they share.

    Each seed is interpolated between its own points; where it has more than :data:`POINTS`, means of neighbours stand
    for them. The band holds all of few seeds, and the middle half of five or more. Median and band are those of the
    seeds that have values at a point.

    Args:
        runs (sequence of Run): the seeds.
        column (str): the column of the metrics.

    Returns:
        The curve, or ``None`` if no run has a value.
    """
    known = []
    for run in runs:
        points = np.stack([run.metrics["frames"], run.column(column)])
        points = points[:, np.isfinite(points[1])]
        if size := points.shape[1]:
            starts = np.arange(0, size, -(-size // POINTS))
            known.append(np.add.reduceat(points, starts, 1) / np.diff([*starts, size]))
    if not known:
        return None
    grid = known[0][0]
    if any(not np.array_equal(x, grid) for x, _ in known):
        grid = np.linspace(min(x[0] for x, _ in known), max(x[-1] for x, _ in known), max(len(x) for x, _ in known))
    seeds = np.stack([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in known])
    edge = 0.25 if len(seeds) >= QUARTILES_FROM else 0.0
    is_known = np.isfinite(seeds).any(0)
    band = np.full((3, len(grid)), np.nan)
    band[:, is_known] = np.nanquantile(seeds[:, is_known], [edge, 0.5, 1 - edge], axis=0)
    return Curve(grid, *band)
