# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Run folders as a report reads them: tolerant of what a killed process left, and telling of it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torchrl.checkpoint import Checkpoint, CheckpointError

__all__ = ["Run", "read_run", "read_runs"]

LARGE_INVERSION_ERROR = 0.01
"""Of a log density, in nats: the likelihood ratio is then off by one percent, a twentieth of the usual clipping."""


@dataclass
class Run:
    """One run of the entry script ``genpo.py``, read from its folder.

    Args:
        path (Path): the folder.
        config (dict): the value of every option by its dotted name.
        config_text (str): ``config.yaml`` as it was written.
        metrics (dict): the columns of ``metrics.csv``, arrays ``[updates]``, ``nan`` where empty.
        damaged (list of int): lines of ``metrics.csv`` that could not be read, and were left out.
        written (datetime): when ``metrics.csv`` was last written.
        versions (dict): of the packages that wrote the newest checkpoint; empty without one.
        videos (list of Path): mp4 files of the run, the final policy's first.
    """

    path: Path
    config: dict[str, Any]
    config_text: str
    metrics: dict[str, np.ndarray]
    damaged: list[int] = field(default_factory=list)
    written: datetime = datetime.min
    versions: dict[str, str] = field(default_factory=dict)
    videos: list[Path] = field(default_factory=list)

    @property
    def seed(self) -> Any:
        """Of the configuration; ``None`` where that has none."""
        return self.config.get("seed")

    @property
    def frames(self) -> int:
        """That were collected so far."""
        return int(self.metrics["frames"][-1])

    @property
    def total_frames(self) -> int | None:
        """That the configuration asks for."""
        total = self.config.get("collector.total_frames")
        return total if isinstance(total, int) else None

    @property
    def is_finished(self) -> bool:
        """Whether all frames were collected."""
        return self.total_frames is None or self.frames >= self.total_frames

    @property
    def seconds(self) -> float:
        """Wall-clock of the whole run so far."""
        return float(np.nanmax(self.column("time/seconds"), initial=0.0))

    def column(self, name: str) -> np.ndarray:
        """A column of the metrics ``[updates]``, all ``nan`` if the run has none of that name."""
        return self.metrics.get(name, np.full(len(self.metrics["frames"]), np.nan))

    def last_evaluation(self) -> tuple[int, dict[str, float]]:
        """Frames and values of the newest row that holds an evaluation; ``(0, {})`` if there was none."""
        columns = {name: values for name, values in self.metrics.items() if name.startswith("eval/")}
        known = np.isfinite(list(columns.values())) if columns else np.zeros((0, len(self.metrics["frames"])), bool)
        rows = np.flatnonzero(known.any(0))
        if not len(rows):
            return 0, {}
        return int(self.metrics["frames"][rows[-1]]), {name: float(v[rows[-1]]) for name, v in columns.items()}

    def warnings(self) -> Iterator[str]:
        """What a reader of its curves should know, in sentences."""
        if self.damaged:
            lines = ", ".join(map(str, self.damaged[:5])) + (", ..." if len(self.damaged) > 5 else "")
            plural = "s" if len(self.damaged) > 1 else ""
            yield f"{len(self.damaged)} damaged row{plural} of metrics.csv left out (line{plural} {lines})."
        if not self.is_finished and self.total_frames:
            yield (
                f"Unfinished: {self.frames:,} of {self.total_frames:,} frames ({self.frames / self.total_frames:.0%}). "
                "Beyond, its group's median is that of the other seeds. "
                f"If it is not running, continue it with resume={self.path}."
            )
        errors = self.column("train/inversion_error")
        errors = np.where(self.column("collect/staleness") > 0, np.nan, errors)  # there it is the policy that moved
        large = int((errors > LARGE_INVERSION_ERROR).sum())
        if large:
            yield (
                f"The inversion error reached {np.nanmax(errors):.2g} nats and was above {LARGE_INVERSION_ERROR:g} in "
                f"{large} of {len(errors)} updates: likelihood ratios are not exact there. A larger solver.sigma or a "
                "smaller solver.num_steps makes the inversion more precise."
            )
        infinite = [name for name, values in self.metrics.items() if np.isinf(values).any()]
        if infinite:
            yield f"Infinite values, not drawn: {', '.join(infinite)}."
        if not self.last_evaluation()[1]:
            yield "Never evaluated so far."


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """Reads runs.

    Args:
        paths (sequence of Path): folders of runs, or folders above several.

    Returns:
        The runs, each once, and why folders were left out that hold a run but were not named themselves.

    Raises:
        FileNotFoundError: if a path is not there, or no run at or below it.
        ValueError: if a run that was named, or every run, cannot be read.
    """
    runs: dict[Path, Run] = {}
    left_out: list[tuple[Path, str]] = []
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is not a folder. Name the folder of a run, or one above several.")
        is_run = (path / "metrics.csv").exists()
        folders = [path] if is_run else sorted(file.parent for file in path.rglob("metrics.csv"))
        if not folders:
            raise FileNotFoundError(
                f"{path} is not a run, and there is none below it (no metrics.csv). A run writes its first row after "
                "its first update; the end of its output names its folder."
            )
        for folder in folders:
            try:
                runs.setdefault(folder.resolve(), read_run(folder))
            except ValueError as error:
                if is_run:
                    raise
                left_out.append((folder, str(error)))
    if not runs:
        raise ValueError("No run could be read:\n" + "\n".join(f"  {error}" for _, error in left_out))
    return list(runs.values()), left_out


def read_run(path: Path) -> Run:
    """Reads the folder of a run.

    Args:
        path (Path): of ``genpo.py``.

    Raises:
        ValueError: if configuration or metrics are missing, empty, damaged or of another program.
    """
    metrics_path, config_path = path / "metrics.csv", path / "config.yaml"
    if not config_path.exists():
        raise ValueError(f"{path} has no config.yaml: it is not a whole run folder. Copy it again, with config.yaml.")
    config_text = config_path.read_text(encoding="utf-8", errors="replace")
    try:
        # references stay as they are written: resolving one of a stranger could read this machine's environment
        config = OmegaConf.to_container(OmegaConf.create(config_text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{config_path} is not readable YAML: {error}. Restore it, or leave this run out.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{config_path} holds no options. Restore it, or leave this run out.")
    metrics, damaged = _read_metrics(metrics_path)
    if "frames" not in metrics:
        raise ValueError(
            f"{metrics_path} has no column 'frames': this is not a run of genpo.py"
            + (" but of pretrain.py, which reports do not cover." if "iteration" in metrics else ".")
        )
    if not len(metrics["frames"]):
        raise ValueError(f"{metrics_path} has no readable row yet. Wait for the first update, or leave this run out.")
    checkpoints = path / "checkpoints"
    return Run(
        path=path,
        config=dict(_flat(config)),
        config_text=config_text,
        metrics=metrics,
        damaged=damaged,
        written=datetime.fromtimestamp(metrics_path.stat().st_mtime).astimezone(),
        versions=_versions(checkpoints),
        videos=[*path.glob("video.mp4"), *sorted(checkpoints.glob("*.mp4"), reverse=True)],
    )


def _read_metrics(path: Path) -> tuple[dict[str, np.ndarray], list[int]]:
    """Columns, and the numbers of the lines that are cut short, not numbers, or do not follow the one before."""
    rows: list[list[float]] = []
    damaged: list[int] = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.reader(line.replace("\0", "?") for line in file)
        header = next(reader, [])
        for fields in reader:
            try:
                row = [float(value or "nan") for value in fields]
            except ValueError:
                row = []
            if len(row) == len(header) and row[0] < math.inf and (row[0] > rows[-1][0] if rows else row[0] >= 0):
                rows.append(row)
            else:
                damaged.append(reader.line_num)
    columns = np.array(rows).reshape(len(rows), len(header)).T
    return dict(zip(header, columns, strict=True)), damaged


def _flat(node: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _versions(checkpoints: Path) -> dict[str, str]:
    files = sorted(checkpoints.glob("*.torchrl"))
    try:
        return Checkpoint.manifest(files[-1])["versions"] if files else {}
    except (CheckpointError, OSError, KeyError):  # cut short: a report needs none of it
        return {}
