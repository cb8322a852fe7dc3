# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The folder of a run: configuration, metrics, checkpoints. Whatever happens, what it holds can be read."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import signal
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from torchrl.checkpoint import Checkpoint, CheckpointRotation

from torchrl_genpo.trained import trained_policies
from torchrl_genpo.untrusted import check_checkpoint, read_yaml

__all__ = [
    "METRICS",
    "RunFolder",
    "StopRequest",
    "SyncedCheckpoint",
    "find_checkpoint",
    "is_intact",
    "read_checkpoint_config",
    "read_metrics",
    "read_run_config",
    "write_atomically",
]

NOT_EVALUATED = -sys.float_info.max  # never the best


def _sync(path: Path) -> None:
    """Waits until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is whole, old or new, whatever happens."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


class SyncedCheckpoint(Checkpoint):
    """TorchRL's checkpoint as one file, on the disk before it takes its name: a crash leaves the old one or the new."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(format="archive", **parts)

    @staticmethod
    def _publish_path(source: Path, destination: Path) -> None:
        _sync(source)
        os.replace(source, destination)
        _sync(destination.parent)


# here and not above: the package training imports SyncedCheckpoint from this module
from torchrl_genpo.training.metrics import METRICS, read_metrics, read_rows  # noqa: E402


class RunFolder:
    """Where a run keeps everything: ``config.yaml``, ``metrics.csv``, ``checkpoints/``, pictures.

    The folder is locked as long as the process lives. ``resume_from`` is the checkpoint to continue from, if any.

    Args:
        path (Path): the folder, created if needed.

    Keyword Args:
        resume (bool, optional): continue a run that is there. Defaults to ``False``.
        keep_last (int, optional): number of checkpoints kept. Defaults to ``2``.
        keep_best (str, optional): keeps the checkpoint with the highest value of this column, too. Defaults to
            ``None``.
        read_only (bool, optional): of a process that only loads the checkpoints of another. Defaults to ``False``.
        columns (sequence of str, optional): of ``metrics.csv``, the count of the rows first. Defaults to
            :data:`METRICS`.

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
        self._is_new = not resume and not read_only
        self._rotation = CheckpointRotation(
            self.path / "checkpoints", keep_last=keep_last, keep_best=None if keep_best is None else (keep_best, "max")
        )
        self.resume_from: Path | None = None
        if resume:
            self.resume()
        if read_only:
            return
        if not resume and self._has_begun:
            raise FileExistsError(
                f"{self.path} already holds a run. Continue it with resume={self.path}, or choose another "
                "folder with hydra.run.dir=<folder>."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / "run.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise FileExistsError(
                f"Another process trains in {self.path}; wait for it, or choose another folder."
            ) from None
        for leftover in self._rotation.directory.glob(".*"):  # of a process that was killed while it saved
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def resume(self) -> None:
        """Makes the newest checkpoint the one to continue from, ``resume_from``.

        There is none in a run that was killed before it saved its first, untrained: that starts from the beginning.
        """
        self.resume_from = self.latest()
        if self.resume_from is None and self._has_begun:
            raise FileNotFoundError(f"resume={self.path}: no readable checkpoint in {self.path / 'checkpoints'}.")

    @property
    def _has_begun(self) -> bool:
        trained = (path for path in self._rotation.directory.glob("checkpoint-*") if int("0" + path.stem[11:]))
        return self.metrics_path.exists() or any(trained)

    def remove_unused(self) -> None:
        """Removes what a run left that ended before its first update, so that the next one may have the folder."""
        if not self._is_new or self._has_begun:
            return
        self._lock.release()
        shutil.rmtree(self._rotation.directory, ignore_errors=True)
        for path in (self.config_path, Path(self._lock.lock_file)):
            path.unlink(missing_ok=True)

    def write_config(self, text: str) -> None:
        """Writes the resolved configuration."""
        write_atomically(self.config_path, text)

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

    def log(self, row: dict[str, float]) -> None:
        """Appends one row to ``metrics.csv``."""
        is_new = not self.metrics_path.exists()
        with self.metrics_path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="raise")
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    def save(
        self, checkpoint: Checkpoint, frames: int, config: dict[str, Any], row: dict[str, float] | None = None
    ) -> Path:
        """Saves a checkpoint of ``frames`` and prunes old ones.

        Args:
            checkpoint (Checkpoint): what to save.
            frames (int): trained so far.
            config (dict): of the run.
            row (dict, optional): what was logged last; says how good the policy is, where it was evaluated.

        Returns:
            The path of the checkpoint.
        """
        if self.metrics_path.exists():
            _sync(self.metrics_path)  # the rows that a resumed run will not write again
        metadata = {"frames": frames, "config": config}
        if self._rotation.keep_best is not None:
            best = self._rotation.keep_best[0]
            metadata[best] = (row or {}).get(best, NOT_EVALUATED)
        try:
            return self._rotation.save(checkpoint, step=frames, metadata=metadata)
        except RuntimeError as error:  # what PyTorch makes of it, where it maps a file
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path)) from error

    def latest(self) -> Path | None:
        """The newest checkpoint that is intact, if any; says which ones are not."""
        try:
            paths = self._rotation.checkpoints()
        except (AttributeError, RuntimeError) as error:  # what TorchRL does not expect of a file
            raise ValueError(f"A file in {self._rotation.directory} is no checkpoint: {error}") from error
        for path in reversed(paths):
            if is_intact(path):
                return path
            if path not in self._damaged:
                sys.stderr.write(f"{path} is damaged; the checkpoint before it is used.\n")
            self._damaged.add(path)
        return None

    def best(self) -> Path | None:
        """The checkpoint that was best when it was saved, or the newest where none was evaluated."""
        best = self._rotation.best()
        return best if best is not None and is_intact(best) else self.latest()


def is_intact(path: Path) -> bool:
    """Whether a checkpoint is complete and every file in it has its checksum (CRC-32, kept by the archive)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError):
        return False


class StopRequest:
    """Within its ``with``, the first Ctrl-C or a SIGTERM is a request to stop after the current update.

    A second Ctrl-C interrupts at once.

    Attributes:
        received (bool): whether to stop.
        preempted (bool): whether it was a SIGTERM, as schedulers send it before they take a machine away.
    """

    def __init__(self) -> None:
        self.received = self.preempted = False

    def __enter__(self) -> StopRequest:
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        self.received = True
        self.preempted = number == signal.SIGTERM
        signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
        hint = "" if self.preempted else "; press Ctrl-C again to stop at once"
        sys.stderr.write(f"\nStopping after this update{hint}.\n")


def find_checkpoint(path: Path) -> Path:
    """A checkpoint itself, the best one of a run's folder, or a policy that comes with the library, by its name.

    Raises:
        FileNotFoundError: if there is none.
    """
    if (path / "checkpoints").is_dir():
        config = read_yaml(path / "config.yaml")
        found = RunFolder(path, keep_best=config.get("checkpoint", {}).get("keep_best"), read_only=True).best()
        if found is None:
            raise FileNotFoundError(f"{path} has no readable checkpoint.")
        return found
    if path.is_dir():
        raise FileNotFoundError(f"{path} is neither a checkpoint nor the folder of a run, which has one 'checkpoints'.")
    if path.exists():
        return path
    trained, name = trained_policies(), path.as_posix()
    if name not in trained:
        raise FileNotFoundError(
            f"There is no checkpoint and no run {path}. Policies that come with the library: {', '.join(trained)}."
        )
    return trained[name]


def read_checkpoint_config(path: Path) -> dict[str, Any]:
    """The configuration that a checkpoint was saved with.

    Raises:
        ValueError: if the file is not a checkpoint, cut short or damaged, or holds what could run code.
    """
    return check_checkpoint(path)["metadata"]["config"]


def read_run_config(path: Path) -> DictConfig:
    """The configuration of a run that is to be continued; options that ``config.yaml`` has lost are the checkpoint's.

    Raises:
        FileNotFoundError: if there is no run.
        ValueError: if ``config.yaml`` is damaged.
    """
    config_path = path / "config.yaml"
    if not config_path.exists():
        raise FileNotFoundError(f"resume={path}: there is no run ({config_path} is missing).")
    config = read_yaml(config_path)
    if not config_path.read_bytes().endswith(b"\n"):
        raise ValueError(f"{config_path} was cut short: its last line has no end. Mend it, or remove that line.")
    newest = RunFolder(path, read_only=True).latest()
    if newest is None:
        return config
    whole = OmegaConf.merge(read_checkpoint_config(newest), config)
    if whole != config:
        sys.stderr.write(f"{config_path} is not whole; what it lacks is that of {newest}.\n")
    return whole  # type: ignore[return-value]
