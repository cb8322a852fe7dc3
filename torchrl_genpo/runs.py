# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The folder of a run: configuration, metrics, checkpoints, pictures."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict.nn import TensorDictModule
from torchrl.checkpoint import Checkpoint, CheckpointRotation
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type
from torchrl.record.loggers import get_logger

from torchrl_genpo.envs import make_view, one_simulation
from torchrl_genpo.untrusted import check_checkpoint

__all__ = [
    "METRICS",
    "RunFolder",
    "StopRequest",
    "check_rendering",
    "draw_learning_curve",
    "make_logger",
    "read_checkpoint_config",
    "read_metrics",
    "record_video",
    "remove_unused",
]

METRICS = [
    "frames",
    "time/seconds",
    "time/collect",
    "time/update",
    "train/return",
    "train/kl",
    "train/clip_fraction",
    "train/lr",
    "train/inversion_error",
    "train/loss_objective",
    "train/loss_critic",
    "train/entropy",
    "train/grad_norm",
    "train/sigma",
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
"""Columns of ``metrics.csv``, one row an update; empty where not measured. A task's own statistics follow them."""


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def read_metrics(path: Path) -> dict[str, list[float]]:
    """Reads a ``metrics.csv``: column name to values, ``nan`` where empty.

    Raises:
        ValueError: if it is damaged.
    """
    rows = _read_rows(path)
    try:
        return {key: [float(row[key] or "nan") for row in rows] for key in (rows[0] if rows else {})}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def _read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; one that was cut short, as by a crash, is left out."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            return [row for row in reader if None not in row and None not in row.values()]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


class RunFolder:
    """Where a run keeps everything: ``config.yaml``, ``metrics.csv``, ``checkpoints/``, pictures.

    Args:
        path (Path): the folder, created if needed.

    Keyword Args:
        resume (bool, optional): continue a run that is there. Defaults to ``False``.
        keep_last (int, optional): number of checkpoints kept. Defaults to ``2``.
        read_only (bool, optional): of a process that only loads the checkpoints of another. Defaults to ``False``.
        columns (sequence of str, optional): of ``metrics.csv``, the count of the rows first. Defaults to
            :data:`METRICS`.

    Raises:
        FileExistsError: if the folder holds a run already and ``resume`` is ``False``.
        FileNotFoundError: if ``resume`` is ``True`` and there is no checkpoint that can be read.
    """

    def __init__(
        self,
        path: Path,
        *,
        resume: bool = False,
        keep_last: int = 2,
        read_only: bool = False,
        columns: Sequence[str] = METRICS,
    ) -> None:
        self.path = Path(path)
        self.metrics_path = self.path / "metrics.csv"
        self.config_path = self.path / "config.yaml"
        self.columns = list(columns)
        self.is_new = False
        self._rotation = CheckpointRotation(self.path / "checkpoints", keep_last=keep_last)
        if resume and self.latest() is None:
            raise FileNotFoundError(f"resume={self.path}: no readable checkpoint in {self.path / 'checkpoints'}.")
        if read_only:
            return
        if not resume and (self.metrics_path.exists() or self.config_path.exists()):
            raise FileExistsError(
                f"{self.path} already holds a run. Continue it with resume={self.path}, or choose another "
                "folder with hydra.run.dir=<folder>."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.is_new = not resume

    def write_config(self, text: str) -> None:
        """Writes the resolved configuration."""
        _write_atomically(self.config_path, text)

    def truncate_metrics(self, count: int) -> None:
        """Drops the rows after ``count`` frames (the first column), which a resumed run writes again."""
        try:
            rows = [row for row in _read_rows(self.metrics_path) if int(row[self.columns[0]]) <= count]
            lines = [",".join(self.columns), *(",".join(row[key] for key in self.columns) for row in rows)]
        except (KeyError, ValueError) as error:
            raise ValueError(f"{self.metrics_path} is damaged, or of another run: {error}.") from error
        _write_atomically(self.metrics_path, "\n".join(lines) + "\n")

    def log(self, row: dict[str, float]) -> None:
        """Appends one row to ``metrics.csv``."""
        is_new = not self.metrics_path.exists()
        with self.metrics_path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="raise")
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    def save(self, checkpoint: Checkpoint, frames: int, config: dict[str, Any]) -> Path:
        """Saves a checkpoint of ``frames`` and prunes old ones; returns its path."""
        return self._rotation.save(checkpoint, step=frames, metadata={"frames": frames, "config": config})

    def latest(self) -> Path | None:
        """The newest checkpoint that can be read, if any."""
        try:
            return self._rotation.latest()
        except (AttributeError, RuntimeError) as error:  # what TorchRL does not expect of a file
            raise ValueError(f"A file in {self._rotation.directory} is no checkpoint: {error}") from error


def remove_unused(path: Path, folder: RunFolder | None) -> None:
    """Removes the folder of a run that ended before its first update, so that the next one may have it.

    Args:
        path (Path): the folder, which is removed if it is empty (Hydra makes it before anything is checked).
        folder (RunFolder, optional): of the run, if it came so far: it may hold the configuration that the run wrote.
    """
    if not path.is_dir():
        return
    if folder is not None and folder.is_new and [entry.name for entry in path.iterdir()] == [folder.config_path.name]:
        folder.config_path.unlink()
    if not any(path.iterdir()):
        path.rmdir()


class StopRequest:
    """Turns the first Ctrl-C into a request to stop after the current update; the second interrupts."""

    def __init__(self) -> None:
        self.received = False
        self._previous = signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        self.received = True
        signal.signal(signal.SIGINT, self._previous)
        sys.stderr.write("\nStopping after this update; press Ctrl-C again to stop at once.\n")


def make_logger(backend: str, folder: Path, config: dict[str, Any], project: str | None, mode: str | None) -> Any:
    """The logger beside ``metrics.csv``, or ``None`` for ``csv``; a resumed run continues its own.

    Args:
        backend (str): ``csv``, ``tensorboard`` or ``wandb``.
        folder (Path): of the run.
        config (dict): of the run.
        project (str, optional): wandb's.
        mode (str, optional): wandb's, ``offline`` or ``online``.
    """
    if backend == "csv":
        return None
    run_id = hashlib.sha1(str(folder.resolve()).encode()).hexdigest()[:12]
    return get_logger(
        backend,
        logger_name=str(folder),
        experiment_name=folder.name,
        wandb_kwargs={
            "project": project,
            "mode": mode,
            "config": config,
            "id": run_id,
            "resume": "allow",
        },
    )


def read_checkpoint_config(path: Path) -> dict[str, Any]:
    """The configuration that a checkpoint was saved with.

    Raises:
        ValueError: if the file is not a checkpoint, cut short or damaged, or holds what could run code.
    """
    return check_checkpoint(path)["metadata"]["config"]


def draw_learning_curve(metrics_path: Path, picture_path: Path, title: str) -> None:
    """Draws training and evaluation return against frames."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metrics = read_metrics(metrics_path)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(metrics["frames"], metrics["train/return"], label="training (random noise)")
    for mode in ("zero", "random"):
        values = metrics[f"eval/{mode}_noise/return"]
        points = [(x, y) for x, y in zip(metrics["frames"], values, strict=True) if y == y]
        if points:
            axes.plot(*zip(*points, strict=True), "o--", markersize=4, label=f"evaluation, {mode} noise")
    axes.set(xlabel="frames", ylabel="return", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture_path, dpi=120)
    plt.close(figure)


def check_rendering(name: str) -> None:
    """Fails now, not after the training, if a video cannot be made.

    Args:
        name (str): of the environment.

    Raises:
        ImportError: if the encoder or an OpenGL renderer is missing.
    """
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ImportError("video=true needs imageio-ffmpeg: pip install 'torchrl-genpo[video]'.")
    if one_simulation(name):  # Isaac Lab draws by itself
        return
    try:
        import mujoco

        renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16)
        renderer.render()
        renderer.close()
    except Exception as error:  # each OpenGL platform has exceptions of its own
        raise ImportError(
            f"video=true needs OpenGL, which failed with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r} "
            f"({type(error).__name__}: {error}). Install a renderer (Debian: apt install libegl1 libgl1; or "
            "libosmesa6, and set MUJOCO_GL=osmesa), or use video=false."
        ) from error


@torch.no_grad()
def record_video(env: EnvBase, actor: TensorDictModule, path: Path, seed: int, max_steps: int = 1000) -> None:
    """Writes an mp4 of one episode of the zero-noise policy.

    Args:
        env (EnvBase): one environment made with ``render=True``.
        actor (TensorDictModule): the policy.
        path (Path): the file to write.
        seed (int): of the initial state.
        max_steps (int, optional): longest video, in steps.
    """
    import imageio

    view = make_view(env)
    env.set_seed(seed)
    td = env.reset()
    writer: Any = imageio.get_writer(path, fps=view.fps)
    with set_exploration_type(ExplorationType.DETERMINISTIC), writer as video:
        for _ in range(max_steps):
            video.append_data(view.frame(td))
            step, td = env.step_and_maybe_reset(actor(td))
            if step["next", "done"].any():
                break
