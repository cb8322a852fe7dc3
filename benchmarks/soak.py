# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Soak: a long training of a cheap environment; does memory or the number of open files grow, does it slow down?

    python benchmarks/soak.py                    # 20 M steps, or two hours, whichever is less
    python benchmarks/soak.py --frames 1000000

Speed is counted in processor time, which other work on the machine changes less than the wall clock's. Writes
``soak.json``, a part of ``reliability.md`` (``reliability.py``).
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from provenance import ROOT
from reliability import save_part

OPTIONS = (
    "env=multi_goal env.num_envs=256 collector.frames_per_batch=16384 loss.mini_batch_size=4096 loss.epochs=2 "
    "eval.interval=1_000_000 eval.num_envs=16 checkpoint.interval=1_000_000"
)


class Sample(NamedTuple):
    """A look at the process."""

    frames: int
    processor: float  # s
    memory: float  # MB, resident
    files: int


def look(process: subprocess.Popen[bytes], metrics: Path) -> Sample | None:
    """Reads ``/proc`` and the last row of the metrics."""
    proc = Path("/proc", str(process.pid))
    try:
        frames = int(metrics.read_text().splitlines()[-1].split(",")[0])
        user, system = proc.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
        status = dict(line.split(":", 1) for line in proc.joinpath("status").read_text().splitlines())
        memory = int(status["VmRSS"].split()[0]) / 1024
        files = len(list(proc.joinpath("fd").iterdir()))
    except (OSError, ValueError, IndexError, KeyError):  # not begun, or just ended
        return None
    return Sample(frames, (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"), memory, files)


def mean_speed(samples: list[Sample]) -> float:
    """Frames a second of processor time, from the first sample to the last."""
    return (samples[-1].frames - samples[0].frames) / (samples[-1].processor - samples[0].processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20_000_000)
    parser.add_argument("--hours", type=float, default=2.0, help="after which the run is stopped")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "sota-implementations/genpo.py", *OPTIONS.split()]
        command += [f"collector.total_frames={options.frames}", f"hydra.run.dir={folder}/run"]
        start, samples = time.monotonic(), []
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            time.sleep(5)
            sample = look(process, Path(folder, "run", "metrics.csv"))
            samples += [] if sample is None else [sample]
            if time.monotonic() - start > 3600 * options.hours:
                process.send_signal(signal.SIGTERM)
                process.wait()
        hours = (time.monotonic() - start) / 3600
    if process.returncode:
        sys.exit(f"The run ended with exit code {process.returncode}.")

    total = samples[-1].frames
    tenths = [[s for s in samples if total * i / 10 <= s.frames <= total * (i + 1) / 10] for i in range(10)]
    if min(map(len, tenths)) < 2:
        sys.exit(f"{options.frames} frames are too few for a look at each tenth.")
    second, final = tenths[1], tenths[9]  # what a process takes at first is no growth
    quantities = {
        "resident memory, MB": [statistics.median(s.memory for s in tenth) for tenth in (second, final)],
        "open files": [statistics.median(s.files for s in tenth) for tenth in (second, final)],
        "frames a second of processor time": [mean_speed(second), mean_speed(final)],
    }
    save_part("soak", {"frames": total, "hours": hours, "options": OPTIONS, "quantities": quantities})


if __name__ == "__main__":
    main()
