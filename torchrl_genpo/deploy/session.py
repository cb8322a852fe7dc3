# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The record of a run on a hand: a CSV with a row a control step, and its picture."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_genpo.envs.xhand import JOINTS

__all__ = ["SessionLog", "draw_session", "read_session"]

SMALLEST_RANGE = 0.3  # rad, of a panel: noise is not to look like motion
QUANTITIES = ("position", "target", "torque", "temperature")
COLUMNS = [
    *("time", "phase", "event", "lateness_ms", "policy_ms"),
    *(f"{quantity}/{joint}" for quantity in QUANTITIES for joint in JOINTS),
    *(f"action/{index}" for index in range(len(JOINTS))),
]
"""The columns of the CSV: the time in seconds; the phase, ``ramp`` or ``run``; what happened, if anything; how late the
step began and how long the policy took; what was read and commanded; and the policy's action."""


class SessionLog:
    """Writes a run to a CSV file with the columns :data:`COLUMNS`; nothing is lost if the program dies.

    Args:
        path (Path or str): the file, whose folder is created if needed.

    Raises:
        FileExistsError: if the file exists, which is then the record of another run.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            raise FileExistsError(f"{self.path} is the record of another run: choose another folder, or remove it.")
        self._file = self.path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS, restval="", extrasaction="ignore")
        self._writer.writeheader()

    def write(self, seconds: float, phase: str, event: str = "", **values: Any) -> None:
        """Writes a row, in which whatever is not given stays empty.

        Args:
            seconds (float): the time.
            phase (str): ``ramp`` or ``run``.
            event (str, optional): what happened.
            **values (float or np.ndarray): the numbers of a column, or of all columns ``name/...``.
        """
        row = {"time": f"{seconds:.4f}", "phase": phase, "event": event}
        for name, value in values.items():
            if np.ndim(value):
                parts = range(len(value)) if name == "action" else JOINTS
                row |= {f"{name}/{part}": f"{number:.5g}" for part, number in zip(parts, value, strict=True)}
            else:
                row[name] = f"{value:.3f}"
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_session(path: Path | str) -> dict[str, np.ndarray]:
    """Reads the columns of a session's CSV: text for ``phase`` and ``event``, else numbers, NaN where it is empty."""
    with Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: np.array([row[name] if name in ("phase", "event") else float(row[name] or "nan") for row in rows])
        for name in COLUMNS
    }


def draw_session(path: Path | str, picture_path: Path | str) -> None:
    """Draws the joints' angles and targets, and how late every step was.

    Args:
        path (Path or str): the CSV of the session.
        picture_path (Path or str): the picture to write.
    """
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and a backend for the whole process

    session = read_session(path)
    time = session["time"]
    figure = Figure(figsize=(11, 11), layout="constrained")
    axes = figure.subplots(5, 3, sharex=True)
    for panel, joint in zip(axes[:4].flat, JOINTS, strict=True):
        panel.plot(time, session[f"target/{joint}"], color="tab:orange", lw=1, label="target")
        panel.plot(time, session[f"position/{joint}"], color="tab:blue", lw=1, label="measured")
        low, high = panel.get_ylim()
        margin = max(0.0, SMALLEST_RANGE - (high - low)) / 2
        panel.set_ylim(low - margin, high + margin)
        panel.set_title(joint, fontsize=9)
    bottom = {
        "lateness of the step, ms": session["lateness_ms"],
        "policy, ms": session["policy_ms"],
        "hottest motor, degrees Celsius": np.fmax.reduce([session[f"temperature/{joint}"] for joint in JOINTS]),
    }
    for panel, (title, values) in zip(axes[4], bottom.items(), strict=True):
        panel.plot(time, values, ".", markersize=2, color="tab:gray")
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("s")
    is_ramp = session["phase"] == "ramp"
    for panel in axes.flat:
        panel.grid(alpha=0.3)
        if is_ramp.any():
            panel.axvspan(time[is_ramp].min(), time[is_ramp].max(), color="0.92", lw=0)
        for moment in time[session["event"] != ""]:
            panel.axvline(moment, color="tab:red", lw=0.8, ls=":")
    axes[0, 0].set_ylabel("rad")
    axes[0, 0].legend(fontsize=8)
    last = session["event"][-1]
    figure.suptitle("Grey: ramp to the start pose." + (f" End: {last}." if last else ""), fontsize=10)
    figure.savefig(picture_path, dpi=110)
