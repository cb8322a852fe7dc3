# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The counters of a run."""

from __future__ import annotations

from collections import deque
from typing import Any

__all__ = ["Progress"]


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
