# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What Ctrl-C and SIGTERM do to a run and to its worker processes."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

__all__ = ["StopRequest", "ignore_signals"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def ignore_signals() -> None:
    """Makes a worker process deaf to the signals that a terminal or a scheduler sends to every process of a run.

    The first process decides when to stop, and ends its workers itself.
    """
    if threading.current_thread() is threading.main_thread():  # Python allows it in no other
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


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
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
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
