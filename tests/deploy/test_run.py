"""The command: a newcomer's first run, its log and its errors."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from fake_sdk import FakeSDK

from torchrl_genpo.commands.deploy import DryRun, main
from torchrl_genpo.deploy import (
    FastClock,
    HandConfig,
    SafetyConfig,
    SimulatedHand,
    XHandBackend,
    draw_session,
    read_session,
    run_policy,
)
from torchrl_genpo.deploy.controller import WaveMotion
from torchrl_genpo.envs.xhand import JOINTS

pytestmark = pytest.mark.extras("deploy")

QUICK = ["--set", "safety.ramp_speed=2", "safety.watchdog=5"]  # a busy machine may stop a test for long


def run(tmp_path, *options):
    return main(["--seconds", "0.3", "--log", str(tmp_path), *options, *QUICK])


def test_without_options_it_waves_in_simulation(tmp_path, capsys):
    assert run(tmp_path) == 0
    output = capsys.readouterr().out
    for part in ("sim hand: ramp", "completed after 0.3 s", "The hand is passive", "The nut turned 0.00 times"):
        assert part in output
    assert (tmp_path / "log.png").stat().st_size > 10_000


def test_a_policy_drives_the_simulated_hand(policy_folder, tmp_path):
    assert run(tmp_path, "--policy", str(policy_folder), "--nut", "square") == 0
    session = read_session(tmp_path / "log.csv")
    is_run = (session["phase"] == "run") & (session["event"] == "")
    assert is_run.sum() == 6 and session["event"][-1].startswith("completed")
    actions = np.stack([session[f"action/{index}"][is_run] for index in range(8)], 1)
    targets = np.stack([session[f"target/{joint}"] for joint in JOINTS], 1)[np.flatnonzero(is_run)[0] - 1 :][:7]
    np.testing.assert_allclose(np.diff(targets, axis=0)[:, 4:8], actions[:, 4:8] / 24, atol=2e-4)
    assert np.isnan(session["action/8"]).all() and session["policy_ms"][is_run].max() < 1000


def test_limits_that_cut_the_policys_targets_are_said(policy_folder, tmp_path, capsys):
    options = ["--policy", str(policy_folder), "--seconds", "0.1"]
    for settings, part in (([], None), (["safety.low.thumb_rota2=0.0"], "cut targets of thumb_rota2.")):
        assert main([*options, "--log", str(tmp_path / str(len(settings))), *QUICK, *settings]) == 0
        output = capsys.readouterr().out
        assert part in output if part else "narrower" not in output


def test_a_stop_for_safety_ends_with_another_exit_code(tmp_path, capsys):
    assert run(tmp_path) == 0
    options = ["--seconds", "0.3", "--log", str(tmp_path / "stopped"), *QUICK, "safety.max_tracking_error=0.01"]
    assert main(options) == 1
    assert "rad from the target" in capsys.readouterr().out


def test_settings_may_be_given_one_by_one(tmp_path, capsys):
    options = ["--set", "safety.max_tracking_error=0.01", "--set", "hand.kp=90"]
    assert run(tmp_path, *options) == 1 and "rad from the target" in capsys.readouterr().out


def test_a_dry_run_reads_but_never_moves_the_hand():
    clock = FastClock()
    sdk = FakeSDK(noise=0.0, clock=clock)
    limits = SafetyConfig().model_copy(update={"max_tracking_error": np.inf})  # as the command has it
    report = run_policy(WaveMotion(), DryRun(XHandBackend(HandConfig(), sdk)), seconds=9.0, safety=limits, clock=clock)
    assert report.outcome == "completed" and sdk.hand.first_command is None
    np.testing.assert_allclose(sdk.hand.position, 0.1)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_command_is_ended_by_a_signal_with_the_hand_passive(tmp_path, name):
    command = [sys.executable, "-m", "torchrl_genpo.commands.deploy", "--log", tmp_path]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "log.csv").exists() or (tmp_path / "log.csv").read_text().count("\n") < 5:
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.05)
        process.send_signal(getattr(signal, name))
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and f"received {name}" in output and "The hand is passive" in output
    assert read_session(tmp_path / "log.csv")["event"][-1] == f"interrupted: received {name}; passive"


def test_errors_are_sentences(tmp_path, policy_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "xhand_controller", None)
    for options, message in {
        ("--policy", str(tmp_path)): "holds no policy",
        ("--policy", str(policy_folder), "--set", "hand.side=left"): "is for a right hand",
        ("--set", "safety.max_temprature=60"): "Did you mean max_temperature",
        ("--hand", str(tmp_path / "none.yaml")): "No such file",
        ("--backend", "xhand", "--yes"): "RobotEra",
    }.items():
        with pytest.raises(SystemExit, match=message):
            main([*options, "--log", str(tmp_path)])
    (tmp_path / "log.csv").touch()
    with pytest.raises(SystemExit, match="is the record of another run"):
        main(["--log", str(tmp_path)])


def test_a_session_is_drawn_even_if_it_is_short(tmp_path):
    clock = FastClock()
    run_policy(WaveMotion(), SimulatedHand(clock=clock), seconds=0.0, log=tmp_path / "log.csv", clock=clock)
    draw_session(tmp_path / "log.csv", tmp_path / "log.png")
    assert (tmp_path / "log.png").exists()
