# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The clocks of a hand and of the loop that drives it."""

from __future__ import annotations

import time

__all__ = ["Clock", "FastClock"]


class Clock:
    """The clock of the real time."""

    def __call__(self) -> float:
        """The present time, s."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Waits for some seconds."""
        time.sleep(seconds)


class FastClock(Clock):
    """A clock on which waiting takes no real time, so that a simulation is as fast as the processor.

    Examples:
        >>> clock = FastClock()
        >>> clock.sleep(3600.0)
        >>> clock()
        3600.0
    """

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time slept so far, s."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Lets some seconds pass at once."""
        self.now += seconds
