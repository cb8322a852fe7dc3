# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Crashes: training runs that are killed, damaged and starved, resumed, and compared with an undisturbed one.

    python benchmarks/crash.py               # 100 kills and the other faults, about half an hour
    python benchmarks/crash.py --kills 10    # a look

A resumed run is wrong when its metrics (times aside) or any byte of the weights, optimizer, normalisation, random
state or simulator in its last checkpoint differ from the undisturbed run's. Writes ``crash.json``, a part of
``reliability.md`` (``reliability.py``).
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from provenance import ROOT
from reliability import save_part

from torchrl_genpo.runs import is_intact

TASKS = {  # short runs of simulators whose state can be saved
    "pendulum": ["env=pendulum", "env.num_envs=4", "collector.frames_per_batch=128"],
    "half_cheetah": ["env=half_cheetah", "env.num_envs=4", "collector.frames_per_batch=128"],
    "xhand": ["env=xhand/nut_bolt", "env.num_envs=8", "collector.frames_per_batch=128", "env.options.max_steps=20"],
}
UPDATES = 24
COMMON = [
    "loss.mini_batch_size=64",
    "loss.epochs=2",
    "eval.num_envs=2",
    "eval.interval=1024",
    "checkpoint.interval=256",
]
PREEMPTED = 85  # exit code that the runs are given for SIGTERM


@dataclass
class Count:
    """What became of the runs that met a fault."""

    fault: str
    injected: int = 0
    lost: int = 0  # could not be resumed, or not be started
    wrong: int = 0  # resumed to another result
    note: str = ""


def command(*options: object) -> list[str]:
    return [sys.executable, str(ROOT / "sota-implementations/genpo.py"), *map(str, options)]


def training(task: str, folder: Path) -> list[str]:
    """Starts the run in a folder, or goes on with it."""
    if (folder / "config.yaml").exists():
        return command(f"resume={folder}")
    frames = f"collector.total_frames={128 * UPDATES}"
    return command(
        *TASKS[task], *COMMON, frames, f"checkpoint.preempted_exit_code={PREEMPTED}", f"hydra.run.dir={folder}"
    )


def run(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=900, **options)  # type: ignore[call-overload]


def result(folder: Path) -> tuple[list[str], dict[str, int]]:
    """The metrics without their times, and the checksum of every array in the last checkpoint."""
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(rows[0]) if not name.startswith("time/")]
    with zipfile.ZipFile(sorted((folder / "checkpoints").iterdir())[-1]) as archive:
        arrays = {info.filename: info.CRC for info in archive.infolist() if info.filename.endswith(".memmap")}
    return [",".join(row[i] for i in kept) for row in rows], arrays


def finish(task: str, folder: Path, count: Count, expected: object) -> str:
    """Resumes to the end and counts what came of it; returns what the run said."""
    process = run(training(task, folder))
    if process.returncode:
        count.lost += 1
        print(f"LOST by {count.fault}: {process.stderr[-2000:]}", flush=True)
    elif result(folder) != expected:
        count.wrong += 1
        print(f"WRONG after {count.fault}: {folder}", flush=True)
    return process.stdout + process.stderr


def kill(process: subprocess.Popen[str], folder: Path, moment: float, while_saving: bool) -> None:
    """Kills after ``moment`` seconds, or then as soon as a checkpoint is being written."""
    deadline = time.monotonic() + moment
    while process.poll() is None:
        if time.monotonic() > deadline and (not while_saving or any(folder.glob("checkpoints/.*"))):
            process.kill()
        time.sleep(0.0005 if while_saving else 0.01)
    process.wait()


def kills(
    task: str, work: Path, expected: object, duration: float, number: int, draw: random.Random
) -> Iterator[Count]:
    """SIGKILL at random moments, in every second run as it writes a checkpoint; up to four in a run."""
    counts = [Count("SIGKILL at a random moment"), Count("SIGKILL while a checkpoint is written")]
    for index in range(number):
        while_saving = bool(index % 2)
        folder, count = work / f"kill-{index}", counts[while_saving]
        for _ in range(1 + draw.randrange(2)):
            process = subprocess.Popen(training(task, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            kill(process, folder, draw.uniform(0, duration), while_saving)
            if process.returncode == 0:
                break  # it was faster
            count.injected += 1
        finish(task, folder, count, expected)
        shutil.rmtree(folder)
    yield from counts


def terminations(
    task: str, work: Path, expected: object, duration: float, number: int, draw: random.Random
) -> Iterator[Count]:
    """SIGTERM, as a scheduler sends it."""
    count = Count("SIGTERM (preemption)", note=f"exit code {PREEMPTED}, as configured, with a checkpoint")
    for index in range(number):
        folder = work / f"term-{index}"
        process = subprocess.Popen(training(task, folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while not (folder / "metrics.csv").exists():
            time.sleep(0.01)
        time.sleep(draw.uniform(0, duration / 4))
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate()
        if process.returncode == 0:
            continue  # it was faster
        count.injected += 1
        if process.returncode != PREEMPTED:
            count.lost += 1
            print(f"SIGTERM: exit code {process.returncode}\n{output[-2000:]}", flush=True)
            continue
        finish(task, folder, count, expected)
        shutil.rmtree(folder)
    yield count


def damages(task: str, done: Path, work: Path, expected: object, number: int, draw: random.Random) -> Iterator[Count]:
    """The newest checkpoint cut short or with one bit flipped."""

    def cut(data: bytearray) -> bytearray:
        return data[: draw.randrange(len(data))]

    def flip(data: bytearray) -> bytearray:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return data

    for name, damage in (("newest checkpoint cut short", cut), ("one bit of the newest checkpoint flipped", flip)):
        count, harmless = Count(name), 0
        for index in range(number):
            folder = work / f"damage-{index}"
            shutil.copytree(done, folder)
            newest = sorted((folder / "checkpoints").iterdir())[-1]
            newest.write_bytes(damage(bytearray(newest.read_bytes())))
            count.injected += 1
            if is_intact(newest):
                harmless += 1  # a bit of the archive that nothing reads, such as a date
            said = finish(task, folder, count, expected)
            if not is_intact(newest) and f"{newest} is damaged" not in said:
                count.wrong += 1
                print(f"{name}: the user was not told", flush=True)
            shutil.rmtree(folder)
        count.note = f"told, and the checkpoint before it used; harmless in {harmless}"
        yield count


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[None]:
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def starvations(task: str, done: Path, work: Path, expected: object) -> Iterator[Count]:
    """A full disk and a read-only folder, by mounts (needs root)."""
    count = Count(
        "disk full", note="a small tmpfs, full at another moment each time; explained, resumed with room again"
    )
    size = sum(file.stat().st_size for file in done.rglob("*") if file.is_file())
    place = work / "mount"
    for index in range(6):
        with mounted(place, "-o", f"size={int(size * (0.3 + 0.25 * index)) // 4096 * 4}k"):
            process = run(training(task, place / "run"))
            if process.returncode == 0:
                continue
            count.injected += 1
            is_explained = "Traceback" not in process.stderr and "No space left" in process.stderr
            if process.returncode > 0 and not is_explained:  # below 0: the kernel ended it, as a mapped file may
                count.lost += 1
                print(f"disk full: {process.stderr[-2000:]}", flush=True)
            if (place / "run").exists():  # else it never began, and left nothing
                shutil.copytree(place / "run", work / "roomy")
        if (work / "roomy" / "config.yaml").exists():
            finish(task, work / "roomy", count, expected)
        shutil.rmtree(work / "roomy", ignore_errors=True)
    yield count

    count = Count("read-only folder", note="explained before anything is simulated")
    with mounted(place, "-o", "size=1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        process = run(training(task, place / "run"))
        count.injected += 1
        if process.returncode == 0 or "Read-only file system" not in process.stderr or "Traceback" in process.stderr:
            count.lost += 1
            print(f"read-only: {process.stderr[-2000:]}", flush=True)
    yield count


def rivals(task: str, work: Path, expected: object, number: int) -> Iterator[Count]:
    """A second run in the folder of a first."""
    count = Count("two runs in one folder", note="the second is refused, the first goes on")
    for index in range(number):
        folder = work / f"rival-{index}"
        process = subprocess.Popen(training(task, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (folder / "metrics.csv").exists():
            time.sleep(0.01)
        second = run(training(task, folder))
        alive = process.poll() is None
        process.wait()
        if not alive and second.returncode == 0:
            continue  # the first had ended
        count.injected += 1
        if second.returncode == 0 or "Another process trains" not in second.stderr:
            count.lost += 1
            print(f"two runs: {second.stderr[-2000:]}", flush=True)
        finish(task, folder, count, expected)
        shutil.rmtree(folder)
    yield count


def clocks(task: str, work: Path, expected: object) -> Iterator[Count]:
    """Checkpoints from the future, as after a clock was set back: the count of frames orders them, not the time."""
    count = Count("clock set back by a year", note="files of the run dated in the future half-way")
    folder = work / "clock"
    process = subprocess.Popen(training(task, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kill(process, folder, 0.0, while_saving=True)
    process = subprocess.Popen(training(task, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(folder.glob("checkpoints/*.torchrl"))) < 2:
        time.sleep(0.01)
    process.kill()
    process.wait()
    future = time.time() + 365 * 86400
    for file in folder.rglob("*"):
        subprocess.run(["touch", "-d", f"@{future:.0f}", str(file)], check=True)
    count.injected += 1
    finish(task, folder, count, expected)
    yield count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="runs that are killed at least once, of all tasks")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()

    draw = random.Random(options.seed)
    counts: dict[str, Count] = {}
    tasks: list[str] = []

    def add(found: Iterator[Count]) -> None:
        for count in found:
            print(f"{count.fault}: {count.injected} injected, {count.lost} lost, {count.wrong} wrong", flush=True)
            total = counts.setdefault(count.fault, Count(count.fault, note=count.note))
            total.injected += count.injected
            total.lost += count.lost
            total.wrong += count.wrong
            save_part("crash", {"tasks": tasks, "faults": [asdict(count) for count in counts.values()]})

    with tempfile.TemporaryDirectory() as folder:
        for index, task in enumerate(TASKS):
            work = Path(folder) / task
            work.mkdir()
            tasks.append(task)
            done = work / "undisturbed"
            start = time.monotonic()
            process = run(training(task, done))
            if process.returncode:
                sys.exit(process.stderr)
            duration, expected = time.monotonic() - start, result(done)
            number = options.kills // len(TASKS) + (index < options.kills % len(TASKS))
            few = max(1, number // 5)
            add(kills(task, work, expected, duration, number, draw))
            add(terminations(task, work, expected, duration, few, draw))
            add(damages(task, done, work, expected, few, draw))
            if index == 0:
                add(starvations(task, done, work, expected))
                add(rivals(task, work, expected, few))
                add(clocks(task, work, expected))


if __name__ == "__main__":
    main()
