"""What a command prints to be typed next can be pasted, whatever the folder is called."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torchrl_genpo.config.compose import compose
from torchrl_genpo.training.metrics import read_metrics
from torchrl_genpo.training.run_folder import RunFolder

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from runs import TINY, launch

ODD = "Drive (lab), josé's [1] #2 seed=$HOME"


@pytest.fixture
def shell(tmp_path):
    """A shell in an oddly named folder, for which genpo-train and genpo-eval are this tree's."""
    folder, commands = tmp_path / ODD, tmp_path / "bin"
    folder.mkdir()
    commands.mkdir()
    for name, module in (("genpo-train", "train"), ("genpo-eval", "evaluate")):
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m torchrl_genpo.commands.{module} "$@"\n')
        (commands / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}

    def paste(line):
        command = ["sh", "-c", line]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)

    return folder, paste


@pytest.mark.slow
def test_a_stopped_run_says_how_to_continue_it(shell):
    folder, paste = shell
    command = launch(*TINY, "env=pendulum")
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not list(folder.glob("outputs/*/*/*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = re.search(r"^Continue: (genpo-train .*)$", process.communicate(timeout=60)[0], re.MULTILINE)[1]
    (metrics_path,) = folder.glob("outputs/*/*/*/metrics.csv")
    with pytest.raises(FileExistsError) as raised:  # by a new run in its folder
        RunFolder(metrics_path.parent)
    option = re.search(r"with ('?resume=.*)", str(raised.value))[1]
    for line in (said, f"genpo-train {option}"):
        frames = int(read_metrics(metrics_path)["frames"][-1]) + 256
        result = paste(f"{line} collector.total_frames={frames}")
        assert result.returncode == 0, result.stderr
        assert read_metrics(metrics_path)["frames"][-1] == frames

    (metrics_path.parent / "checkpoints").rename(folder / "checkpoints")
    result = paste('genpo-eval "$PWD" eval.num_envs=1 eval.rounds=1')
    assert result.returncode == 0 and "eval/zero_noise/return" in result.stdout, result.stderr


def test_pretraining_says_how_to_fine_tune():
    from torchrl_genpo.commands.pretrain import finetuning_options

    overrides = ["env=robomimic/lift", f'env.options.dataset="{ODD}/lift.hdf5"', "policy.hidden_sizes=[8,8]"]
    overrides += ['env.options.observation_keys=["object","a b"]']
    options = compose(overrides, config_name="pretrain")
    told = compose(finetuning_options(options, Path(ODD, "checkpoint.pt")))
    assert told.env.name == "robomimic/lift" and told.policy.hidden_sizes == (8, 8)
    assert told.env.options.dataset == f"{ODD}/lift.hdf5" and told.env.options.observation_keys == ("object", "a b")
    assert told.policy.init == f"{ODD}/checkpoint.pt"
