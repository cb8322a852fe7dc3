"""Sweeps: several runs of one command, by Hydra's launchers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from torchrl_genpo.runs import read_metrics

SCRIPT = Path(__file__).parents[2] / "sota-implementations" / "genpo.py"


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_makes_all_of_its_runs(tmp_path, launcher):
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason='pip install "torchrl-genpo[sweeps]"')
    command = [sys.executable, str(SCRIPT), "--multirun", "seed=1,2", f"hydra/launcher={launcher}"]
    command += ["env=pendulum", "env.num_envs=2", "collector.frames_per_batch=64", "collector.total_frames=64"]
    command += ["loss.mini_batch_size=64", "loss.epochs=1", "eval.num_envs=1", f"hydra.sweep.dir={tmp_path}"]
    command += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    for index, seed in enumerate((1, 2)):
        assert OmegaConf.load(tmp_path / str(index) / "config.yaml").seed == seed
        assert read_metrics(tmp_path / str(index) / "metrics.csv")["frames"] == [64]
