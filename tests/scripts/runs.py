"""Small runs of the entry script, and how tests start it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from forks import SCRIPT, run_script

TINY = [
    "collector.frames_per_batch=256",
    "env.num_envs=4",
    "loss.mini_batch_size=64",
    "loss.epochs=2",
    "eval.num_envs=2",
    "eval.interval=512",
    "checkpoint.interval=512",
]
EVERYTHING = [
    "env=pendulum",
    "start=consistent",
    "loss.proximal_decay=0.9",
    "optim.noise_lr=1e-3",
    "diagnostics.samples=32",
    "solver.gradient=reversible",
]


def launch(*overrides):
    return [sys.executable, str(SCRIPT), *map(str, overrides)]


def run(*overrides, succeeds=True, path=SCRIPT):
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output.txt"
        code, _ = run_script(path, overrides, output)
        assert (code == 0) == succeeds and code >= 0, output.read_text()
        return output.read_text()


def train(folder, frames, *overrides):
    return run(*TINY, f"hydra.run.dir={folder}", f"collector.total_frames={frames}", *overrides)
