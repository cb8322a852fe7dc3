# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The time that a hand and its loop live by."""

from __future__ import annotations

import time

__all__ = ["Clock", "FastClock"]


class Clock:
    """The real time."""

    def __call__(self) -> float:
        """Seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)


class FastClock(Clock):
    """A time in which waiting takes none: simulations as fast as the processor can.

    Examples:
        >>> clock = FastClock()
        >>> clock.sleep(3600.0)
        >>> clock()
        3600.0
    """

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds slept so far."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Lets time pass."""
        self.now += seconds
