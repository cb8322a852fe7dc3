# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The protection of a hand: limits on every command, checks of every state, and the way to a passive hand."""

from __future__ import annotations

import threading
import time

import numpy as np

from torchrl_genpo.deploy.hand import HandBackend, HandError, HandState, SafetyConfig
from torchrl_genpo.envs.xhand import JOINTS

__all__ = ["GuardedHand", "SafetyMonitor", "SafetyStop"]


class SafetyStop(RuntimeError):
    """The run has to end, and the hand to be passive; the message says why."""


class SafetyMonitor:
    """Limits targets, checks states and counts errors.

    Args:
        config (SafetyConfig): the limits.
        dt (float): the control period, s.

    Examples:
        >>> monitor = SafetyMonitor(SafetyConfig(), dt=0.05)
        >>> here = np.full(12, 0.15)
        >>> monitor.limit(here + 1.0, here)[:4].round(3)  # 180 degrees/s; the index finger bends sideways by 10 only
        array([0.307, 0.307, 0.307, 0.175])
    """

    def __init__(self, config: SafetyConfig, dt: float) -> None:
        self._config, self._max_step = config, config.max_speed * dt
        self._low, self._high = config.bounds()
        self._errors = 0

    def limit(self, target: np.ndarray, previous: np.ndarray) -> np.ndarray:
        """The target that may be commanded after ``previous``; where that is out of bounds, it is not farther out.

        Raises:
            SafetyStop: if the target is not finite.
        """
        if not np.isfinite(target).all():
            raise SafetyStop(f"the policy's target is not finite for {_names(~np.isfinite(target))}")
        bounded = np.clip(target, np.minimum(self._low, previous), np.maximum(self._high, previous))
        return np.clip(bounded, previous - self._max_step, previous + self._max_step)

    def check(self, state: HandState, target: np.ndarray) -> None:
        """Checks a reading against the limits and the target that was commanded before it.

        Raises:
            SafetyStop: if a motor is too hot or a joint too far from its target.
            HandError: if the reading is not finite, or a board reports an error.
        """
        if not np.isfinite(state.position).all():
            raise HandError(f"the position of {_names(~np.isfinite(state.position))} is not finite")
        hot = ~(state.temperature <= self._config.max_temperature)
        if hot.any():
            raise SafetyStop(f"{_names(hot)} at {state.temperature[hot].max():.0f} degrees Celsius")
        far = np.abs(state.position - target) > self._config.max_tracking_error
        if far.any():
            error = np.abs(state.position - target).max()
            raise SafetyStop(f"{_names(far)} {error:.2f} rad from the target: stuck, blocked or unpowered")
        if state.errors.any():
            raise HandError(f"error flags on the boards of {_names(state.errors != 0)}")

    def succeeded(self) -> None:
        """Ends a row of errors: something was read or commanded as it should."""
        self._errors = 0

    def failed(self, error: HandError) -> None:
        """Counts an error of the hand.

        Raises:
            SafetyStop: if there are too many in a row.
        """
        self._errors += 1
        if self._errors >= self._config.max_errors:
            raise SafetyStop(f"{self._errors} errors in a row, the last: {error}") from error


class GuardedHand:
    """The only way from the loop to the hand, which no command passes after a stop.

    From the first command on a thread watches it: when the loop sends none for ``watchdog`` seconds, the hand is made
    passive, whatever the loop is doing.

    Args:
        backend (HandBackend): the hand.
        config (SafetyConfig): the limits.
    """

    def __init__(self, backend: HandBackend, config: SafetyConfig) -> None:
        self._backend, self._config = backend, config
        self._lock = threading.Lock()
        self._last_command: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hand watchdog", daemon=True)
        self.stop_reason: str | None = None
        self.is_passive = True  # until the first command

    def read(self) -> HandState:
        """Reads the present state."""
        with self._lock:
            return self._backend.read()

    def command(self, position: np.ndarray) -> None:
        """Sends a target.

        Raises:
            SafetyStop: if the hand was stopped.
        """
        with self._lock:
            if self.stop_reason is not None:
                raise SafetyStop(self.stop_reason)
            self.is_passive = False  # even of a command that fails on its way
            if self._last_command is None:
                self._last_command = time.monotonic()
                self._thread.start()
            self._backend.command(position)
            self._last_command = time.monotonic()

    def stop(self, reason: str) -> bool:
        """Makes the hand passive, trying for ``passive_timeout`` seconds, and keeps it so.

        Returns:
            Whether the hand confirmed that it is passive. If not, only its power switch helps.
        """
        if self.stop_reason is None:
            self.stop_reason = reason  # before waiting for the lock: no command may follow
        give_up = time.monotonic() + self._config.passive_timeout
        while True:
            has_lock = False
            try:
                # a call of the SDK that hangs would hold the lock for ever: then without it
                has_lock = self._lock.acquire(timeout=self._config.watchdog)
                self._backend.passive()
                self.is_passive = True
            except Exception:  # whatever it is, it must not end the attempts
                self.is_passive = False
            finally:
                if has_lock:
                    self._lock.release()
            if self.is_passive or time.monotonic() > give_up:
                self._ended.set()
                return self.is_passive
            time.sleep(0.02)

    def _watch(self) -> None:
        while not self._ended.wait(self._config.watchdog / 20):
            pause = time.monotonic() - (self._last_command or 0.0)
            if pause > self._config.watchdog and self.stop_reason is None:
                self.stop(f"no command for {1000 * self._config.watchdog:.0f} ms")


def _names(joints: np.ndarray) -> str:
    return ", ".join(name for name, is_meant in zip(JOINTS, joints, strict=True) if is_meant)
