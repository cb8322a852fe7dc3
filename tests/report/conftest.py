"""Run folders, as the entry script writes them, with made-up numbers."""

from __future__ import annotations

import math

import pytest
from omegaconf import OmegaConf

from torchrl_genpo.training.metrics import METRICS
from torchrl_genpo.training.run_folder import RunFolder

UPDATES = 12


def values(column, step, seed, offset):
    """Positive, smooth, and of its own height for every column and group."""
    height = 1 + METRICS.index(column) if column in METRICS else 3
    return round(height * (offset + math.sqrt(step)) * (1 + 0.05 * (seed if isinstance(seed, int) else 0)), 6)


@pytest.fixture
def make_run(tmp_path):
    """Writes a run: ``make_run("a/1", seed=1, **{"policy.name": "gaussian"})``; returns its folder."""

    def make(name, seed=1, updates=UPDATES, offset=1.0, extra=("task/turns", "eval/zero_noise/turns"), **options):
        folder = RunFolder(tmp_path / name, columns=[*METRICS, *extra])
        config = OmegaConf.create({"seed": seed, "collector": {"total_frames": 1000 * UPDATES}})
        defaults = {"env.name": "hopper", "policy.name": "reversible_flow", "optim.lr": 3e-4}
        for key, value in {**defaults, **options}.items():
            OmegaConf.update(config, key, value)
        folder.write_config(OmegaConf.to_yaml(config))
        for step in range(1, updates + 1):
            row = {column: values(column, step, seed, offset) for column in folder.columns}
            row |= {
                "frames": 1000 * step,
                "time/seconds": 60.0 * step * offset,
                "train/inversion_error": 1e-6 * step * offset,
            }
            if step % 4:
                row = {key: value for key, value in row.items() if not key.startswith("eval/")}
            folder.log(row)
        return folder.path

    return make
