"""From demonstrations of RoboMimic to fine-tuning, by the commands.

Needs robosuite; `.ci/run` installs it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from torchrl_genpo.data.robomimic import INSTALL, read_demonstrations
from torchrl_genpo.training.checkpoint import best_checkpoint, frames_of, read_checkpoint
from torchrl_genpo.training.metrics import read_metrics

HAS_ROBOSUITE = importlib.util.find_spec("robosuite") is not None
pytestmark = pytest.mark.skipif(not HAS_ROBOSUITE, reason=f"needs robosuite: {INSTALL}")
h5py = pytest.importorskip("h5py", reason=f"needs robosuite: {INSTALL}")
ROOT = Path(__file__).parents[2]


def run(*command, succeeds=True):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=environment, timeout=900, cwd=ROOT
    )
    assert (result.returncode == 0) == succeeds, result.stdout + result.stderr
    return result.stdout + result.stderr


COLLECT = ("-m", "torchrl_genpo.commands.collect")


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    path = tmp_path_factory.mktemp("demos") / "can.hdf5"
    output = run(*COLLECT, "robomimic/can", "--episodes", 3, "--output", path, "--workers", 2)
    assert "3 of 3 episodes succeeded" in output
    return path


SMALL = ["policy.hidden_sizes=[32,32]", "eval.num_envs=2", "eval.rounds=1", "env.options.horizon=24"]


@pytest.fixture(scope="module")
def pretrained(demonstrations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    output = run(
        "sota-implementations/pretrain.py",
        f"pretrain.dataset={demonstrations}",
        "pretrain.iterations=60",
        "pretrain.log_interval=20",
        "pretrain.checkpoint_interval=20",
        f"hydra.run.dir={folder}",
        *SMALL,
    )
    return folder, output


def test_pretraining_learns_evaluates_and_resumes(pretrained):
    folder, output = pretrained
    columns = read_metrics(folder / "metrics.csv")
    assert columns["iteration"] == [20, 40, 60]
    assert columns["train/loss"][-1] < columns["train/loss"][0]
    for way in ("euler", "reversible"):
        for noise in ("zero", "random"):
            assert re.search(rf"{way} eval/{noise}_noise/success: \d\.\d+", output)
    run("sota-implementations/pretrain.py", f"resume={folder}", "pretrain.iterations=80")
    resumed = read_metrics(folder / "metrics.csv")
    assert resumed["iteration"] == [20, 40, 60, 80]
    assert resumed["train/loss"][:3] == columns["train/loss"]
    output = run("sota-implementations/pretrain.py", f"resume={folder}")  # nothing is left to do
    assert read_metrics(folder / "metrics.csv")["iteration"][-1] == 80
    assert "genpo-train env=robomimic/can 'policy.hidden_sizes=[32,32]' policy.init=" in output
    output = run("sota-implementations/pretrain.py", f"resume={folder}", "pretrain.lr=1e-2", succeeds=False)
    assert "'pretrain.lr=1e-2' would change it" in output and "Traceback" not in output
    evaluation = ("sota-implementations/pretrain.py", f"evaluate={folder}", "eval.num_envs=2", "eval.rounds=1")
    outputs = [run(*evaluation, *options) for options in ([], ["euler=true"], ["start=paper"])]
    found = [re.findall(r"eval/zero_noise/reward_sum: .*|eval/zero_noise/return: .*", output) for output in outputs]
    assert all(found)
    assert "'env=robomimic/threading' would change it" in run(*evaluation, "env=robomimic/threading", succeeds=False)


def test_what_a_policy_achieves_becomes_demonstrations_on_which_it_can_train(tmp_path):
    path = tmp_path / "can.hdf5"
    collect = (
        *COLLECT,
        "robomimic/can",
        "--policy",
        "robomimic/can",
        "--episodes",
        2,
        "--workers",
        2,
    )
    assert "2 of 2 episodes succeeded" in run(*collect, "--output", path)
    first, second = read_demonstrations(path, ["object"])
    assert not torch.equal(first["observation"][0], second["observation"][0])
    with h5py.File(path) as file:
        for name in file["data"]:
            rewards = file[f"data/{name}/rewards"][()]
            assert rewards[:-6].sum() == 0 and (rewards[-6:] == 1).all(), "it ends where the can has come to stay"
        assert file["data/demo_0"].attrs["model_file"].count("<mesh ") > 50, "it can be played back and drawn"
    wrong = run(*COLLECT, "robomimic/lift", succeeds=False)
    assert "no scripted expert for robomimic/lift: give a --policy" in wrong and "Traceback" not in wrong
    wrong = run(*COLLECT, "robomimic/threading", "--policy", "robomimic/can", succeeds=False)
    assert "is a policy of robomimic/can, not of robomimic/threading" in wrong


def workers_of(process):
    """The processes that one has spawned so far."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_collection_ends_when_a_worker_dies(tmp_path):
    command = [sys.executable, *COLLECT, "robomimic/can", "--workers", "1"]
    command += ["--output", str(tmp_path / "can.hdf5")]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    deadline, workers = time.monotonic() + 120, []
    while not workers and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        workers = workers_of(process)
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "A worker died after 0 episodes" in errors and "Traceback" not in errors


def test_the_policy_that_comes_with_the_library_is_finetuned(tmp_path):
    options = ["env=robomimic/can", "policy.init=robomimic/can", "env.num_envs=2", "env.options.horizon=16"]
    options += ["collector.frames_per_batch=8", "collector.total_frames=8", "loss.mini_batch_size=8"]
    run("sota-implementations/genpo.py", *options, "eval.num_envs=1", "eval.rounds=1", f"hydra.run.dir={tmp_path}")
    assert read_metrics(tmp_path / "metrics.csv")["frames"] == [0, 8]


def test_finetuning_starts_from_the_pretrained_policy_and_lets_the_critic_warm_up(pretrained, tmp_path):
    folder, _ = pretrained
    (checkpoint,) = sorted((folder / "checkpoints").glob("*60*"))
    finetune = [
        "sota-implementations/genpo.py",
        "env=robomimic/can",
        f"policy.init={checkpoint}",
        "env.num_envs=4",
        "collector.frames_per_batch=16",
        "collector.total_frames=64",
        "optim.critic_warmup=32",
        "optim.lr=1e-4",
        "optim.schedule=constant",
        "loss.clip_epsilon=0.02",
        "loss.mini_batch_size=8",
        "loss.epochs=2",
        "eval.interval=64",
    ]
    output = run(*finetune, *SMALL, f"hydra.run.dir={tmp_path / 'run'}")
    columns = read_metrics(tmp_path / "run" / "metrics.csv")
    assert columns["frames"] == [0, 16, 32, 48, 64], output
    assert columns["eval/random_noise/success"][0] == columns["eval/random_noise/success"][0], "the start is evaluated"
    assert max(columns["train/inversion_error"][1:]) < 1e-2
    # at unchanged parameters the KL is what the inversion rounds
    for row in (1, 2):
        assert abs(columns["train/kl"][row]) <= columns["train/inversion_error"][row]
        assert columns["train/clip_fraction"][row] == 0
    for row in (3, 4):
        assert abs(columns["train/kl"][row]) > 10 * columns["train/inversion_error"][row]
        assert columns["train/clip_fraction"][row] > 0
    for noise in ("zero", "random"):
        assert 0 <= columns[f"eval/{noise}_noise/success"][-1] <= 1

    best = max(columns["eval/zero_noise/success"])
    kept = best_checkpoint(tmp_path / "run", "eval/zero_noise/success")
    row = columns["frames"].index(frames_of(kept))
    assert columns["eval/zero_noise/success"][row] == best, "the start may be the best"

    output = run(*finetune, "policy.hidden_sizes=[16,16]", succeeds=False)
    assert "policy.hidden_sizes=[32, 32]" in output and "Traceback" not in output


def test_a_worker_that_dies_is_named_and_the_run_starts_again_from_its_last_good_state(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "sota-implementations/genpo.py", "env=robomimic/can", "env.num_envs=4", *SMALL]
    command += ["collector.frames_per_batch=16", "collector.total_frames=320", "loss.mini_batch_size=8"]
    command += ["eval.interval=1000", "eval.num_envs=2", f"hydra.run.dir={folder}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 300
    while not (folder / "metrics.csv").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert re.search(
        r"Worker \d of the environment died \(exit code -9\)\. Saved .*\. Starting again from there\.", output
    )
    assert read_metrics(folder / "metrics.csv")["frames"] == [16 * i for i in range(1, 21)]


@pytest.mark.parametrize("policy", ["gaussian", "fpo"])  # by maximum likelihood, by flow matching without a density
def test_a_baseline_is_pretrained_and_finetuned(demonstrations, policy, tmp_path):
    folder = tmp_path / "pretrained"
    small = [*SMALL, f"policy={policy}"]
    run(
        "sota-implementations/pretrain.py",
        f"pretrain.dataset={demonstrations}",
        "pretrain.iterations=40",
        "pretrain.action_noise=0.1",
        "pretrain.log_interval=20",
        f"hydra.run.dir={folder}",
        *small,
    )
    columns = read_metrics(folder / "metrics.csv")
    assert columns["train/loss"][1] < columns["train/loss"][0]
    (checkpoint,) = (folder / "checkpoints").glob("*40*")
    if policy == "gaussian":
        weights = read_checkpoint(checkpoint, "cpu")["trained"]
        (log_std,) = (value for name, value in weights.items() if name.endswith("state_independent_scale"))
        assert log_std.median() < -0.3, "the deviation, a logarithm, follows the data at a rate of its own"
    wrong = run("sota-implementations/pretrain.py", f"evaluate={checkpoint}", "euler=true", *SMALL[1:3], succeeds=False)
    assert f"is a policy={policy}" in wrong and "Traceback" not in wrong
    finetune = ["env=robomimic/can", f"policy.init={checkpoint}", "env.num_envs=4", "collector.frames_per_batch=16"]
    finetune += ["collector.total_frames=32", "loss.mini_batch_size=8", f"hydra.run.dir={tmp_path / 'run'}"]
    finetune += ["env.scale_reward=true", "env.options.reward_shaping=true", "env.options.end_at_success=false"]
    run("sota-implementations/genpo.py", *finetune, *small)
    columns = read_metrics(tmp_path / "run" / "metrics.csv")
    assert columns["train/return"][-1] > 0, "a shaped reward is one for every step"
    assert columns["train/success"][-1] == 0


def test_mistakes_of_pretraining_are_explained(demonstrations, tmp_path):
    for overrides, message in (
        ([], "pretrain.dataset=<file.hdf5> is missing"),
        (["pretrain.dataset=nowhere.hdf5"], "pretrain.dataset=nowhere.hdf5 is missing"),
        ([f"pretrain.dataset={demonstrations}", "env=robomimic/threading"], "is of PickPlaceCan; robomimic/threading"),
        ([f"pretrain.dataset={demonstrations}", "pretrain.filter_key=trian"], "no filter key 'trian'"),
    ):
        command = [f"hydra.run.dir={tmp_path / str(len(message))}", *overrides]
        output = run("sota-implementations/pretrain.py", *command, succeeds=False)
        assert message in output and "Traceback" not in output
