# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What a run saves and restores."""

from __future__ import annotations

import zipfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchrl.checkpoint import Checkpoint, CheckpointError, GlobalRNGState
from torchrl.envs import EnvBase

from torchrl_genpo.runs import SyncedCheckpoint
from torchrl_genpo.untrusted import check_checkpoint

if TYPE_CHECKING:
    from torchrl_genpo.training.collection import Collection

__all__ = ["Progress", "load_checkpoint", "make_checkpoint"]


class Progress:
    """Counters of a run that outlive a restart.

    Args:
        window (int, optional): episodes whose returns are kept. Defaults to ``20``.

    Examples:
        >>> progress = Progress(window=2)
        >>> progress.last_returns([1.0])
        [1.0]
        >>> progress.last_returns([2.0, 3.0, 4.0])
        [2.0, 3.0, 4.0]
        >>> progress.last_returns([])
        [3.0, 4.0]
    """

    def __init__(self, window: int = 20) -> None:
        self.frames = 0
        self.seconds = 0.0
        self.returns: deque[float] = deque(maxlen=window)

    def last_returns(self, ended: list[float]) -> list[float]:
        """Those of the episodes that have just ended, filled up to the window with the ones before."""
        self.returns.extend(ended)
        return ended if len(ended) > len(self.returns) else list(self.returns)

    def state_dict(self) -> dict[str, Any]:
        """The counters as plain numbers."""
        return {"frames": self.frames, "seconds": self.seconds, "returns": list(self.returns)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the counters."""
        self.frames, self.seconds = int(state_dict["frames"]), float(state_dict["seconds"])
        self.returns = deque(map(float, state_dict["returns"]), maxlen=self.returns.maxlen)


def make_checkpoint(
    *,
    loss: nn.Module,
    env: EnvBase,
    optimizer: torch.optim.Optimizer | None = None,
    schedule: Any = None,
    adaptive_sigma: Any = None,
    collection: Collection | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Binds the parts of a run to a TorchRL checkpoint: one archive, written aside and renamed.

    With all parts a run continues exactly (with fresh episodes where
    :func:`~torchrl_genpo.envs.simulator_state` cannot save the simulator, or workers have it); with ``loss`` and
    ``env`` alone it is what evaluation needs (weights and normalisation).
    """
    parts: dict[str, Any] = {"loss": loss, "normalization": env.transform}
    if collection is not None:  # the one that continues, not an evaluation
        parts |= {"rng": GlobalRNGState(), **collection.parts()}
    optional = {
        "optimizer": optimizer,
        "schedule": schedule,
        "adaptive_sigma": adaptive_sigma,
        "progress": progress,
    }
    parts |= {name: part for name, part in optional.items() if part is not None}
    return SyncedCheckpoint(**parts)


def load_checkpoint(checkpoint: Checkpoint, path: Path, device: torch.device | str = "cpu") -> None:
    """Restores every part of a checkpoint, or raises a ``ValueError`` that says why it cannot."""
    check_checkpoint(Path(path))
    try:
        checkpoint.load(path, map_location=device)
    except (CheckpointError, zipfile.BadZipFile, OSError) as error:
        raise ValueError(
            f"Cannot load checkpoint {path}: {error} It is cut short, damaged, or of another configuration."
        ) from error
