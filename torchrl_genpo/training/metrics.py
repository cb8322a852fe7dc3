# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The metrics of a run: their names, how ``metrics.csv`` is read, and the picture of the learning curve."""

from __future__ import annotations

import csv
import math
from pathlib import Path

__all__ = ["METRICS", "draw_learning_curve", "read_metrics", "read_rows"]

METRICS = [
    "frames",
    "time/seconds",
    "time/collect",
    "time/update",
    "train/return",
    "train/success",
    "train/kl",
    "train/clip_fraction",
    "train/lr",
    "train/inversion_error",
    "train/loss_objective",
    "train/loss_critic",
    "train/entropy",
    "train/kl_reference",
    "train/loss_anchor",
    "train/grad_norm",
    "train/undone",
    "diagnostics/kl_pair",
    "diagnostics/kl_action",
    "diagnostics/clip_fraction_pair",
    "diagnostics/clip_fraction_action",
    "diagnostics/ess",
    "eval/zero_noise/return",
    "eval/random_noise/return",
    "eval/zero_noise/success",
    "eval/random_noise/success",
    "eval/zero_noise/goal_entropy",
    "eval/random_noise/goal_entropy",
]
"""The columns of ``metrics.csv``, which has one row an update; a field is empty where nothing was measured.

The task's own statistics follow these columns. The return of an evaluation is ``inf``, ``-inf`` or ``nan`` where that
of an episode was not finite. ``train/undone`` counts the updates that met a number that is not finite and were undone.
"""


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a CSV file; a last row that was cut short is left out.

    Args:
        path (Path): the file.

    Returns:
        A dictionary for each row, from the name of the column to the text of the field.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        return [row for row in rows if None not in row and None not in row.values()]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def read_metrics(path: Path) -> dict[str, list[float]]:
    """Reads the columns of a ``metrics.csv``.

    Args:
        path (Path): the file.

    Returns:
        The values of each column by its name, ``nan`` where the field is empty.

    Raises:
        ValueError: if the file is damaged.
    """
    rows = read_rows(path)
    try:
        return {key: [float(row[key] or "nan") for row in rows] for key in (rows[0] if rows else {})}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def draw_learning_curve(metrics_path: Path, picture_path: Path, title: str) -> None:
    """Draws the return of training and of evaluation against the frames, or nothing before the first update.

    Args:
        metrics_path (Path): the ``metrics.csv`` to draw.
        picture_path (Path): the picture to write.
        title (str): the title of the picture.
    """
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and a backend for the whole process

    metrics = read_metrics(metrics_path)
    if not metrics:
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(metrics["frames"], metrics["train/return"], label="training (random noise)")
    for mode in ("zero", "random"):
        values = metrics[f"eval/{mode}_noise/return"]
        points = [(x, y) for x, y in zip(metrics["frames"], values, strict=True) if math.isfinite(y)]
        if points:
            axes.plot(*zip(*points, strict=True), "o--", markersize=4, label=f"evaluation, {mode} noise")
    axes.set(xlabel="frames", ylabel="return", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture_path, dpi=120)
