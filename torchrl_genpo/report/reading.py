# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Reading run folders for a report: what a killed process left damaged is left out and told."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from torchrl_genpo.config.command_line import as_word

__all__ = ["Run", "read_run", "read_runs"]

LARGE_INVERSION_ERROR = 0.01  # nats; likelihood ratios are then off by one percent, a twentieth of the usual clipping
LARGEST = 1e100  # values beyond it count as infinite, which no axis can show
MAX_CONFIG = 2**20  # characters of a config.yaml; those of genpo-train are 100 times shorter


@dataclass
class Run:
    """A training run as its folder tells it.

    Args:
        path (Path): the folder.
        config (dict): the value of every option by its dotted name.
        metrics (dict): the columns of ``metrics.csv``, arrays ``[updates]``, ``nan`` where a field is empty.
        damaged (list of int): the lines of ``metrics.csv`` that could not be read and were left out.
        videos (list of Path): the mp4 files of the run, the final policy's first.
    """

    path: Path
    config: dict[str, Any]
    metrics: dict[str, np.ndarray]
    damaged: list[int]
    videos: list[Path]

    @property
    def seed(self) -> Any:
        """The seed that the configuration names, or ``None``."""
        return self.config.get("seed")

    @property
    def frames(self) -> int:
        """The number of frames that were collected so far."""
        return int(self.metrics["frames"][-1])

    @property
    def seconds(self) -> float:
        """The wall-clock time of training so far, in seconds."""
        return float(np.nanmax(self.column("time/seconds"), initial=0.0))

    def column(self, name: str) -> np.ndarray:
        """A column of the metrics, ``[updates]``; ``nan`` where the value is unknown or too large to draw."""
        values = self.metrics.get(name, np.full(len(self.metrics["frames"]), np.nan))
        return np.where(np.abs(values) < LARGEST, values, np.nan)

    def last_evaluation(self) -> tuple[int, dict[str, float]]:
        """The frames and the values of the newest row that holds an evaluation; ``(0, {})`` if there is none."""
        columns = {name: self.column(name) for name in self.metrics if name.startswith("eval/")}
        for row in reversed(range(len(self.metrics["frames"]))):
            values = {name: float(column[row]) for name, column in columns.items()}
            if np.isfinite([*values.values()]).any():
                return int(self.metrics["frames"][row]), values
        return 0, {}

    def warnings(self) -> Iterator[str]:
        """Yields a sentence for each thing that a reader of the curves should know."""
        if self.damaged:
            lines = ", ".join(map(str, self.damaged[:5])) + (", ..." if len(self.damaged) > 5 else "")
            yield f"{len(self.damaged)} damaged rows of metrics.csv were left out (lines {lines})."
        total = self.config.get("collector.total_frames")
        if isinstance(total, int) and self.frames < total:
            yield (
                f"The run is unfinished: {self.frames:,} of {total:,} frames ({self.frames / total:.0%}). Beyond them, "
                "its group's median is that of the other seeds. If it is not running, continue it with "
                f"{as_word('resume', str(self.path))}"
            )
        is_fresh = ~(self.column("collect/staleness") > 0)  # with stale data the gap is the change of the policy
        errors = np.where(is_fresh, self.metrics.get("train/inversion_error", np.nan), np.nan)
        large = int((errors > LARGE_INVERSION_ERROR).sum())
        if large:
            yield (
                f"The inversion error reached {np.nanmax(errors):.2g} nats and was above {LARGE_INVERSION_ERROR:g} in "
                f"{large} of {len(errors)} updates: likelihood ratios are not exact there. A larger solver.sigma or a "
                "smaller solver.num_steps makes the inversion more precise."
            )
        infinite = [name for name, values in self.metrics.items() if (np.abs(values) >= LARGEST).any()]
        if infinite:
            yield f"Infinite values are not drawn: {', '.join(infinite)}."
        if not self.last_evaluation()[1]:
            yield "The run was never evaluated so far."


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """Reads runs.

    Args:
        paths (sequence of Path): folders of runs, or folders above several.

    Returns:
        The runs, each once, and the folders below a path that hold a run which cannot be read, each with the reason.

    Raises:
        FileNotFoundError: if a path is not there, or no run is at or below it.
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

    Raises:
        ValueError: if the configuration or the metrics are missing, empty, damaged or of another program.
    """
    videos = [*path.glob("video.mp4"), *sorted((path / "checkpoints").glob("*.mp4"), reverse=True)]
    return Run(path, _read_config(path), *_read_metrics(path / "metrics.csv"), videos)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    if not path.exists():
        raise ValueError(f"{folder} has no config.yaml: it is not a whole run folder. Copy it again, with config.yaml.")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        # no run of ours has aliases, and nested ones unpack to more than the memory holds
        if len(text) > MAX_CONFIG or any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError("it is too long or has aliases, so no run of genpo-train wrote it")
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable YAML: {error}. Restore it, or leave this run out.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no options. Restore it, or leave this run out.")
    return dict(_flat(config))


def _flat(node: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_metrics(path: Path) -> tuple[dict[str, np.ndarray], list[int]]:
    """Reads the columns, and the numbers of the lines that are cut short, not numbers, or not after the line before."""
    rows: list[list[float]] = []
    damaged: list[int] = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.reader(line.replace("\0", "?") for line in file)
        try:
            header = next(reader, [])
            for fields in reader:
                try:
                    row = [float(value or "nan") for value in fields]
                except ValueError:
                    row = []
                if len(row) == len(header) and (rows[-1][0] if rows else -1) < row[0] < LARGEST:
                    rows.append(row)
                else:
                    damaged.append(reader.line_num)
        except csv.Error as error:
            raise ValueError(f"{path} is damaged: {error}. Restore it, or leave this run out.") from error
    if header[:1] != ["frames"]:
        program = "pretrain.py, which reports do not cover" if "iteration" in header else "another program"
        raise ValueError(f"{path} has no first column 'frames': it is not of genpo.py but of {program}.")
    if not rows:
        raise ValueError(f"{path} has no readable row yet. Wait for the first update, or leave this run out.")
    return dict(zip(header, np.array(rows).T, strict=True)), damaged
