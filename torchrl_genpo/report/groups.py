# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Runs that differ only in the seed as one: names, differences of configuration, statistics over the seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchrl_genpo.report.reading import Run

__all__ = ["Group", "Task", "curves", "group_runs", "option_text", "seed_order", "spread"]

POINTS = 200  # of a curve, at most
QUARTILES_FROM = 5  # seeds; below, the band holds all of them
NOT_LEARNING = ("seed", "resume", "evaluate", "video", "logger", "num_threads", "checkpoint", "tolerance")
"""Options that change nothing that is learned."""
NAMING = ("policy.name", "start.name", "solver.name", "policy", "start", "solver", "loss", "optim")  # first to tell


@dataclass
class Group:
    """Runs of one configuration.

    Args:
        label (str): what tells it from the others of its task.
        runs (list of Run): sorted by their seeds.
    """

    label: str
    runs: list[Run]

    @property
    def seeds(self) -> list[Any]:
        """Of the runs."""
        return [run.seed for run in self.runs]


@dataclass
class Task:
    """What was trained on one environment.

    Args:
        name (str): of the environment.
        groups (list of Group): in the order in which their runs were given.
        differences (dict): option to its value in each group, for the options that differ between them.
    """

    name: str
    groups: list[Group]
    differences: dict[str, list[Any]]

    @property
    def runs(self) -> list[Run]:
        """Of all groups."""
        return [run for group in self.groups for run in group.runs]


class _Missing:
    """The value of an option that is null, or that a configuration does not have: an older one is not another."""

    def __repr__(self) -> str:
        return "-"


MISSING = _Missing()


def group_runs(runs: Sequence[Run]) -> list[Task]:
    """Sorts runs into tasks, and into groups that differ in nothing but the seed.

    Args:
        runs (sequence of Run): in any order.
    """
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        config = {key: value for key, value in run.config.items() if _is_learning(key) and value is not None}
        groups = found.setdefault(str(run.config.get("env.name", "unnamed environment")), {})
        groups.setdefault(json.dumps(config, sort_keys=True, default=str), []).append(run)
    tasks = []
    for name, groups in found.items():
        members = [sorted(group, key=seed_order) for group in groups.values()]
        differences = _differences([group[0].config for group in members])
        labels = _labels(differences, members)
        tasks.append(Task(name, [Group(*pair) for pair in zip(labels, members, strict=True)], differences))
    return tasks


def seed_order(run: Run) -> tuple[float, str]:
    """The key that sorts runs by their seeds."""
    return (run.seed, "") if isinstance(run.seed, int) else (float("inf"), str(run.seed))


def _differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Options whose values are not the same in all configurations, with those values."""
    keys = dict.fromkeys(key for config in configs for key in config if _is_learning(key))
    values = {key: [MISSING if (v := config.get(key)) is None else v for config in configs] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _is_learning(key: str) -> bool:
    return key.split(".")[0] not in NOT_LEARNING


def _labels(differences: Mapping[str, list[Any]], groups: Sequence[Sequence[Run]]) -> list[str]:
    """Names that say in what a group departs from most of the others, no longer than it takes to tell them apart."""
    policies = [str(group[0].config.get("policy.name", "run")) for group in groups]
    parts = {key: _departures(key, differences[key]) for key in sorted(differences, key=_rank)}
    for key in reversed(list(parts)):
        shorter = {other: part for other, part in parts.items() if other != key}
        before, after = _joined(parts, len(groups)), _joined(shorter, len(groups))
        empties = after.count("") > before.count("")  # a group whose only departure this was
        if not (key.endswith(".name") or empties) and len(set(after)) == len(set(before)):
            parts = shorter
    labels = _joined(parts, len(groups))
    brief = _joined(
        {key: ["" if part.startswith("no ") else part for part in row] for key, row in parts.items()}, len(groups)
    )
    if len(set(brief)) == len(set(labels)):
        labels = brief
    labels = [label or policy for label, policy in zip(labels, policies, strict=True)]
    repeated = {label for label in labels if labels.count(label) > 1}  # such as 1 and "1", which look the same
    return [f"{label} ({i + 1})" if label in repeated else label for i, label in enumerate(labels)]


def _joined(parts: Mapping[str, list[str]], count: int) -> list[str]:
    return [", ".join(row[i] for row in parts.values() if row[i]) for i in range(count)]


def _departures(key: str, values: list[Any]) -> list[str]:
    """What a label says of an option: nothing where it has the usual value."""
    counts = [sum(value == other for other in values) for value in values]
    usual = counts.index(max(counts))
    if key == "policy.name" or 2 * counts[usual] <= len(values):
        usual = -1
    return ["" if usual >= 0 and value == values[usual] else _part(key, value) for value in values]


def _part(key: str, value: Any) -> str:
    if value is MISSING:
        return f"no {key}"
    return str(value) if key.endswith(".name") else f"{key}={option_text(value)}"


def option_text(value: Any) -> str:
    """The value of an option as YAML has it."""
    if isinstance(value, str | _Missing):
        return str(value)
    return json.dumps(value, default=str)


def _rank(key: str) -> int:
    return next((i for i, name in enumerate(NAMING) if key == name or key.startswith(f"{name}.")), len(NAMING))


def curves(runs: Sequence[Run], column: str) -> dict[str, np.ndarray] | None:
    """A column of the metrics over the seeds, on a grid of frames that they share.

    Between its own points a seed is interpolated; where one has more than :data:`POINTS`, means of neighbours stand for
    them. Median and band are those of the seeds that have values there.

    Args:
        runs (sequence of Run): the seeds.
        column (str): of the metrics.

    Returns:
        ``frames``, ``seconds`` (the wall-clock at the seeds' median pace), ``low``, ``median`` and ``high``
        ``[points]``, and ``seeds`` ``[seeds, points]``, ``nan`` where not known; ``None`` if no run has a value.
    """
    known = []
    for run in runs:
        frames, values = run.column("frames"), run.column(column)
        keep = np.isfinite(values)
        known.append(_thin(frames[keep], values[keep]))
    drawn = [x for x, _ in known if len(x)]
    if not drawn:
        return None
    if all(np.array_equal(x, drawn[0]) for x in drawn):
        grid = drawn[0]
    else:
        grid = np.linspace(min(x[0] for x in drawn), max(x[-1] for x in drawn), max(len(x) for x in drawn))
    seeds = np.stack([_interpolate(grid, *points) for points in known])
    low, median, high = spread(seeds)
    return {"frames": grid, "seconds": _clock(runs, grid), "low": low, "median": median, "high": high, "seeds": seeds}


def _interpolate(grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.interp(grid, x, y, left=np.nan, right=np.nan) if len(x) else np.full(len(grid), np.nan)


def _clock(runs: Sequence[Run], grid: np.ndarray) -> np.ndarray:
    """Seconds at the frames of a grid: sums of the median step, so that it never runs backwards where a seed ends."""
    points = np.concatenate([[0.0], grid])
    times = []
    for run in runs:
        frames, seconds = run.column("frames"), run.column("time/seconds")
        keep = np.isfinite(seconds) & (frames > 0)  # no time is told for an evaluation before training
        times.append(_interpolate(points, np.array([0.0, *frames[keep]]), np.array([0.0, *seconds[keep]])))
    steps = np.ma.masked_invalid(np.diff(times, axis=1))
    return np.cumsum(np.ma.median(steps, axis=0).filled(np.nan))


def spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower edge of the band, median and upper edge, over the first axis.

    The band holds all of few values, and the middle half of five or more.

    Args:
        values (np.ndarray): ``[seeds, points]``, ``nan`` where not known.

    Example:
        >>> [value.item() for value in spread(np.array([[1.0], [5.0], [2.0]]))]
        [1.0, 2.0, 5.0]
        >>> [value.item() for value in spread(np.array([[0.0], [1.0], [2.0], [3.0], [100.0]]))]
        [1.0, 2.0, 3.0]
    """
    edge = 0.25 if len(values) >= QUARTILES_FROM else 0.0
    known = np.isfinite(values).any(0)
    low, median, high = np.full((3, values.shape[1]), np.nan)
    low[known], median[known], high[known] = np.nanquantile(values[:, known], [edge, 0.5, 1 - edge], axis=0)
    return low, median, high


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= POINTS:
        return x, y
    starts = np.arange(0, len(x), -(-len(x) // POINTS))
    sizes = np.diff([*starts, len(x)])
    return np.add.reduceat(x, starts) / sizes, np.add.reduceat(y, starts) / sizes
