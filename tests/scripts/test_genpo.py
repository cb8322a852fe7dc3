"""The entry script: trains, resumes to the last bit, evaluates, and explains what is wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from torchrl_genpo.commands import evaluate
from torchrl_genpo.training.checkpoint import best_checkpoint, checkpoints_of, frames_of, read_checkpoint
from torchrl_genpo.training.metrics import METRICS, read_metrics

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from forks import run_entry_script
from runs import EVERYTHING, TINY, launch, run, train

TIMES = {"time/seconds", "time/collect", "time/update"}


def metrics(folder):
    columns = read_metrics(folder / "metrics.csv")
    return {key: torch.tensor(values) for key, values in columns.items() if key not in TIMES}


def flat(value, name=""):
    """Every leaf of nested dictionaries and lists, by its path."""
    if isinstance(value, dict):
        return {key: leaf for part, child in value.items() for key, leaf in flat(child, f"{name}/{part}").items()}
    if isinstance(value, (list, tuple)):
        return {key: leaf for n, child in enumerate(value) for key, leaf in flat(child, f"{name}/{n}").items()}
    return {name: value}


def state(folder):
    """All that the newest checkpoint holds, times apart, to the last bit."""
    leaves = flat(read_checkpoint(checkpoints_of(folder)[-1]))
    assert any(torch.is_tensor(leaf) for leaf in leaves.values())
    return {
        name: leaf.cpu().numpy().tobytes() if torch.is_tensor(leaf) else leaf
        for name, leaf in leaves.items()
        if not name.startswith("/config") and name != "/progress/seconds"
    }


@pytest.mark.parametrize(
    "choice",
    [
        ["env=hopper"],
        ["env=walker2d", "policy=gaussian"],
        ["env=multi_goal", "policy=fpo"],
        EVERYTHING,
        ["env=xhand/nut_bolt", "env.options.max_steps=20", "eval.num_envs=1"],
    ],
    ids=["flow", "gaussian", "fpo", "every option of the flow", "hand"],
)
def test_n_updates_and_resume_equal_2n_updates_to_the_last_bit(tmp_path, choice):
    options = [*choice, "seed=3", "eval.interval=1024"]
    train(tmp_path / "whole", 2048, *options)
    train(tmp_path / "halves", 1024, *options)
    assert "1024 frames are trained; collector.total_frames=512 asks for no more" in run(
        f"resume={tmp_path / 'halves'}", "collector.total_frames=512"
    )
    run(f"resume={tmp_path / 'halves'}", "collector.total_frames=2048")
    whole, halves = metrics(tmp_path / "whole"), metrics(tmp_path / "halves")
    assert whole["frames"].tolist() == [256 * i for i in range(1, 9)]
    for key, values in whole.items():
        assert torch.equal(values.nan_to_num(-1), halves[key].nan_to_num(-1)), key
    assert state(tmp_path / "whole") == state(tmp_path / "halves")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "pendulum"
    output = train(folder, 1024, "env=pendulum")
    return folder, output


def test_a_run_leaves_its_folder(finished):
    folder, output = finished
    assert (folder / "learning_curve.png").stat().st_size > 5000
    assert yaml.safe_load((folder / "config.yaml").read_text())["env"]["name"] == "pendulum"
    columns = read_metrics(folder / "metrics.csv")
    assert list(columns) == METRICS and len(columns["frames"]) == 4
    evaluated = [value == value for value in columns["eval/zero_noise/return"]]
    assert evaluated == [False, True, False, True]
    assert max(columns["train/inversion_error"]) < 1e-4
    assert not list(folder.rglob(".*")), "temporary files were left behind"
    assert str(folder) in output


def test_evaluate_gives_what_training_reported(finished):
    folder, _ = finished
    checkpoint = checkpoints_of(folder)[-1]
    output = run(f"evaluate={checkpoint}")
    assert "2 episodes with each noise" in output
    for key in ("eval/zero_noise/return", "eval/random_noise/return"):
        value = read_metrics(folder / "metrics.csv")[key][-1]
        assert f"{key}: {value:.1f}" in output


def test_every_option_of_the_flow_is_logged_and_evaluated(tmp_path):
    train(tmp_path / "run", 1024, *EVERYTHING)
    columns = read_metrics(tmp_path / "run" / "metrics.csv")
    assert all(0 < size <= 1 for size in columns["diagnostics/ess"])
    assert all(value == value for value in columns["diagnostics/kl_action"])
    output = run(f"evaluate={checkpoints_of(tmp_path / 'run')[-1]}", "eval.num_envs=2")
    assert f"eval/random_noise/return: {columns['eval/random_noise/return'][-1]:.1f}" in output


def test_a_folder_that_holds_a_run_is_refused(finished):
    folder, _ = finished
    before = (folder / "metrics.csv").read_text()
    output = run(f"hydra.run.dir={folder}", succeeds=False)
    assert "already holds a run" in output and f"resume={folder}" in output and "Traceback" not in output
    assert (folder / "metrics.csv").read_text() == before


def test_a_checkpoint_cut_short_is_refused(finished, tmp_path):
    checkpoint = checkpoints_of(finished[0])[-1]
    cut = tmp_path / checkpoint.name
    cut.write_bytes(checkpoint.read_bytes()[:-1000])
    output = run(f"evaluate={cut}", succeeds=False)
    assert "cut short" in output and str(cut) in output and "Traceback" not in output


def edit_config(folder, section, **values):
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config[section] |= values
    path.write_text(yaml.safe_dump(config))


def test_a_checkpoint_of_another_configuration_is_refused(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    edit_config(folder, "policy", hidden_sizes=[32, 32])
    output = run(f"resume={folder}", "collector.total_frames=2048", succeeds=False)
    assert "of another configuration" in output and "Traceback" not in output


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    edit_config(folder, "optim", schedule="linear", lr=1e6)
    output = run(f"resume={folder}", "collector.total_frames=2048", "tolerance.undone_updates=2", succeeds=False)
    assert "1 of 2 in a row" in output and (folder / "bad_batch.pt").exists()
    kept = checkpoints_of(folder)[-1]
    assert "DivergedError" in output and "loss_objective" in output and f"Last good checkpoint: {kept}" in output
    run(f"evaluate={kept}", "eval.num_envs=2")


def test_help_names_every_group_and_option():
    output = run("--help")
    for word in ("half_cheetah", "gaussian", "wandb", "resume=", "evaluate=", "clip_epsilon"):
        assert word in output


def test_a_run_that_knows_less_options_than_today_resumes_with_their_defaults(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    config = folder / "config.yaml"
    lines = config.read_text().splitlines()
    older = [line for line in lines if line.strip().partition(":")[0] not in ("critic_lr", "critic_warmup")]
    assert len(older) == len(lines) - 2
    config.write_text("\n".join(older) + "\n")
    run(f"resume={folder}", "collector.total_frames=1280")
    assert metrics(folder)["frames"].tolist()[-1] == 1280
    assert "critic_warmup: 0" in config.read_text()


def test_resume_refuses_another_configuration(finished):
    output = run(f"resume={finished[0]}", "loss.epochs=3", succeeds=False)
    assert "'loss.epochs=3' would change it" in output and "Traceback" not in output


@pytest.mark.parametrize(
    ("override", "messages"),
    [
        ("env=half_cheeta", ["half_cheeta", "walker2d", "Did you mean half_cheetah"]),
        ("env=isaaclab/base", ["env.name is missing: give it a value"]),
        ("checkpoint.keep_best=eval/zero_noise/retrun", ["retrun is no column", "Did you mean eval/zero_noise/return"]),
        ("compile.mode=foo", ["compile.mode=foo", "reduce-overhead"]),
        ("evaluate=half_cheetah solver.num_steps=1", ["evaluated as it was trained", "'solver.num_steps=1'"]),
        ("evaluate=half_cheetah eval.rounds=0", ["eval.rounds=0 evaluates nothing"]),
        ("evaluate=half_cheetah device=cuda:99", ["device=cuda:99", "can use cpu"]),
        ("device=cuda:99", ["device=cuda:99", "can use cpu"]),
        ("device=mps", ["device=mps: use cpu, cuda or", "no float64"]),
        ("device=tpu", ["device=tpu: use cpu"]),
        ("compile.cudagraphs=true", ["compile.cudagraphs=true needs a CUDA device, not device=cpu"]),
        ("env.name=HalfCheeta-v5", ["Unknown environment", "HalfCheetah-v5"]),
        ("loss.clip_epsilonn=0.1", ["clip_epsilonn", "Did you mean clip_epsilon?"]),
        ("solver.sigma=0", ["solver.sigma=0", "must not be 0"]),
        ("solver.num_steps=0", ["solver.num_steps=0", "greater than or equal to 1"]),
        ("solver.num_steps=100 solver.sigma=0.5", ["sigma=0.5", "num_steps=100", "at most"]),
        ("policy.time_embedding_dim=3", ["policy.time_embedding_dim=3"]),
        ("start=pape", ["start/pape", "pretrained", "paper"]),
        ("optim.schedule=linera", ["optim.schedule=linera", "Did you mean linear?"]),
        ("loss.entropy_coeff=0.01 policy.scale=unit", ["entropy of the pair is a constant", "policy.scale=learned"]),
        ("start.name=indep", ["start.name=indep", "Did you mean independent?"]),
        ("start=consistent start.tau=0", ["start.tau=0", "greater than 0"]),
        ("policy=gaussian start=consistent", ["policy=gaussian has neither solver nor start", "'start=consistent'"]),
        ("policy=fpo solver.num_steps=8", ["leave 'solver.num_steps=8' out", "policy.options.<name>"]),
        ("policy.activation=mishh", ["policy.activation=mishh", "mish"]),
        ("collector.frames_per_batch=2050", ["collector.frames_per_batch=2050", "2048 or 2064"]),
        ("resume=nowhere", ["there is no run", "Give the folder of a run"]),
        ("resume=nowhere evaluate=half_cheetah", ["give one of the two"]),
        ("optim.epochs=3", ["Did you mean loss.epochs?"]),
        ("evaluate=nowhere", ["nowhere", "Policies that come with the library: half_cheetah"]),
    ],
)
def test_mistakes_are_explained(tmp_path, override, messages):
    folder = [] if "resume" in override else ["hydra.run.dir=run"]
    outcome = run_entry_script([*folder, *override.split()], tmp_path / "working")
    assert outcome.fault is None, outcome
    assert all(message in outcome.output for message in messages), outcome.output
    assert "Traceback" not in outcome.output and "Error executing job" not in outcome.output


def test_ctrl_c_saves_a_checkpoint_and_exits_cleanly(tmp_path):
    folder = tmp_path / "run"
    command = launch(*TINY, "env=pendulum", f"hydra.run.dir={folder}", "checkpoint.interval=10_000_000")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert f"resume={folder}" in output
    frames = int(read_metrics(folder / "metrics.csv")["frames"][-1])
    run(f"resume={folder}", f"collector.total_frames={frames + 256}")
    assert int(read_metrics(folder / "metrics.csv")["frames"][-1]) == frames + 256
    check_the_best_is_kept(folder)  # though no checkpoint was due where it was evaluated


STOPPED = """
import signal
from torchrl_genpo.commands import train

class Stopped(train.StopRequest):
    def __enter__(self):
        super().__enter__()
        signal.raise_signal(signal.SIGTERM)
        return self

train.StopRequest = Stopped
train.main()
"""


def test_a_run_that_is_stopped_while_it_is_built_leaves_nothing_and_says_so(tmp_path):
    options = [*TINY, f"hydra.run.dir={tmp_path / 'run'}", "checkpoint.preempted_exit_code=85"]
    ended = subprocess.run([sys.executable, "-c", STOPPED, *options], capture_output=True, text=True)
    assert ended.returncode == 85 and "Stopped before the first update" in ended.stdout, ended
    assert "resume=" not in ended.stdout and not (tmp_path / "run").exists()


def check_the_best_is_kept(folder):
    columns = read_metrics(folder / "metrics.csv")
    values = dict(zip(columns["frames"], columns["eval/zero_noise/return"], strict=True))
    best = best_checkpoint(folder, "eval/zero_noise/return")
    assert values[frames_of(best)] == max(value for value in values.values() if value == value)


def start(*overrides):
    return subprocess.Popen(launch(*TINY, *overrides), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert path.exists()


def test_preemption_saves_a_checkpoint_and_exits_with_the_schedulers_code(tmp_path):
    folder = tmp_path / "run"
    always = ["eval.interval=256", "checkpoint.interval=256"]  # so that it stops where it has just evaluated
    process = start("env=pendulum", f"hydra.run.dir={folder}", "checkpoint.preempted_exit_code=85", *always)
    wait_for(folder / "metrics.csv")
    again = run(f"resume={folder}", succeeds=False)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 85, output
    assert "Another process trains" in again
    check_the_best_is_kept(folder)
    frames = int(read_metrics(folder / "metrics.csv")["frames"][-1])
    run(f"resume={folder}", f"collector.total_frames={frames + 256}")
    assert int(read_metrics(folder / "metrics.csv")["frames"][-1]) == frames + 256


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_as_if_nothing_had_happened(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    expected = metrics(folder), state(folder)
    newest = checkpoints_of(folder)[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 3] ^= 4
    newest.write_bytes(data)
    output = run(f"resume={folder}")
    assert f"{newest} is damaged" in output
    for key, values in expected[0].items():
        assert torch.equal(values.nan_to_num(-1), metrics(folder)[key].nan_to_num(-1)), key
    assert state(folder) == expected[1]


def test_a_full_disk_is_explained_and_the_run_can_go_on(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    command = " ".join(launch(f"resume={folder}", "collector.total_frames=1536"))
    result = subprocess.run(["bash", "-c", f"ulimit -f 100; {command}"], capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert "File too large" in result.stderr and f"then continue: genpo-train resume={folder}" in result.stderr
    run(f"resume={folder}", "collector.total_frames=1536")
    assert metrics(folder)["frames"].tolist()[-1] == 1536


NAN_TASK = """
import gymnasium, numpy
from gymnasium.envs.classic_control import PendulumEnv

class Broken(PendulumEnv):
    steps = 0
    def step(self, action):
        obs, reward, *rest = super().step(action)
        Broken.steps += 1
        return obs, (float("nan") if Broken.steps in range({first}, {last}) else reward), *rest

gymnasium.register("Broken-v0", Broken, max_episode_steps=100)
"""


def test_a_simulator_that_breaks_for_a_moment_costs_one_update(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(NAN_TASK.format(first=300, last=302))
    monkeypatch.syspath_prepend(tmp_path)
    output = train(tmp_path / "run", 1024, "env=pendulum", "env.name=broken:Broken-v0")
    assert "Update undone at frame 512 (1 of 5 in a row)" in output
    assert "reward (first in step 10 of the batch, environment 3)" in output
    columns = metrics(tmp_path / "run")
    assert columns["train/undone"].tolist() == [0, 1, 0, 0]
    assert columns["train/loss_critic"][2:].isfinite().all() and columns["train/return"][3].isfinite()


def test_the_commands_do_what_the_scripts_do(finished):
    folder, _ = finished
    output = run(folder, "eval.num_envs=2", path=Path(evaluate.__file__))
    best = max(value for value in read_metrics(folder / "metrics.csv")["eval/zero_noise/return"] if value == value)
    assert f"eval/zero_noise/return: {best:.1f}" in output
