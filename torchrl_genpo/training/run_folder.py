# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The folder of a run: configuration, metrics, checkpoints. Whatever happens, what it holds can be read."""

from __future__ import annotations

import csv
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml
from filelock import FileLock, Timeout

from torchrl_genpo.config.command_line import as_word
from torchrl_genpo.config.nested import merged
from torchrl_genpo.training.checkpoint import (
    best_checkpoint,
    checkpoints_of,
    frames_of,
    is_intact,
    read_checkpoint,
    read_config,
    save_checkpoint,
    write_atomically,
)
from torchrl_genpo.training.metrics import METRICS, read_rows

__all__ = ["RunFolder", "read_run_config"]


class RunFolder:
    """Where a run keeps everything: ``config.yaml``, ``metrics.csv``, ``checkpoints/``, pictures.

    The folder is locked as long as the process lives. ``resume_from`` is the checkpoint to continue from, if any.

    Args:
        path (Path): the folder, created if needed.

    Keyword Args:
        resume (bool, optional): continue a run that is there. Defaults to ``False``.
        keep_last (int, optional): number of checkpoints kept. Defaults to ``2``.
        keep_best (str, optional): the column of ``metrics.csv`` whose highest value keeps its checkpoint, too.
            Defaults to ``None``.
        read_only (bool, optional): for a process that only loads the checkpoints of another. Defaults to ``False``.
        columns (sequence of str, optional): the columns of ``metrics.csv``, the count of the rows first. Defaults to
            :data:`~torchrl_genpo.training.metrics.METRICS`.

    Raises:
        FileExistsError: if the folder holds a run already and ``resume`` is ``False``, or if another process has it.
        FileNotFoundError: if ``resume`` is ``True`` and there is no checkpoint that can be read.
    """

    _damaged: ClassVar[set[Path]] = set()  # told once, however often a process looks

    def __init__(
        self,
        path: Path,
        *,
        resume: bool = False,
        keep_last: int = 2,
        keep_best: str | None = None,
        read_only: bool = False,
        columns: Sequence[str] = METRICS,
    ) -> None:
        self.path = Path(path)
        self.metrics_path = self.path / "metrics.csv"
        self.config_path = self.path / "config.yaml"
        self.columns = list(columns)
        self._checkpoints = self.path / "checkpoints"
        self._id_path = self.path / "run_id"
        self._is_new = not resume and not read_only
        self._keep_last, self._keep_best = keep_last, keep_best
        self.resume_from: Path | None = None
        if resume:
            self.resume()
        if read_only:
            return
        if not resume and self.has_begun:
            raise FileExistsError(
                f"{self.path} already holds a run. Choose another folder with hydra.run.dir=<folder>, or continue it "
                f"with {as_word('resume', str(self.path))}"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / "run.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise FileExistsError(
                f"Another process trains in {self.path}; wait for it, or choose another folder."
            ) from None
        for leftover in self._checkpoints.glob(".*"):  # a process was killed while it saved
            leftover.unlink()
        if not resume:  # one that never began may have left its id
            self._id_path.unlink(missing_ok=True)

    def resume(self) -> None:
        """Makes the newest checkpoint the one to continue from, ``resume_from``.

        There is none in a run that was killed before it saved its first, untrained: that starts from the beginning.
        """
        self.resume_from = self.latest()
        if self.resume_from is None and self.has_begun:
            raise FileNotFoundError(f"resume={self.path}: no readable checkpoint in {self._checkpoints}.")

    @property
    def has_begun(self) -> bool:
        """Whether there was a first update, or a run that is continued."""
        return self.metrics_path.exists() or any(frames_of(path) for path in checkpoints_of(self.path))

    @property
    def run_id(self) -> str:
        """The id of the run, which is drawn once and goes wherever the folder goes."""
        if not self._id_path.exists():
            write_atomically(self._id_path, secrets.token_hex(6) + "\n")
        return self._id_path.read_text(encoding="utf-8").strip()

    def remove_unused(self) -> None:
        """Removes what a run left that ended before its first update, so that the next one may have the folder."""
        if not self._is_new or self.has_begun:
            return
        self._lock.release()
        shutil.rmtree(self._checkpoints, ignore_errors=True)
        for path in (self.config_path, self._id_path, Path(self._lock.lock_file)):
            path.unlink(missing_ok=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes the options of the run."""
        write_atomically(self.config_path, yaml.safe_dump(dict(config), sort_keys=False))

    def truncate_metrics(self, count: int) -> None:
        """Drops the rows after ``count`` frames (the first column), which a resumed run writes again."""
        if not self.metrics_path.exists():
            return
        try:
            rows = [row for row in read_rows(self.metrics_path) if int(row[self.columns[0]]) <= count]
        except (KeyError, ValueError) as error:
            raise ValueError(f"{self.metrics_path} is damaged, or of another run: {error}.") from error
        lines = [",".join(self.columns), *(",".join(row.get(key, "") for key in self.columns) for row in rows)]
        write_atomically(self.metrics_path, "\n".join(lines) + "\n")

    def log(self, row: Mapping[str, float]) -> None:
        """Appends one row to ``metrics.csv``."""
        is_new = not self.metrics_path.exists()
        with self.metrics_path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="raise")
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    def save(self, frames: int, config: Mapping[str, Any], parts: Mapping[str, Any]) -> Path:
        """Saves a checkpoint and removes those that are neither among the last nor the best.

        What was logged of an evaluation at these frames says how good it is: log it first.

        Args:
            frames (int): trained so far.
            config (mapping): the options of the run.
            parts (mapping): what to save, see :func:`~torchrl_genpo.training.checkpoint.save_checkpoint`.

        Returns:
            The path of the checkpoint.
        """
        self._checkpoints.mkdir(exist_ok=True)
        path = self._checkpoints / f"checkpoint-{frames:012d}.pt"
        save_checkpoint(path, frames, config, parts)
        kept = {path, *checkpoints_of(self.path)[-self._keep_last :], best_checkpoint(self.path, self._keep_best)}
        for old in checkpoints_of(self.path):
            if old not in kept:
                old.unlink()
        return path

    def latest(self) -> Path | None:
        """The newest checkpoint that is intact, if any; says which ones are not."""
        for path in reversed(checkpoints_of(self.path)):
            if is_intact(path):
                return path
            if path not in self._damaged:
                sys.stderr.write(f"{path} is damaged; the checkpoint before it is used.\n")
            self._damaged.add(path)
        return None


def read_run_config(path: Path) -> dict[str, Any]:
    """The options of a run that is to be continued; those that ``config.yaml`` has lost are the checkpoint's.

    Raises:
        FileNotFoundError: if there is no run.
        ValueError: if ``config.yaml`` is damaged.
    """
    config_path = path / "config.yaml"
    if not config_path.exists():
        raise FileNotFoundError(f"resume={path}: there is no run ({config_path} is missing). Give the folder of a run.")
    config = read_config(config_path)
    if not config_path.read_bytes().endswith(b"\n"):
        raise ValueError(f"{config_path} was cut short: its last line has no end. Mend it, or remove that line.")
    newest = RunFolder(path, read_only=True).latest()
    if newest is None:
        return config
    whole = merged(read_checkpoint(newest)["config"], config)
    if whole != config:
        sys.stderr.write(f"{config_path} is not whole; what it lacks is that of {newest}.\n")
    return whole
