# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One self-contained HTML page: curves, evaluations, configurations and videos of runs."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

import torchrl_genpo
from torchrl_genpo.report.catalogue import OWN, Chart, charts
from torchrl_genpo.report.groups import Group, Task, curves, group_runs, option_text, seed_order
from torchrl_genpo.report.reading import read_runs
from torchrl_genpo.runs import METRICS, write_atomically

__all__ = ["write_report"]

ASSETS = Path(__file__).parent / "assets"
COLORS = 8  # of page.css; a further group has one of these again, dashed
HIGHER_IS_BETTER = ("return", "success")
CLOCK_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def write_report(paths: Sequence[Path], output: Path, video_limit: float = 50.0) -> list[str]:
    """Writes the report of some runs.

    Args:
        paths (sequence of Path): folders of runs, or folders above several.
        output (Path): the page; an old one is replaced in one step.
        video_limit (float, optional): size of all embedded videos together, in MB. Defaults to ``50``.

    Returns:
        The warnings that the page shows.

    Raises:
        FileNotFoundError: if a path holds no run, or the folder of ``output`` is not there.
        ValueError: if a run that was named cannot be read.
    """
    if not output.parent.is_dir() or output.is_dir():
        raise FileNotFoundError(f"--output {output}: name a file in a folder that exists.")
    runs, left_out = read_runs(paths)
    tasks = group_runs(runs)
    warnings = [(path, f"Left out: {reason}") for path, reason in left_out]
    warnings += [(run.path, text) for run in runs for text in run.warnings()]
    warnings += [warning for task in tasks for group in task.groups for warning in _repeated(group)]
    colors = {label: i for i, label in enumerate(dict.fromkeys(g.label for task in tasks for g in task.groups))}
    videos, passed_over = _videos(tasks, video_limit * 1e6)
    warnings += passed_over
    style = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in ("uPlot.min.css", "page.css"))
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in ("uPlot.iife.min.js", "page.js"))
    environment = Environment(
        loader=PackageLoader("torchrl_genpo.report", "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    pages = [_task(task, colors, videos) for task in tasks]
    page = environment.get_template("page.html.jinja").render(
        title=tasks[0].name if len(tasks) == 1 else f"{len(tasks)} tasks",
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        written=datetime.now().astimezone(),
        software=f"torchrl_genpo {torchrl_genpo.__version__}, torchrl {version('torchrl')}, torch {version('torch')}",
        runs=runs,
        seeds=dict.fromkeys(str(run.seed) for run in sorted(runs, key=seed_order)),
        labels=colors,
        colors=COLORS,
        warnings=warnings,
        tasks=pages,
        data={"labels": list(colors), "colors": COLORS, "tasks": [_data(task) for task in pages]},
        own=OWN,
        duration=duration,
        option_text=option_text,
    )
    write_atomically(output, page.encode("utf-8", "replace").decode())  # a folder's name need not be Unicode
    return [f"{path}: {text}" for path, text in warnings]


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> duration(42), duration(400.5), duration(9000)
        ('42 s', '6.7 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def number(value: float) -> str:
    """A value for people, with about four digits; a dash where it is not known.

    Example:
        >>> number(4260.4), number(3.14159), number(0.00001234), number(float("nan"))
        ('4260', '3.14', '1.23e-05', '-')
    """
    if not np.isfinite(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _repeated(group: Group) -> Iterator[tuple[Path, str]]:
    for before, run in pairwise(group.runs):
        if run.seed == before.seed:
            yield run.path, f"The same configuration and seed {run.seed} as {before.path}; each counts as a seed."


def _videos(tasks: Sequence[Task], limit: float) -> tuple[dict[Path, str], list[tuple[Path, str]]]:
    """Videos as text by their path, as many as fit into ``limit`` bytes, and warnings of the others."""
    embedded: dict[Path, str] = {}
    passed_over = []
    candidates = [(rank, run, path) for task in tasks for run in task.runs for rank, path in enumerate(run.videos)]
    for _, run, path in sorted(candidates, key=lambda candidate: candidate[0]):  # of every run the first, then others
        size = path.stat().st_size
        if size > limit:
            text = f"{path.name} ({size / 1e6:.1f} MB) not embedded: over the limit, which --video-limit MB raises."
            passed_over.append((run.path, text))
            continue
        limit -= size
        embedded[path] = base64.b64encode(path.read_bytes()).decode()
    return embedded, passed_over


def _task(task: Task, colors: Mapping[str, int], videos: Mapping[Path, str]) -> dict[str, Any]:
    """What the template and the script need to know of a task."""
    measured = [column for run in task.runs for column in run.metrics if np.isfinite(run.metrics[column]).any()]
    longest = max(run.seconds for run in task.runs)
    unit, seconds = next((pair for pair in CLOCK_UNITS if longest >= 2 * pair[1]), CLOCK_UNITS[-1])
    sections: dict[str, list[dict[str, Any]]] = {}
    for name, section in charts(measured).items():
        sections[name] = []
        for chart in section:
            columns = [run.column(chart.column) for run in task.runs]
            data = {
                "log": chart.is_log and all((values[np.isfinite(values)] > 0).all() for values in columns),
                "groups": [colors[group.label] for group in task.groups],
                "curves": [_curve(group, chart.column, seconds) for group in task.groups],
            }
            sections[name].append({"chart": chart, "summary": _summary(task, chart), "data": data})
    return {
        "name": task.name,
        "groups": task.groups,
        "differences": task.differences,
        "sections": sections,
        "not_measured": [column for column in METRICS if column not in measured],
        "table": _table(task),
        "axes": {
            "frames": {"label": "frames", "end": max(run.frames for run in task.runs)},
            "clock": {"label": unit, "end": longest / seconds},
        },
        "videos": [
            {"label": group.label, "run": run, "name": path.name, "data": videos[path]}
            for group in task.groups
            for run in group.runs
            for path in run.videos
            if path in videos
        ],
    }


def _data(task: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a task that the script reads."""
    items = [item for section in task["sections"].values() for item in section]
    return {"axes": task["axes"], "charts": {item["chart"].column: item["data"] for item in items}}


def _curve(group: Group, column: str, unit: float) -> dict[str, list[Any]] | None:
    """Of one group, as the script draws it; ``unit`` seconds of its wall-clock are one of the axis."""
    found = curves(group.runs, column)
    if found is None:
        return None
    rows = [found[name] for name in ("low", "median", "high")]
    return {
        "frames": _rounded(found["frames"]),
        "clock": _rounded(found["seconds"] / unit),
        "rows": [_rounded(row) for row in [*rows, *found["seeds"]]],
    }


def _rounded(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _summary(task: Task, chart: Chart) -> str:
    """The chart in words: where each group ends."""
    parts = []
    for group in task.groups:
        columns = [run.column(chart.column) for run in group.runs]
        ends = [values[np.isfinite(values)][-1] for values in columns if np.isfinite(values).any()]
        if ends:
            spread = f" ({number(min(ends))} to {number(max(ends))} over {len(ends)} seeds)" if len(ends) > 1 else ""
            parts.append(f"{group.label} ends at {number(float(np.median(ends)))}{spread}")
    return "; ".join(parts)


def _table(task: Task) -> list[dict[str, Any]]:
    """The last evaluation: of every statistic a row for each group, with the median and each seed."""
    last = {run.path: run.last_evaluation() for run in task.runs}
    columns = dict.fromkeys(column for _, values in last.values() for column in values)
    names = dict.fromkeys(column.split("_noise/")[-1] for column in columns)
    table = []
    for name in names:
        rows: list[dict[str, Any]] = []
        for group in task.groups:
            ends = [last[run.path] for run in group.runs if last[run.path][1]]
            cells = [[v.get(f"eval/{noise}_noise/{name}", np.nan) for _, v in ends] for noise in ("zero", "random")]
            frames = float(np.median([frames for frames, _ in ends])) if ends else np.nan
            rows.append({"group": group, "frames": frames, "cells": [_cell(values) for values in cells]})
        if any(np.isfinite(cell["median"]) for row in rows for cell in row["cells"]):
            table.append({"name": name, "rows": rows})
            if len(rows) > 1 and name in HIGHER_IS_BETTER:
                for i in range(2):
                    medians = [row["cells"][i]["median"] for row in rows]
                    if np.isfinite(medians).any():
                        rows[int(np.nanargmax(medians))]["cells"][i]["is_best"] = True
    return table


def _cell(values: Sequence[float]) -> dict[str, Any]:
    known = [value for value in values if np.isfinite(value)]
    median = float(np.median(known)) if known else float("nan")
    return {"median": median, "text": number(median), "seeds": [number(value) for value in values], "is_best": False}
