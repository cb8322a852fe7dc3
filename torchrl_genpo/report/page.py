# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Writing a report: one HTML page that needs no script, no other file and no network."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from torchrl_genpo.report.groups import Group, Task, curves, group_runs
from torchrl_genpo.report.reading import Run, read_runs

__all__ = ["evaluations", "number", "write_report"]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56a0d3", "#6a4fb3", "#777777")  # after Okabe and Ito
SECTIONS = {  # the prefixes of the columns
    "eval/": "Evaluation",
    "train/": "Training",
    "diagnostics/": "The pair and the action",
    "time/": "Time (seconds an update)",
    "collect/": "Collection",
    "": "The task's own statistics",
}
AGAINST_TIME = ("eval/zero_noise/return", "train/return")  # drawn against wall-clock time, too
LOGARITHMIC = ("train/lr", "train/grad_norm", "train/loss_critic", "train/inversion_error")
SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "torchrl_genpo", "font.size": 9.0}  # the same for the same curves
STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --muted: #5b6670; --line: #dde2e6; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --muted: #9ba6b0; --line: #343c44; --page: #14181c; } }
body { margin: 1.5rem auto; padding: 0 1rem; max-width: 1250px; color: var(--ink); background: var(--page);
  font: 15px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure svg, video { display: block; width: 100%; height: auto; }
svg text { fill: var(--ink) !important; }
svg [style*="stroke: #000000"] { stroke: var(--muted) !important; }
.note { color: var(--muted); }
.legend > span { margin-right: 1.5rem; }
.swatch { display: inline-block; width: 1.4em; margin-right: 0.4em; vertical-align: middle; }
.warnings { border-left: 4px solid #d9a514; padding-left: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.9rem 0.25rem 0; text-align: left; border-bottom: 1px solid var(--line); }
"""
HEAD = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; media-src data:">
<style>{STYLE}</style>"""


def write_report(paths: Sequence[Path], output: Path, video_limit: float = 50.0) -> list[str]:
    """Writes the report of some runs.

    Args:
        paths (sequence of Path): folders of runs, or folders above several.
        output (Path): the page; an old one is replaced in one step.
        video_limit (float, optional): the size of all embedded videos together, in MB. Defaults to ``50``.

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
    groups = [group for task in tasks for group in task.groups]
    videos, too_large = _videos(runs, video_limit * 1e6)
    warnings = [f"{path} is left out: {reason}" for path, reason in left_out]
    warnings += [f"{run.path}: {text}" for run in runs for text in run.warnings()]
    warnings += [text for group in groups for text in _repeated(group)] + too_large
    colors = {label: i for i, label in enumerate(dict.fromkeys(group.label for group in groups))}
    title = escape(tasks[0].name if len(tasks) == 1 else f"{len(tasks)} tasks")
    parts = [HEAD, f"<title>{title}: training report</title>\n</head>\n<body>\n<h1>{title}</h1>"]
    if warnings:
        items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
        parts.append(f'<section class="warnings"><h2>Warnings</h2><ul>{items}</ul></section>')
    for task in tasks:
        parts += [f"<h2>{escape(task.name)}</h2>"] if len(tasks) > 1 else []
        parts += _task(task, colors, videos)
    text = "\n".join([*parts, "</body>\n</html>\n"])
    temporary = output.with_name(f".{output.name}.tmp")
    temporary.write_text(text.encode("utf-8", "replace").decode(), encoding="utf-8")  # a name need not be Unicode
    temporary.replace(output)
    return warnings


def _task(task: Task, colors: Mapping[str, int], videos: Mapping[Path, str]) -> Iterator[str]:
    """Yields the elements of a task; ``colors`` holds the number of each label, ``videos`` the data of each file."""
    members = [(group.label, run) for group in task.groups for run in group.runs]
    names = {group.label: _swatch(colors[group.label]) + escape(group.label) for group in task.groups}
    yield f'<p class="legend">{"".join(f"<span>{name}</span>" for name in names.values())}</p>'
    columns = dict.fromkeys(c for _, run in members for c in run.metrics if np.isfinite(run.column(c)).any())
    sections: dict[str, list[str]] = {title: [] for title in SECTIONS.values()}
    for column in columns:
        found = {colors[group.label]: curves(group.runs, column) for group in task.groups}
        drawn = {color: curve for color, curve in found.items() if curve is not None}
        section = sections[next(title for prefix, title in SECTIONS.items() if column.startswith(prefix))]
        for axis in () if column in ("frames", "time/seconds") else ("frames", "hours")[: 1 + (column in AGAINST_TIME)]:
            caption = f"<figcaption><code>{escape(column)}</code> against {axis}</figcaption>"
            section.append(f'<figure data-column="{escape(column)}">{caption}{draw(drawn, column, axis)}</figure>')
    for title, figures in sections.items():
        if figures:
            yield f'<h3>{title}</h3>\n<div class="grid">' + "\n".join(figures) + "</div>"
    yield (
        '<p class="note">Line: median of the seeds that are as far. Band: from the lowest to the highest seed, or the '
        "middle half of five and more. In long runs, each point is the mean of neighbouring updates. "
        "Hours are at the seeds' median pace.</p>\n<h3>Last evaluation</h3>"
    )
    rows = [[escape(statistic), names[label], *cells] for statistic, label, *cells in evaluations(task)]
    if rows:
        yield _table(["statistic", "group", "zero noise", "random noise", "frames"], rows)
        yield '<p class="note">Median of the seeds, and each seed in brackets.</p>'
    else:
        yield "<p>None of these runs was evaluated so far.</p>"
    shown = [(label, run, path) for label, run in members for path in run.videos if path in videos]
    if shown:
        yield '<h3>Videos</h3>\n<div class="grid">'
        for label, run, path in shown:
            caption = f"{names[label]}, seed {escape(str(run.seed))}, {escape(path.name)}"
            video = f'<video controls src="data:video/mp4;base64,{videos[path]}"></video>'
            yield f"<figure>{video}<figcaption>{caption}</figcaption></figure>"
        yield "</div>"
    if task.differences:
        yield "<h3>Differences of configuration</h3>"
        yield _table(["option", *names.values()], [map(escape, [key, *row]) for key, row in task.differences.items()])
    yield "<h3>Runs</h3>"
    facts = [(names[n], str(r.seed), f"{r.frames:,}", number(r.seconds / 3600), str(r.path)) for n, r in members]
    yield _table(["group", "seed", "frames", "hours", "folder"], [[name, *map(escape, f)] for name, *f in facts])


def draw(curves: Mapping[int, Mapping[str, np.ndarray]], column: str, axis: str) -> str:
    """Draws the curves of a metric against ``frames`` or ``hours``, as an element ``svg``.

    Args:
        curves (mapping of int to mapping): for the number of each colour, what :func:`groups.curves` returns.
        column (str): the column, which tells whether the axis may be logarithmic.
        axis (str): ``frames`` or ``hours``.
    """
    with matplotlib.rc_context(SVG):
        figure = Figure(figsize=(4.2, 2.4), layout="constrained", facecolor="none")
        axes = figure.subplots()
        for number, curve in curves.items():
            color, x = COLORS[number % len(COLORS)], curve["frames"] if axis == "frames" else curve["seconds"] / 3600
            line = ("-" if number < len(COLORS) else "--") + ("o" if len(x) <= 40 else "")
            axes.plot(x, curve["median"], line, color=color, linewidth=1.5, markersize=2.5)
            if len(curve["seeds"]) > 1:
                axes.fill_between(x, curve["low"], curve["high"], color=color, alpha=0.18, linewidth=0)
        values = np.concatenate([curve["low"] for curve in curves.values()])
        if column in LOGARITHMIC and (values[np.isfinite(values)] > 0).all():
            axes.set_yscale("log")
        axes.set(xlim=(0, None), facecolor="none")
        axes.locator_params("x", nbins=6)
        if axis == "frames":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#888888", alpha=0.25, linewidth=0.6)
        file = StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return re.sub(r"\A.*?(?=<svg)", "", file.getvalue(), flags=re.DOTALL)


def evaluations(task: Task) -> list[tuple[str, str, str, str, str]]:
    """Summarises the last evaluation of each run: statistic, label, zero noise, random noise and frames, as text."""
    last = {run.path: run.last_evaluation() for group in task.groups for run in group.runs}
    statistics = dict.fromkeys(column.split("_noise/")[-1] for _, values in last.values() for column in values)
    rows = []
    for name in statistics:
        for group in task.groups:
            ends = [last[run.path] for run in group.runs if last[run.path][1]]
            columns = [f"eval/{noise}_noise/{name}" for noise in ("zero", "random")]
            zero, random = (_cell([values.get(column, np.nan) for _, values in ends]) for column in columns)
            if (zero, random) != ("-", "-"):
                rows.append((name, group.label, zero, random, f"{np.median([frames for frames, _ in ends]):,.0f}"))
    return rows


def _cell(values: Sequence[float]) -> str:
    known = [value for value in values if np.isfinite(value)]
    seeds = f" ({', '.join(map(number, values))})" if len(values) > 1 and known else ""
    return number(float(np.median(known)) if known else np.nan) + seeds


def number(value: float) -> str:
    """Writes a value for people, with about four digits; a dash stands for an unknown one.

    Example:
        >>> number(14260.4), number(3.14159), number(0.00001234), number(float("nan"))
        ('14260', '3.142', '1.234e-05', '-')
    """
    return "-" if not np.isfinite(value) else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _swatch(color: int) -> str:
    line = "solid" if color < len(COLORS) else "dashed"
    return f'<span class="swatch" style="border-top: 3px {line} {COLORS[color % len(COLORS)]}"></span>'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Makes a table of cells that are HTML already."""
    titles = "".join(f"<th>{cell}</th>" for cell in head)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _repeated(group: Group) -> Iterator[str]:
    for before, run in pairwise(group.runs):
        if run.seed == before.seed:
            yield f"{run.path}: It has the configuration and seed {run.seed} of {before.path}; each counts as a seed."


def _videos(runs: Sequence[Run], limit: float) -> tuple[dict[Path, str], list[str]]:
    """Encodes the videos that fit into ``limit`` bytes, the first of every run before others; warns of the rest."""
    embedded: dict[Path, str] = {}
    too_large = []
    candidates = [(rank, run.path, path) for run in runs for rank, path in enumerate(run.videos)]
    for _, folder, path in sorted(candidates, key=lambda candidate: candidate[0]):
        size = path.stat().st_size
        if size <= limit:
            limit -= size
            embedded[path] = base64.b64encode(path.read_bytes()).decode()
        else:
            text = f"{path.name} ({size / 1e6:.1f} MB) is not embedded: over the limit, which --video-limit MB raises."
            too_large.append(f"{folder}: {text}")
    return embedded, too_large
