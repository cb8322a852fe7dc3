"""Sweeps: several runs of one command, by Hydra's launchers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from torchrl_genpo.training.metrics import read_metrics

sys.path.append(str(Path(__file__).parents[1]))
from forks import run_script

SCRIPT = Path(__file__).parents[2] / "sota-implementations" / "genpo.py"


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.extras("sweeps"))])
def test_a_sweep_makes_all_of_its_runs(tmp_path, launcher):
    options = ["--multirun", "seed=1,2", f"hydra/launcher={launcher}"]
    options += ["env=pendulum", "env.num_envs=2", "collector.frames_per_batch=64", "collector.total_frames=64"]
    options += ["loss.mini_batch_size=64", "loss.epochs=1", "eval.num_envs=1", f"hydra.sweep.dir={tmp_path}"]
    options += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    code, _ = run_script(SCRIPT, options, tmp_path / "output.txt")
    assert code == 0, (tmp_path / "output.txt").read_text()
    for index, seed in enumerate((1, 2)):
        assert yaml.safe_load((tmp_path / str(index) / "config.yaml").read_text())["seed"] == seed
        assert read_metrics(tmp_path / str(index) / "metrics.csv")["frames"] == [64]
