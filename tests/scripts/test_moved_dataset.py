"""A dataset that was moved is named with the option that says where it is now, which every command takes."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from torchrl_genpo.data import write_demonstrations
from torchrl_genpo.data.robomimic import INSTALL
from torchrl_genpo.envs import ROBOMIMIC_TASKS

HAS_ROBOSUITE = importlib.util.find_spec("robosuite") is not None
ROOT = Path(__file__).parents[2]
PRETRAIN, TRAIN = (ROOT / "sota-implementations" / name for name in ("pretrain.py", "genpo.py"))
SIZES = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 14}
TINY = [
    "policy.hidden_sizes=[8]",
    "env.options.horizon=8",
    "env.options.num_workers=0",
    "eval.num_envs=1",
    "eval.rounds=1",
]


def run(*command, succeeds=True):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert (result.returncode == 0) == succeeds, result.stdout + result.stderr
    return result.stdout + result.stderr


def refused(dataset, *command, option="env.options.dataset=<file>"):
    output = run(*command, succeeds=False)
    assert f"dataset={dataset} is missing" in output and option in output and "Traceback" not in output, output


@pytest.mark.skipif(not HAS_ROBOSUITE, reason=f"needs robosuite: {INSTALL}")
def test_every_command_says_and_takes_where_a_moved_dataset_is(tmp_path):
    rng = np.random.default_rng(0)
    obs = {key: rng.random((6, size)) for key, size in SIZES.items()}
    steps = {"obs": obs, "next_obs": obs, "actions": rng.uniform(-1, 1, (6, 7)), "states": np.zeros((6, 1))}
    steps |= {"rewards": np.zeros(6), "dones": np.zeros(6), "model_file": "<mujoco/>"}
    first, second = tmp_path / "first.hdf5", tmp_path / "second.hdf5"
    write_demonstrations(first, [steps, steps], ROBOMIMIC_TASKS["can"].env_args())

    folder, finetuned = tmp_path / "pretrained", tmp_path / "finetuned"
    options = ["env=robomimic/lift", f"env.options.dataset={first}", f"pretrain.dataset={first}", *TINY]
    output = run(PRETRAIN, *options, "pretrain.iterations=1", f"hydra.run.dir={folder}")
    first.rename(second)
    refused(first, PRETRAIN, f"resume={folder}", option=f"pretrain.dataset={first}")
    refused(first, PRETRAIN, f"resume={folder}", f"pretrain.dataset={second}", "pretrain.iterations=2")
    moved = f"env.options.dataset={second}"
    run(PRETRAIN, f"resume={folder}", f"pretrain.dataset={second}", moved, "pretrain.iterations=2")

    told = shlex.split(output.partition("genpo-train ")[2].splitlines()[0])
    assert told[0] == "env=robomimic/lift"
    told += ["env.num_envs=1", "collector.frames_per_batch=4", "collector.total_frames=4", "loss.mini_batch_size=4"]
    told += [*TINY[1:], f"hydra.run.dir={finetuned}"]
    refused(first, TRAIN, *told)
    run(TRAIN, *told, moved)

    second.rename(first)
    moved = f"env.options.dataset={first}"
    refused(second, TRAIN, f"evaluate={finetuned}")
    run(TRAIN, f"evaluate={finetuned}", moved)
    run(PRETRAIN, f"evaluate={folder}", moved)

    collect = ["-m", "torchrl_genpo.commands.collect", "robomimic/lift", "--policy", finetuned, "--episodes", 1]
    refused(second, *collect, option="--set env.options.dataset=<file>")
    output = run(*collect, "--set", moved, succeeds=False)
    assert "The policy failed in all 1 episodes" in output
    run(TRAIN, f"resume={finetuned}", "collector.total_frames=8", moved)
