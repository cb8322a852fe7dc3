# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Writing a report: one HTML page that needs no script, no other file and no network."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from torchrl_genpo.report.runs import Curve, Run, Task, curve, group_runs, read_runs
from torchrl_genpo.training.checkpoint import write_atomically

__all__ = ["number", "write_report"]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56a0d3", "#6a4fb3", "#777777")  # after Okabe and Ito
SECTIONS = {  # the prefixes of the columns
    "eval/": "Evaluation",
    "train/": "Training",
    "diagnostics/": "The pair and the action",
    "time/": "Time (seconds an update)",
    "collect/": "Collection",
    "": "The task's own statistics",
}
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
        What the page leaves out, a sentence each; it says so, too.

    Raises:
        FileNotFoundError: if a path holds no run, or the folder of ``output`` is not there.
        ValueError: if a run that was named cannot be read.
    """
    if not output.parent.is_dir() or output.is_dir():
        raise FileNotFoundError(f"--output {output}: name a file in a folder that exists.")
    runs, left_out = read_runs(paths)
    tasks = group_runs(runs)
    videos, too_large = _videos(runs, video_limit * 1e6)
    left_out += too_large
    labels = list(dict.fromkeys(group.label for task in tasks for group in task.groups))
    title = escape(tasks[0].name if len(tasks) == 1 else f"{len(tasks)} tasks")
    parts = [HEAD, f"<title>{title}: training report</title>\n</head>\n<body>\n<h1>{title}</h1>"]
    parts += [f'<p class="note">{escape(text)}</p>' for text in left_out]
    for task in tasks:
        parts += [f"<h2>{escape(task.name)}</h2>"] if len(tasks) > 1 else []
        parts += _task(task, labels, videos)
    text = "\n".join([*parts, "</body>\n</html>\n"])
    write_atomically(output, text.encode("utf-8", "replace").decode())  # a name need not be Unicode
    return left_out


def _task(task: Task, labels: Sequence[str], videos: Mapping[Path, str]) -> Iterator[str]:
    """Yields the elements of a task; ``labels`` are those of all tasks, ``videos`` holds the data of each file."""
    members = [(group.label, run) for group in task.groups for run in group.runs]
    names = {group.label: _swatch(labels.index(group.label)) + escape(group.label) for group in task.groups}
    yield f'<p class="legend">{"".join(f"<span>{name}</span>" for name in names.values())}</p>'
    columns = dict.fromkeys(c for _, run in members for c in run.metrics if np.isfinite(run.column(c)).any())
    sections: dict[str, list[str]] = {title: [] for title in SECTIONS.values()}
    for column in [name for name in columns if name not in ("frames", "time/seconds")]:
        found = {labels.index(group.label): curve(group.runs, column) for group in task.groups}
        drawn = {color: line for color, line in found.items() if line is not None}
        section = sections[next(title for prefix, title in SECTIONS.items() if column.startswith(prefix))]
        name, caption = escape(column), f"<figcaption><code>{escape(column)}</code></figcaption>"
        section.append(f'<figure data-column="{name}">{caption}{draw(drawn, column)}</figure>')
    for title, figures in sections.items():
        if figures:
            yield f'<h3>{title}</h3>\n<div class="grid">' + "\n".join(figures) + "</div>"
    yield (
        '<p class="note">Against frames. Line: median of the seeds that are as far. Band: from the lowest to the '
        "highest seed, or the middle half of five and more. In long runs, each point is the mean of neighbouring "
        "updates.</p>"
    )
    rows = [
        [
            f"<code>{escape(column)}</code>",
            *(_last([run.column(column) for run in group.runs]) for group in task.groups),
        ]
        for column in columns
        if column.startswith("eval/")
    ]
    if rows:
        yield "<h3>Last evaluation</h3>" + _table(["median (seeds)", *names.values()], rows)
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
    rows = [
        [names[label], *map(escape, (str(run.seed), f"{run.metrics['frames'][-1]:,.0f}", str(run.path)))]
        for label, run in members
    ]
    yield "<h3>Runs</h3>" + _table(["group", "seed", "frames", "folder"], rows)


def draw(curves: Mapping[int, Curve], column: str) -> str:
    """Draws the curves of a metric against frames, as an element ``svg``.

    Args:
        curves (mapping of int to Curve): the curves by the numbers of their colours.
        column (str): the column, which tells whether the axis may be logarithmic.
    """
    with matplotlib.rc_context(SVG):
        figure = Figure(figsize=(4.2, 2.4), layout="constrained", facecolor="none")
        axes = figure.subplots()
        for index, line in curves.items():
            color, style = COLORS[index % len(COLORS)], "-" if index < len(COLORS) else "--"
            marker = "o" if len(line.frames) <= 40 else None
            axes.plot(line.frames, line.median, style, color=color, linewidth=1.5, marker=marker, markersize=2.5)
            axes.fill_between(line.frames, line.low, line.high, color=color, alpha=0.18, linewidth=0)
        values = np.concatenate([line.low for line in curves.values()])
        if column in LOGARITHMIC and (values[np.isfinite(values)] > 0).all():
            axes.set_yscale("log")
        axes.set(xlim=(0, None), facecolor="none")
        axes.locator_params("x", nbins=6)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#888888", alpha=0.25, linewidth=0.6)
        file = StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return re.sub(r"\A.*?(?=<svg)", "", file.getvalue(), flags=re.DOTALL)


def _last(columns: Sequence[np.ndarray]) -> str:
    """The last known value of each column, and their median before them where there are several."""
    known = [values[np.isfinite(values)][-1:] for values in columns]
    values = [value for column in known for value in column]
    if len(columns) == 1 or not values:
        return number(values[0]) if values else "-"
    return f"{number(np.median(values))} ({', '.join(map(number, values))})"


def number(value: float) -> str:
    """Writes a value for people, with about four digits.

    Example:
        >>> number(14260.4), number(3.14159), number(0.00001234)
        ('14260', '3.142', '1.234e-05')
    """
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _swatch(color: int) -> str:
    line = "solid" if color < len(COLORS) else "dashed"
    return f'<span class="swatch" style="border-top: 3px {line} {COLORS[color % len(COLORS)]}"></span>'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Makes a table of cells that are HTML already."""
    titles = "".join(f"<th>{cell}</th>" for cell in head)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _videos(runs: Sequence[Run], limit: float) -> tuple[dict[Path, str], list[str]]:
    """Encodes the videos that fit into ``limit`` bytes, the first of every run before others; names the rest."""
    embedded: dict[Path, str] = {}
    too_large = []
    for _, path in sorted((rank, path) for run in runs for rank, path in enumerate(run.videos)):
        size = path.stat().st_size
        if size <= limit:
            limit -= size
            embedded[path] = base64.b64encode(path.read_bytes()).decode()
        else:
            text = f"{path} ({size / 1e6:.1f} MB) is not embedded: over the limit, which --video-limit MB raises."
            too_large.append(text)
    return embedded, too_large
