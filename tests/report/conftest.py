"""Run folders, as genpo-train writes them, with made-up numbers."""

from __future__ import annotations

import csv
import math

import pytest
import yaml

from torchrl_genpo.training.metrics import METRICS

UPDATES = 12


def values(column, step, seed, offset):
    """Positive, smooth, and of its own height for every column and group."""
    height = 1 + METRICS.index(column) if column in METRICS else 3
    return round(height * (offset + math.sqrt(step)) * (1 + 0.05 * (seed if isinstance(seed, int) else 0)), 6)


@pytest.fixture
def make_run(tmp_path):
    """Writes a run: ``make_run("a/1", seed=1, **{"policy.name": "gaussian"})``; returns its folder."""

    def make(name, seed=1, updates=UPDATES, offset=1.0, extra=("task/turns", "eval/zero_noise/turns"), **options):
        folder, columns = tmp_path / name, [*METRICS, *extra]
        folder.mkdir(parents=True)
        config = {"seed": seed}
        defaults = {"collector.total_frames": 1000 * UPDATES, "env.name": "hopper", "optim.lr": 3e-4}
        for key, value in (defaults | {"policy.name": "reversible_flow"} | options).items():
            *groups, last = key.split(".")
            node = config
            for group in groups:
                node = node.setdefault(group, {})
            node[last] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            for step in range(1, updates + 1):
                row = {column: values(column, step, seed, offset) for column in columns}
                row |= {"frames": 1000 * step, "time/seconds": 60.0 * step * offset}
                row |= {"train/inversion_error": 1e-6 * step * offset}
                writer.writerow({k: v for k, v in row.items() if step % 4 == 0 or not k.startswith("eval/")})
        return folder

    return make
