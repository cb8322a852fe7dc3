"""A run that is killed at any moment resumes to the result of one that was left alone, and a long one leaks nothing."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from forks import SCRIPT, run_script

pytestmark = pytest.mark.slow

UPDATES = 24
COMMON = [
    "collector.frames_per_batch=128",
    f"collector.total_frames={128 * UPDATES}",
    "loss.mini_batch_size=64",
    "loss.epochs=2",
    "eval.num_envs=2",
    "eval.interval=1024",
    "checkpoint.interval=128",  # so that many kills meet a checkpoint that is being written
]
TASKS = {
    "pendulum": ["env=pendulum", "env.num_envs=4"],
    "hand": ["env=xhand/nut_bolt", "env.num_envs=8", "env.options.max_steps=20"],
}


def train(task, folder, output, until=None):
    """Starts the run in a folder, or goes on with it; kills it as soon as ``until`` says so."""
    begun = (folder / "config.yaml").exists()
    options = [f"resume={folder}"] if begun else [*TASKS[task], *COMMON, "seed=5", f"hydra.run.dir={folder}"]
    return run_script(SCRIPT, options, output, until=until)


def result(folder):
    """The metrics without their times, and the checksums of all tensors in the newest checkpoint."""
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(rows[0]) if not name.startswith("time/")]
    newest = max(path for path in (folder / "checkpoints").iterdir() if f"{128 * UPDATES:012d}" in path.name)
    with zipfile.ZipFile(newest) as archive:  # as torch.save writes it: a record for each storage
        tensors = [info for info in archive.infolist() if "/data/" in info.filename or "memmap" in info.filename]
    assert tensors
    return [[row[i] for i in kept] for row in rows], sorted(info.CRC for info in tensors)


@pytest.mark.parametrize("task", TASKS)
def test_a_run_that_is_killed_at_random_moments_resumes_to_the_last_bit(task, tmp_path):
    draw, whole, folder, output = random.Random(task), tmp_path / "whole", tmp_path / "killed", tmp_path / "output.txt"
    code, _ = train(task, whole, output)
    assert code == 0, output.read_text()
    for update in sorted(draw.sample(range(UPDATES - 4), 5)):
        delay = draw.uniform(0, 0.05)

        def is_time(update=update, delay=delay):
            metrics = folder / "metrics.csv"
            reached = metrics.exists() and len(metrics.read_text().splitlines()) > update
            time.sleep(delay if reached else 0)
            return reached

        code, _ = train(task, folder, output, is_time)
        assert code == -9, output.read_text()
    code, _ = train(task, folder, output)
    assert code == 0, output.read_text()
    assert result(folder) == result(whole)


def test_a_long_run_keeps_no_files_open_and_does_not_grow(tmp_path):
    folder = tmp_path / "run"
    options = [*TASKS["pendulum"], "eval.interval=1024", "checkpoint.interval=256", "eval.num_envs=1"]
    options += [*COMMON[:1], "collector.total_frames=8192", *COMMON[2:4], f"hydra.run.dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    looks = []  # update, open files, resident kB
    while process.poll() is None:
        try:
            update = len((folder / "metrics.csv").read_text().splitlines()) - 1
            status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
            looks.append(
                (update, len(list(Path(f"/proc/{process.pid}/fd").iterdir())), int(status["VmRSS"].split()[0]))
            )
        except (OSError, KeyError):  # not begun, or just ended
            pass
        time.sleep(0.05)
    assert process.returncode == 0
    (early, late) = ([look for look in looks if first <= look[0] < last] for first, last in ((16, 32), (48, 64)))
    assert min(files for _, files, _ in late) <= max(files for _, files, _ in early)
    assert min(memory for *_, memory in late) < 1.03 * max(memory for *_, memory in early)
