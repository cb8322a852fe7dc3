# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Grouping runs that differ only in their seed: names, differences of configuration, statistics over the seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torchrl_genpo.report.reading import Run

__all__ = ["Group", "Task", "curves", "group_runs", "option_text", "spread"]

POINTS = 200  # the most points of a curve
QUARTILES_FROM = 5  # with fewer seeds, the band holds all of them
NOT_LEARNING = ("seed", "resume", "evaluate", "video", "logger", "num_threads", "checkpoint", "tolerance")
NAMING = (
    "policy.name",
    "start.name",
    "solver.name",
    "policy",
    "start",
    "solver",
    "loss",
    "optim",
)  # tried in this order


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


def group_runs(runs: Sequence[Run]) -> list[Task]:
    """Sorts runs into tasks, and into groups that differ in nothing but the seed and options that learning ignores.

    Args:
        runs (sequence of Run): the runs, in any order.
    """
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        groups = found.setdefault(str(run.config.get("env.name", "unnamed environment")), {})
        groups.setdefault(json.dumps(_options(run), sort_keys=True), []).append(run)
    tasks = []
    for name, groups in found.items():
        members = [sorted(group, key=_seed_order) for group in groups.values()]
        configs = [_options(group[0]) for group in members]
        table = {key: [config.get(key, "-") for config in configs] for config in configs for key in config}
        table = {key: row for key, row in table.items() if len(set(row)) > 1}
        labels = _labels(table, [str(group[0].config.get("policy.name", "run")) for group in members])
        differences = {key: [option_text(value) for value in row] for key, row in table.items()}
        tasks.append(Task(name, [Group(*pair) for pair in zip(labels, members, strict=True)], differences))
    return tasks


def _options(run: Run) -> dict[str, str]:
    """The options that matter for learning, as JSON; null ones are left out, as an older configuration lacks them."""
    config = {k: v for k, v in run.config.items() if k.split(".")[0] not in NOT_LEARNING and v is not None}
    return {key: json.dumps(value, skipkeys=True, default=str) for key, value in config.items()}


def option_text(value: str) -> str:
    """The value of an option for people, from its JSON: text without quotes.

    Example:
        >>> option_text('"tanh"'), option_text("[64, 64]"), option_text("-")
        ('tanh', '[64, 64]', '-')
    """
    return json.loads(value) if value.startswith('"') else value


def _seed_order(run: Run) -> tuple[float, str]:
    return run.seed if isinstance(run.seed, int) else np.inf, str(run.seed)


def _rank(option: str) -> int:
    return next((i for i, name in enumerate(NAMING) if f"{option}.".startswith(f"{name}.")), len(NAMING))


def _labels(table: Mapping[str, list[str]], policies: list[str]) -> list[str]:
    """Joins what is unusual in each group, of as few options as tell the groups apart."""
    labels: list[tuple[tuple[str, str], ...]] = [()] * len(policies)
    for key in sorted(table, key=_rank):
        row = table[key]
        most = max(row, key=row.count)
        usual = "" if key == "policy.name" else most if 2 * row.count(most) > len(row) else "-"
        name = "" if key.endswith(".name") else f"{key}="
        parts = [(f"no {key}" if value == "-" else name + option_text(value), value) for value in row]
        longer = [old if new[1] == usual else (*old, new) for old, new in zip(labels, parts, strict=True)]
        if len(set(longer)) > len(set(labels)):
            labels = longer
    texts = [", ".join(part for part, _ in label) or policy for label, policy in zip(labels, policies, strict=True)]
    # values such as 1 and "1" look the same
    return [f"{text} ({i + 1})" if texts.count(text) > 1 else text for i, text in enumerate(texts)]


def curves(runs: Sequence[Run], column: str) -> dict[str, np.ndarray] | None:
    """Computes the curve of a metric over the seeds, on a grid of frames that they share.

    Each seed is interpolated between its own points; where it has more than :data:`POINTS`, means of neighbours stand
    for them. Median and band are those of the seeds that have values at a point.

    Args:
        runs (sequence of Run): the seeds.
        column (str): the column of the metrics.

    Returns:
        ``frames``, ``seconds`` (the wall-clock time at the seeds' median pace), ``low``, ``median`` and ``high``
        ``[points]``, and ``seeds`` ``[seeds, points]``, ``nan`` where unknown; ``None`` if no run has a value.
    """
    known = []
    for run in runs:
        points = np.stack([run.metrics["frames"], run.column(column)])
        points = points[:, np.isfinite(points[1])]
        starts = np.arange(0, points.shape[1], -(-points.shape[1] // POINTS) or 1)
        known.append(
            np.add.reduceat(points, starts, 1) / np.diff([*starts, points.shape[1]]) if len(starts) else points
        )
    drawn = [x for x, _ in known if len(x)]
    if not drawn:
        return None
    if all(np.array_equal(x, drawn[0]) for x in drawn):
        grid = drawn[0]
    else:
        grid = np.linspace(min(x[0] for x in drawn), max(x[-1] for x in drawn), max(map(len, drawn)))
    seeds = np.full((len(runs), len(grid)), np.nan)
    for row, (x, y) in zip(seeds, known, strict=True):
        if len(x):
            row[:] = np.interp(grid, x, y, left=np.nan, right=np.nan)
    low, median, high = spread(seeds)
    seconds = grid * np.median([run.seconds / max(run.frames, 1) for run in runs])
    return {"frames": grid, "seconds": seconds, "low": low, "median": median, "high": high, "seeds": seeds}


def spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the lower edge of the band, the median and the upper edge over the first axis.

    The band holds all of few values, and the middle half of five or more.

    Args:
        values (np.ndarray): ``[seeds, points]``, ``nan`` where unknown.

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
