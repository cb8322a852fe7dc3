# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The loop that drives a hand within its limits."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_genpo.deploy.controller import HandController
from torchrl_genpo.deploy.hand import HandBackend, HandError, SafetyConfig
from torchrl_genpo.deploy.safety import GuardedHand, SafetyMonitor, SafetyStop
from torchrl_genpo.deploy.session import SessionLog
from torchrl_genpo.envs.xhand import JOINTS

__all__ = ["RunReport", "run_policy"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POSE_TOLERANCE = 0.01  # rad, by which a start pose may be out of the limits
POWER_OFF = "THE HAND DID NOT CONFIRM THAT IT IS PASSIVE: POWER OFF."
SETTLING = 0.3  # s at the start pose before the controller begins


@dataclass
class RunReport:
    """How a run ended.

    Attributes:
        outcome (str): one of ``completed``, ``interrupted`` by a signal, ``stopped`` for safety, or ``crashed``.
        reason (str): the reason of that outcome.
        is_passive (bool): whether the hand confirmed that it is passive; if not, only its power switch helps.
        seconds (float): the time that the controller drove, without the ramp, s.
        lateness_ms (list of float): how late each of its steps began, ms.
        policy_ms (list of float): how long the controller took in each step, ms.
    """

    outcome: str = "stopped"
    reason: str = ""
    is_passive: bool = False
    seconds: float = 0.0
    lateness_ms: list[float] = field(default_factory=list)
    policy_ms: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        when = f"after {self.seconds:.1f} s" if self.policy_ms else "before the controller began"
        lines = [f"{self.outcome} {when}: {self.reason}."]
        if self.policy_ms:
            for name, values in (("lateness of a step", self.lateness_ms), ("policy", self.policy_ms)):
                middle, high = np.percentile(values, [50, 99])
                lines.append(f"{name}: p50 {middle:.2f} ms, p99 {high:.2f} ms, largest {max(values):.2f} ms.")
        return "\n".join([*lines, "The hand is passive." if self.is_passive else POWER_OFF])


def run_policy(
    controller: HandController,
    backend: HandBackend,
    *,
    seconds: float = 20.0,
    safety: SafetyConfig | None = None,
    log: Path | str | None = None,
    clock: Any = time,
) -> RunReport:
    """Opens a hand, moves it slowly to the start pose and lets a controller drive it, by default at 20 Hz.

    However it ends, the hand is made passive before it is closed: at the end of the time, on Ctrl-C or another signal
    to stop, on anything that :class:`~torchrl_genpo.deploy.safety.SafetyMonitor` refuses, when no command was sent for
    200 ms, and on any exception, which is then raised again.

    What it cannot survive is its own process being killed (``kill -9``) or the computer failing: a hand that is then
    left in position control holds its last target. Keep its power switch within reach.

    Args:
        controller (HandController): what decides on the targets, such as :class:`~torchrl_genpo.deploy.HandPolicy`.
        backend (HandBackend): the hand.

    Keyword Args:
        seconds (float, optional): how long the controller drives, s. Defaults to ``20``.
        safety (SafetyConfig, optional): the limits. Defaults to ``SafetyConfig()``.
        log (Path or str, optional): a CSV file that is written, see :class:`~torchrl_genpo.deploy.SessionLog`.
        clock (FastClock, optional): the clock of the loop, which must be that of the backend. Defaults to the module
            ``time``, which the watchdog always keeps to.

    Returns:
        A report on how the run ended.

    Raises:
        HandError: if the hand cannot be opened.
        ValueError: if the start pose is out of the limits, or ``seconds`` is negative or not finite.

    Examples:
        >>> from torchrl_genpo.deploy import FastClock, SimulatedHand, WaveMotion, run_policy
        >>> clock = FastClock()  # a simulation need not wait
        >>> hand = SimulatedHand(clock=clock)
        >>> run_policy(WaveMotion(), hand, seconds=0.2, clock=clock).outcome
        'completed'
        >>> hand.is_passive
        True
    """
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds={seconds:g} must be finite and not negative.")
    safety = SafetyConfig() if safety is None else safety
    _check_start_pose(controller.start_pose, safety)
    report = RunReport()
    session = None if log is None else SessionLog(log)
    hand = GuardedHand(backend, safety)
    loop = _Loop(controller, hand, safety, session, report, clock)
    with _StopSignals() as signals:
        try:
            backend.open()
            try:
                loop.run(seconds, signals)
            except SafetyStop as stop:
                report.reason = str(stop)
            except BaseException as error:
                report.outcome, report.reason = "crashed", f"{type(error).__name__}: {error}"
                raise
            finally:
                signals.are_ignored = True  # nothing may come between here and a passive hand
                report.is_passive = hand.stop(report.reason)
                passive = "passive" if report.is_passive else POWER_OFF
                if not report.is_passive:  # no report follows an exception
                    sys.stderr.write(f"{POWER_OFF}\n")
                if session is not None:
                    session.write(loop.time, loop.phase, f"{report.outcome}: {report.reason}; {passive}")
        finally:
            backend.close()
            if session is not None:
                session.close()
    return report


def _check_start_pose(pose: np.ndarray, safety: SafetyConfig) -> None:
    outside = np.abs(pose - np.clip(pose, *safety.bounds())) > POSE_TOLERANCE
    if outside.any():
        names = ", ".join(f"{JOINTS[index]} {pose[index]:.3f}" for index in np.flatnonzero(outside))
        raise ValueError(
            f"The start pose is out of the safety limits: {names} rad. From another pose the policy would see what it "
            "has never seen; widen safety.low or safety.high if the hand allows it."
        )


@dataclass
class _Loop:
    """Reads, decides and commands once a control period."""

    controller: HandController
    hand: GuardedHand
    safety: SafetyConfig
    session: SessionLog | None
    report: RunReport
    clock: Any
    phase: str = "ramp"

    def __post_init__(self) -> None:
        self._monitor = SafetyMonitor(self.safety, self.controller.dt)
        self._start = self._next = self.clock.monotonic()
        self._target = np.empty(0)

    @property
    def time(self) -> float:
        """Seconds since the first step."""
        return self.clock.monotonic() - self._start

    def run(self, seconds: float, signals: _StopSignals) -> None:
        """Ramps and then lets the controller act for ``seconds``, or until a signal is received."""
        dt, report = self.controller.dt, self.report
        first = self._first_position()
        goal = np.clip(self.controller.start_pose, *self.safety.bounds())
        ramp_steps = math.ceil(np.abs(goal - first).max() / (self.safety.ramp_speed * dt))
        settling_steps = math.ceil(SETTLING / dt)
        self._target = first
        self._start = self._next = self.clock.monotonic()
        for step in range(1, ramp_steps + settling_steps + 1):
            if self._is_over(signals):
                return
            target = first + min(1.0, step / max(1, ramp_steps)) * (goal - first)
            self._step(lambda state, target=target: (np.empty(0), target))
        self.phase = "run"
        self.controller.reset()
        for _ in range(round(seconds / dt)):
            if self._is_over(signals):
                return
            self._step(lambda state: self.controller.act(state.position.copy(), self._target.copy()))
            report.seconds += dt
        report.outcome, report.reason = "completed", "the time is over"

    def _first_position(self) -> np.ndarray:
        while True:
            try:
                state = self.hand.read()
                self._monitor.check(state, state.position)
                return state.position.copy()
            except HandError as error:
                self._monitor.failed(error)
                self.clock.sleep(self.controller.dt)

    def _is_over(self, signals: _StopSignals) -> bool:
        if signals.received is not None:
            self.report.outcome, self.report.reason = "interrupted", f"received {signals.received}"
        return signals.received is not None

    def _step(self, decide: Any) -> None:
        """One control period: ``decide`` gives an action and a target for a state."""
        self.clock.sleep(max(0.0, self._next - self.clock.monotonic()))
        begin = self.clock.monotonic()
        values: dict[str, Any] = {"lateness_ms": 1000 * (begin - self._next), "policy_ms": 0.0}
        # after a pause the steps that were missed are not made up for
        self._next = max(self._next, begin - self.controller.dt) + self.controller.dt
        event = ""
        try:
            state = self.hand.read()
            values |= vars(state)
            self._monitor.check(state, self._target)
            before = time.perf_counter()
            values["action"], wanted = decide(state)
            values["policy_ms"] = 1000 * (time.perf_counter() - before)
            self._target = self._monitor.limit(wanted, self._target)
            self.hand.command(self._target)
            self._monitor.succeeded()
        except HandError as error:
            event = str(error)
            self._monitor.failed(error)
            if "action" not in values:  # nothing was decided: the hand is told to stay where it was sent
                with contextlib.suppress(HandError):
                    self.hand.command(self._target)
        finally:
            if self.phase == "run":
                self.report.lateness_ms.append(values["lateness_ms"])
                self.report.policy_ms.append(values["policy_ms"])
            if self.session is not None:
                self.session.write(begin - self._start, self.phase, event, target=self._target, **values)


class _StopSignals:
    """Remembers the first signal to stop; a second one interrupts at once, unless all are ignored.

    Python handles signals in its main thread only; in another nothing is caught here.
    """

    def __init__(self) -> None:
        self.received: str | None = None  # the name of the first signal
        self.are_ignored = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.are_ignored:
            return
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
