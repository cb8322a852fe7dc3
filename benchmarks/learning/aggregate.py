# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Computes one number from many tasks and seeds: interquartile means with stratified bootstrap intervals.

``curves.py`` uses it. The returns of a task are normalised so that 0 is where training begins and 1 is what Gaussian
PPO reaches on average; a policy counts with the seeds that it finished on every task. The intervals are those of
``rliable``.

References:
    Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", arXiv 2108.13264.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._lib.report import origins, pyplot, save
from benchmarks._lib.runs import last

BASE = "gaussian"
COLUMNS = {mode: f"eval/{mode}_noise/return" for mode in ("zero", "random")}
POINTS = 40
"""The number of points of a curve."""
FEWEST_SEEDS = 3
"""The fewest seeds that an interval is given for: one or two, resampled, say nothing of the others."""
Records = Sequence[dict[str, Any]]


def task_sets(records: Records) -> list[list[str]]:
    """Returns the tasks that most seeds of the base finished, then with those that fewer finished, and so on."""
    seeds: dict[str, set[int]] = {}
    for record in records:
        if record["policy"] == BASE:
            seeds.setdefault(record["task"], set()).add(record["seed"])
    sets = {len(own): [task for task in seeds if seeds[task] >= own] for own in seeds.values()}
    return [sets[count] for count in sorted(sets, reverse=True)]


def scales(records: Records, tasks: Sequence[str], column: str) -> dict[str, tuple[float, float]]:
    """Returns for each task the return at which training begins and the mean with which the base ends."""
    found = {}
    for task in tasks:
        chosen = [record for record in records if record["task"] == task]
        start = statistics.median(next(v for v in r["curves"]["train/return"] if v is not None) for r in chosen)
        end = statistics.mean(last(record, column) for record in chosen if record["policy"] == BASE)
        if abs(end - start) < 1e-9:
            raise ValueError(f"{BASE} did not learn {task} (return {end:.4g}): its scores cannot be normalised.")
        found[task] = (start, end)
    return found


def complete_runs(records: Records, policies: Sequence[str], tasks: Sequence[str]) -> dict[str, list[list[dict]]]:
    """Returns the records ``[seed][task]`` of the policies that finished every task, the base first."""
    found = {}
    for policy in sorted(policies, key=lambda policy: policy != BASE):
        by_key = {(r["seed"], r["task"]): r for r in records if r["policy"] == policy}
        seeds = sorted({seed for seed, _ in by_key})
        rows = [[by_key[seed, task] for task in tasks] for seed in seeds if all((seed, t) in by_key for t in tasks)]
        if rows:
            found[policy] = rows
    return found


def final_scores(runs: Sequence[Sequence[dict]], scale: Mapping[str, tuple[float, float]], column: str) -> np.ndarray:
    """Returns the normalised returns at the end, ``[seeds, tasks]``."""
    return np.array([[_normalise(last(record, column), scale[record["task"]]) for record in row] for row in runs])


def curves(runs: Sequence[Sequence[dict]], scale: Mapping[str, tuple[float, float]]) -> np.ndarray:
    """Returns the normalised training returns ``[seeds, tasks, POINTS]`` at even fractions of a run."""
    returns = []
    for row in runs:
        returns.append([])
        for record in row:
            columns = [record["curves"][key] for key in ("frames", "train/return")]
            points = np.array([point for point in zip(*columns, strict=True) if point[1] is not None])
            grid = np.linspace(0, points[-1, 0], POINTS + 1)[1:]
            returns[-1].append(_normalise(np.interp(grid, points[:, 0], points[:, 1]), scale[record["task"]]))
    return np.array(returns)


def _normalise(value: Any, scale: tuple[float, float]) -> Any:
    start, end = scale
    return (value - start) / (end - start)


def intervals(scores: Mapping[str, Any], function: Any, reps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a function's value for each policy's scores, and its 95 % stratified bootstrap interval.

    The interval is NaN where there are fewer than ``FEWEST_SEEDS`` seeds.
    """
    try:
        from rliable.library import get_interval_estimates
    except ImportError as error:
        raise ImportError("Intervals need rliable: pip install -e '.[benchmarks]'.") from error
    values, bounds = {}, {}
    for policy, score in scores.items():  # one by one, so that no interval depends on which others there are
        np.random.seed(0)  # rliable draws from NumPy's own generator, whatever random_state it is given
        found = get_interval_estimates({policy: score}, function, reps=reps)
        values |= found[0]
        seeds = len(score[0] if isinstance(score, tuple) else score)
        bounds |= {policy: found[1][policy] if seeds >= FEWEST_SEEDS else np.full_like(found[1][policy], np.nan)}
    return values, bounds


def iqm(scores: np.ndarray) -> np.ndarray:
    """Returns the interquartile mean over seeds and tasks, of each point where there are several."""
    from scipy.stats import trim_mean  # rliable's own gives the same and takes one point at a time

    return np.atleast_1d(trim_mean(scores.reshape(-1, *scores.shape[2:]), 0.25))


def improvement(scores: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Returns the probability that a run of one policy ends above one of the base on the same task, mean over tasks.

    It equals rliable's own without SciPy's test, because the bootstrap asks for it 50,000 times.
    """
    above, ties = scores[:, None] > base, scores[:, None] == base
    return np.array([(above + ties / 2).mean()])


def report(
    records: Records, labels: Mapping[str, str], path: Path, drawn: Mapping[str, float], reps: int = 2000
) -> None:
    """Writes ``path.md``, a table for each of the ``task_sets``, and ``path.png`` of the first.

    The picture has the ends of all policies, and over frames and over time the curves of those in ``drawn``, which maps
    them to the time of their whole run as a ratio to the base's.
    """
    sets = task_sets(records)
    if not sets:
        raise ValueError(f"No task has been finished by every seed of {BASE}; IQMs are relative to it.")
    lines, chosen = [], []
    for tasks in sets:
        runs = complete_runs(records, list(labels), tasks)
        ends = {mode: _ends(records, runs, tasks, column, reps) for mode, column in COLUMNS.items()}
        lines += [
            f"{'##' if lines else '#'} Learning over {len(tasks)} tasks: {', '.join(tasks)}",
            "",
            "Interquartile mean of the normalised returns at the end (0: where training begins, 1: Gaussian PPO's "
            "mean) and the probability of ending above Gaussian PPO, with 95 % stratified bootstrap intervals "
            f"({reps:,} resamples, rliable) of {FEWEST_SEEDS} seeds or more.",
            "",
            "| policy | seeds | IQM, zero noise | P(above Gaussian) | IQM, random noise | P(above Gaussian) |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for policy, rows in runs.items():
            cells = [cell for mode in COLUMNS for cell in _cells(policy, *ends[mode])]
            lines.append(f"| {labels[policy]} | {len(rows)} | {' | '.join(cells)} |")
        left_out = [labels[policy] for policy in labels if policy not in runs and _has(records, policy)]
        if left_out:
            lines += ["", f"Left out, for no seed has finished every task: {', '.join(left_out)}."]
        lines.append("")
        chosen += [record for rows in runs.values() for row in rows for record in row]
        if tasks is sets[0]:
            curve_runs = {policy: rows for policy, rows in runs.items() if policy in drawn}
            scale = scales(records, tasks, COLUMNS["random"])
            _draw(ends, curve_runs, drawn, labels, scale, path.with_suffix(".png"), max(50, reps // 10))
    lines += origins(chosen)[1:]
    save(path.with_suffix(".md"), lines)


def _ends(
    records: Records, runs: Mapping[str, Any], tasks: Sequence[str], column: str, reps: int
) -> tuple[dict[str, Any], ...]:
    """Returns each policy's IQM with its interval, and its probability of improvement over the base with its own."""
    scale = scales(records, tasks, column)
    scores = {policy: final_scores(rows, scale, column) for policy, rows in runs.items()}
    pairs = {policy: (scores[policy], scores[BASE]) for policy in runs}
    return (*intervals(scores, iqm, reps), *intervals(pairs, improvement, reps))


def _cells(policy: str, *ends: Mapping[str, np.ndarray]) -> list[str]:
    cells = []
    for values, bounds in (ends[:2], ends[2:]):
        low, high = bounds[policy][:, 0]
        cells.append(f"{values[policy][0]:.2f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]"))
    return [cells[0], "" if policy == BASE else cells[1]]


def _has(records: Records, policy: str) -> bool:
    return any(record["policy"] == policy for record in records)


def _draw(
    ends: Mapping[str, Any],
    runs: Mapping[str, Any],
    times: Mapping[str, float],
    labels: Mapping[str, str],
    scale: Mapping[str, Any],
    path: Path,
    reps: int,
) -> None:
    """Draws the ends with their intervals, and the curves over frames and over time."""
    points = {policy: curves(rows, scale) for policy, rows in runs.items()}
    values, bounds = intervals(points, iqm, reps)
    colors = {policy: f"C{color}" for color, policy in enumerate(runs)}
    figure, (left, *axes) = pyplot().subplots(1, 3, figsize=(13, 4.2), layout="constrained", width_ratios=(1.1, 1, 1))
    order = sorted(ends["zero"][0], key=lambda policy: ends["zero"][0][policy][0])
    for mode, shift, marker in (("zero", 0.15, "o"), ("random", -0.15, "D")):
        for row, policy in enumerate(order):
            value, (low, high) = ends[mode][0][policy][0], ends[mode][1][policy][:, 0]
            color = colors.get(policy, "0.6")
            left.plot([low, high], [row + shift] * 2, "-", color=color, lw=2)
            left.plot(value, row + shift, marker, color=color, ms=5, mfc=color if mode == "zero" else "white")
    left.axvline(1, color="k", lw=0.8)
    left.set_yticks(range(len(order)), [labels[policy] for policy in order])
    left.set(xlabel="IQM at the end, Gaussian PPO = 1", title="filled: zero noise, open: random noise")
    left.title.set_fontsize(9)
    fractions = np.linspace(0, 1, POINTS + 1)[1:]
    for policy in runs:
        for panel, x in zip(axes, (fractions, times[policy] * fractions), strict=True):
            panel.plot(x, values[policy], color=colors[policy], label=labels[policy])
            panel.fill_between(x, *bounds[policy], color=colors[policy], alpha=0.12, lw=0)
    for panel, label in zip(axes, ("fraction of the frames", "time (table1.md), Gaussian PPO = 1"), strict=True):
        panel.set(xlabel=label, ylim=axes[0].get_ylim())
    for panel in (left, *axes):
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("IQM of the training return")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
