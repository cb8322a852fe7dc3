"""Whatever goes wrong, the hand ends passive: mode 0 and no torque on every joint."""

from __future__ import annotations

import signal
import threading
import time

import numpy as np
import pytest
from fake_sdk import FakeSDK
from faults import Fault, FaultyController

from torchrl_genpo.deploy import (
    FastClock,
    HandConfig,
    HandState,
    SafetyConfig,
    WaveMotion,
    XHandBackend,
    read_session,
    run_policy,
)
from torchrl_genpo.deploy.safety import GuardedHand, SafetyMonitor, SafetyStop
from torchrl_genpo.envs.xhand import JOINTS

# a busy machine may stop a test for longer than a watchdog waits; where it is meant to bite, it is the default's
CALM = {"ramp_speed": 3.0, "passive_timeout": 0.3, "watchdog": 5.0}
WATCHFUL = {"watchdog": 0.2}


class Still:
    """A controller that stays at a pose near the fake hand's first, so that the ramp is short."""

    dt = 0.05

    def __init__(self, act=None):
        self.start_pose = np.full(12, 0.1)
        self._act = act

    def reset(self):
        pass

    def act(self, position, target):
        return np.zeros(8), target if self._act is None else self._act(target)


def run(faults=(), controller=None, seconds=1.0, clock=None, **safety):
    """A run in a time without waiting, or by the given clock."""
    clock = FastClock() if clock is None else clock
    sdk, limits = FakeSDK(faults, clock=clock), SafetyConfig(**(CALM | safety))
    backend = XHandBackend(HandConfig(), sdk)
    report = run_policy(controller or Still(), backend, seconds=seconds, safety=limits, clock=clock)
    return report, sdk


def state(position, temperature=30.0, errors=0):
    return HandState(np.asarray(position, float), np.zeros(12), np.full(12, temperature), np.full(12, errors))


def test_a_run_that_completes_ends_passive():
    report, sdk = run(seconds=0.2)
    assert (report.outcome, report.is_passive) == ("completed", True) and sdk.hand.is_passive


HAND_FAULTS = {
    "error_code": "3 errors in a row, the last: read_state failed",
    "board_error": "error flags on the boards of index_1",
    "nan_state": "the position of index_1 is not finite",
    "zero_state": "zeros only",
    "overheat": "index_1 at 37 degrees",
    "hang": "no command for 200 ms",
}


@pytest.mark.parametrize("kind", HAND_FAULTS)
def test_a_fault_of_the_hand_stops_the_run_and_leaves_it_passive(kind):
    options = {"max_temperature": 36.0} if kind == "overheat" else WATCHFUL if kind == "hang" else {}
    report, sdk = run([Fault(kind, start=0.5)], clock=time if kind == "hang" else None, **options)
    assert report.outcome == "stopped" and sdk.hand.is_passive and report.is_passive
    assert HAND_FAULTS[kind] in report.reason


def test_a_stuck_joint_stops_the_run():
    """On the way to the start pose, too."""
    report, sdk = run([Fault("stuck", 0.2, joint="thumb_bend")], WaveMotion(), ramp_speed=2.0)
    assert "thumb_bend 0.6" in report.reason and sdk.hand.is_passive and report.seconds == 0
    assert "stopped before the controller began: " in str(report)


def test_an_unplugged_hand_is_made_passive_when_it_is_back():
    report, sdk = run([Fault("unplugged", 0.5, duration=1.0)], seconds=3.0, clock=time, passive_timeout=5.0)
    assert report.outcome == "stopped" and report.is_passive and sdk.hand.is_passive


def test_an_unplugged_hand_that_stays_so_is_said_to_be_out_of_reach():
    report, _ = run([Fault("unplugged", 0.5)])
    assert not report.is_passive and "POWER OFF" in str(report)


@pytest.mark.parametrize(
    ("kind", "reason"), [("nan_action", "not finite for index_1"), ("pause", "no command for 200 ms")]
)
def test_a_fault_of_the_policy_stops_the_run(kind, reason):
    options = WATCHFUL if kind == "pause" else {}
    report, sdk = run(controller=FaultyController(Still(), Fault(kind, start=0.2)), **options)
    assert report.outcome == "stopped" and reason in report.reason and sdk.hand.is_passive


def test_during_a_pause_of_the_policy_the_hand_is_passive_before_the_policy_is_back():
    sdk, seen = FakeSDK(), []

    def think(target):
        time.sleep(1.5)
        seen.append(sdk.hand.is_passive)
        return target

    slow = SafetyConfig(watchdog=0.6)  # a busy machine may pause for 0.2 s by itself
    report = run_policy(Still(think), XHandBackend(HandConfig(), sdk), seconds=1.0, safety=slow)
    assert seen == [True] and "600 ms" in report.reason and sdk.hand.is_passive


def test_an_exception_is_raised_again_and_leaves_the_hand_passive():
    sdk = FakeSDK()
    controller = FaultyController(Still(), Fault("crash", start=0.1))
    with pytest.raises(RuntimeError, match="on purpose"):
        run_policy(controller, XHandBackend(HandConfig(), sdk), seconds=1.0)
    assert sdk.hand.is_passive


def test_after_an_exception_a_hand_out_of_reach_is_said_to_be_so(tmp_path, capsys):
    """No report follows an exception."""
    clock = FastClock()
    sdk = FakeSDK([Fault("unplugged", 0.4)], clock=clock)

    def act(target):
        clock.sleep(1.0)
        raise RuntimeError("on purpose")

    log = tmp_path / "log.csv"
    with pytest.raises(RuntimeError, match="on purpose"):
        run_policy(Still(act), XHandBackend(HandConfig(), sdk), safety=SafetyConfig(**CALM), clock=clock, log=log)
    assert "POWER OFF" in capsys.readouterr().err and "POWER OFF" in read_session(log)["event"][-1]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_run(name):
    before = signal.getsignal(getattr(signal, name))

    def act(target):
        signal.raise_signal(getattr(signal, name))
        return target

    report, sdk = run(controller=Still(act))
    assert (report.outcome, report.reason) == ("interrupted", f"received {name}") and sdk.hand.is_passive
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_second_ctrl_c_interrupts_a_policy_that_does_not_return():
    sdk = FakeSDK()

    def act(target):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return target

    with pytest.raises(KeyboardInterrupt):
        run_policy(Still(act), XHandBackend(HandConfig(), sdk), seconds=1.0)
    assert sdk.hand.is_passive


def test_signals_while_the_hand_is_made_passive_do_not_keep_it_from_that():
    sdk = FakeSDK()

    class Backend(XHandBackend):
        def passive(self):
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
            super().passive()

    assert run_policy(Still(), Backend(HandConfig(), sdk), seconds=0.1).outcome == "completed"
    assert sdk.hand.is_passive


def test_a_single_bad_reading_is_survived():
    report, sdk = run([Fault("error_code", 0.4, duration=0.07)], seconds=0.6)
    assert report.outcome == "completed" and sdk.hand.is_passive


def test_a_run_works_away_from_the_main_thread():
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(run(seconds=0.1)[0].outcome))
    thread.start()
    thread.join()
    assert outcomes == ["completed"]


def test_the_hand_moves_to_the_start_pose_slowly(tmp_path):
    clock, speed = FastClock(), 1.5
    sdk = FakeSDK(clock=clock)
    backend, path = XHandBackend(HandConfig(), sdk), tmp_path / "log.csv"
    limits = SafetyConfig(**(CALM | {"ramp_speed": speed}))
    run_policy(WaveMotion(), backend, seconds=0.1, safety=limits, log=path, clock=clock)
    session = read_session(tmp_path / "log.csv")
    ramp = session["phase"] == "ramp"
    targets = np.stack([session[f"target/{joint}"][ramp] for joint in JOINTS], 1)
    assert np.abs(targets[0] - 0.1).max() <= speed * 0.05 + 0.01  # 0.01: noise of the first reading
    assert 0.9 * speed * 0.05 < np.abs(np.diff(targets, axis=0)).max() <= speed * 0.05 + 1e-4
    np.testing.assert_allclose(targets[-1], WaveMotion().start_pose, atol=1e-4)


def test_a_start_pose_out_of_the_limits_is_refused_before_anything_moves():
    sdk = FakeSDK()
    controller = Still()
    controller.start_pose = np.full(12, 0.5)
    with pytest.raises(ValueError, match=r"index_bend 0\.500"):
        run_policy(controller, XHandBackend(HandConfig(), sdk))
    assert sdk.hand.first_command is None


def test_targets_are_clipped_to_limits_and_steps():
    config = SafetyConfig(max_speed=2.0)
    monitor = SafetyMonitor(config, dt=0.05)
    low, high = config.bounds()
    previous, rng = (low + high) / 2, np.random.default_rng(0)
    for _ in range(200):
        target = monitor.limit(previous + rng.standard_normal(12), previous)
        assert (target >= low).all() and (target <= high).all() and np.abs(target - previous).max() <= 0.1 + 1e-12
        previous = target


def test_a_hand_found_beyond_its_limits_is_led_back_and_never_farther_out():
    monitor = SafetyMonitor(SafetyConfig(), dt=0.05)
    outside = np.full(12, 0.1)
    outside[JOINTS.index("index_bend")] = 0.4
    assert monitor.limit(outside + 0.05, outside)[3] == 0.4
    assert 0.2 < monitor.limit(np.full(12, 0.1), outside)[3] < 0.4


def test_what_is_not_finite_too_hot_or_too_far_is_refused():
    monitor = SafetyMonitor(SafetyConfig(), dt=0.05)
    here = np.full(12, 0.1)
    monitor.check(state(here), here)
    monitor.check(state(here, temperature=70.0), here + 0.59)
    for bad, message in (
        (state(here, temperature=70.5), "degrees"),
        (state(here, temperature=np.nan), "degrees"),
        (state(here + 0.61), "from the target"),
    ):
        with pytest.raises(SafetyStop, match=message):
            monitor.check(bad, here)
    for value in (np.nan, np.inf):
        with pytest.raises(SafetyStop, match="not finite"):
            monitor.limit(np.full(12, value), here)


def test_after_a_stop_no_command_passes():
    sdk = FakeSDK()
    backend = XHandBackend(HandConfig(), sdk)
    backend.open()
    hand = GuardedHand(backend, SafetyConfig())
    hand.command(np.full(12, 0.2))
    assert not sdk.hand.is_passive and hand.stop("enough")
    with pytest.raises(SafetyStop, match="enough"):
        hand.command(np.full(12, 0.2))
    assert sdk.hand.is_passive


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_tracking_error", np.nan, "a finite number"),
        ("max_temperature", np.inf, "a finite number"),
        ("watchdog", np.inf, "a finite number"),
        ("watchdog", 1e9, "less than or equal to 10"),
        ("max_speed", -1.0, "greater than 0"),
        ("max_errors", 0, "greater than 0"),
    ],
)
def test_a_limit_that_would_limit_nothing_is_refused(name, value, message):
    with pytest.raises(ValueError, match=rf"{name}\s+Input should be {message}"):
        SafetyConfig(**{name: value})


@pytest.mark.parametrize("seconds", [-1.0, np.nan, np.inf])
def test_a_time_that_does_not_end_is_refused_before_anything_moves(seconds):
    sdk = FakeSDK()
    with pytest.raises(ValueError, match=f"seconds={seconds:g} must be finite and not negative"):
        run_policy(Still(), XHandBackend(HandConfig(), sdk), seconds=seconds)
    assert sdk.hand.first_command is None
