# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Scaling: what one and two processes measure here, and a model on paper of many, from the measured pieces.

    python benchmarks/scaling.py

Computation is counted in processor time, which other work on the machine hardly changes; messages and whole runs by the
wall clock. Writes ``scaling.png`` and ``scaling.json``, a part of ``reliability.md`` (``reliability.py``).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from in_process import QUIET, configure, start_training
from provenance import RESULTS, ROOT
from reliability import save_part
from torch import distributed as dist
from torch.multiprocessing import spawn

from torchrl_genpo.configuration import as_dict
from torchrl_genpo.runs import read_metrics
from torchrl_genpo.training.loop import Training
from torchrl_genpo.training.workers import WorkerCollection, make_worker_env

TASKS = {  # what is measured: a cheap and a dear simulator, in their own settings
    "half_cheetah": ["env=half_cheetah"],
    "xhand": ["env=xhand/nut_bolt", "env.options.num_threads=1"],
}
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
SPEEDUPS = (1, 10, 100)  # of a rank's computation, messages as measured
SMALL, LARGE = 4, 8 * 2**20  # bytes of messages
UPDATES = 3


@dataclass(frozen=True)
class Messages:
    """Between two processes of this machine, over gloo.

    Attributes:
        latency (float): of one hop of a ring, s.
        bandwidth (float): bytes a second of one hop.
    """

    latency: float
    bandwidth: float

    def all_reduce(self, size: int, ranks: int) -> float:
        """Seconds of a ring: each rank sends ``2 (n - 1)`` parts of an n-th of ``size`` bytes."""
        hops = 2 * (ranks - 1)
        return hops * (self.latency + size / ranks / self.bandwidth)


@dataclass(frozen=True)
class Pieces:
    """Of one process and one update, s unless said otherwise.

    Attributes:
        frames (int): collected.
        steps (int): of the optimizer.
        simulation (float): of a frame, raw environment alone.
        collect (float): all of the collection: simulation, inference, normalisation.
        update (float): all of the update: advantages, mini-batches.
        receive (float): of a frame, at the learner of workers: copying, normalisation.
        publish (float): of weights to one more worker.
        gradient (int): bytes.
        weights (int): bytes, with statistics.
        data (int): bytes of a frame.
    """

    frames: int
    steps: int
    simulation: float
    collect: float
    update: float
    receive: float
    publish: float
    gradient: int
    weights: int
    data: int

    def ranks(self, number: int, messages: Messages, speedup: float = 1.0) -> float:
        """Frames a second of ``number`` processes under torchrun, each with this much data of its own.

        Every step of the optimizer has one all-reduce of the gradient and one of a flag (is everything finite?).
        """
        talk = self.steps * (messages.all_reduce(self.gradient, number) + messages.all_reduce(SMALL, number))
        return number * self.frames / ((self.collect + self.update) / speedup + talk)

    def workers(self, number: int, is_async: bool) -> float:
        """Frames a second of one learner with ``number`` workers, each collecting this much on a core of its own."""
        learner = number * (self.frames * self.receive + self.update + self.publish)
        seconds = max(self.collect, learner) if is_async else self.collect + learner
        return number * self.frames / seconds

    @property
    def learner_limit(self) -> float:
        """Frames a second that the learner can take, however many workers there are."""
        return self.frames / (self.frames * self.receive + self.update + self.publish)


def call_times(function: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> list[float]:
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return times


def processor_time(function: Callable[[], Any], repeats: int) -> float:
    """The smallest processor time of a call, s."""
    return min(call_times(function, repeats, time.process_time))


def wall_time(function: Callable[[], Any], repeats: int) -> float:
    """The median time of a call, s."""
    return statistics.median(call_times(function, repeats, time.perf_counter))


def measure_messages() -> Messages:
    with tempfile.TemporaryDirectory() as folder:
        spawn(_time_messages, (Path(folder),), nprocs=2)
        small, large = torch.load(Path(folder, "times.pt"))
    return Messages(latency=small / 2, bandwidth=LARGE / (large - small))


def _time_messages(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    times = []
    for size, repeats in ((SMALL, 200), (LARGE, 20)):
        message = torch.zeros(size // 4)
        times.append(wall_time(lambda message=message: dist.all_reduce(message), repeats))
    if rank == 0:
        torch.save(times, folder / "times.pt")
    dist.destroy_process_group()


def measure_pieces(options: list[str]) -> Pieces:
    torch.set_num_threads(1)
    cfg = configure(*options)
    raw = make_worker_env(as_dict(cfg), cfg.env.num_envs, 0, {})
    steps, start = 10, raw.reset()  # without the resets, which are rare in a collection

    def simulate() -> None:
        raw.rollout(steps, auto_reset=False, tensordict=start.clone(), break_when_any_done=False)

    simulation = processor_time(simulate, 5) / (steps * cfg.env.num_envs)
    raw.close()
    with tempfile.TemporaryDirectory() as folder:
        training = start_training(cfg, Path(folder, "run"))
        batches, collected = iter(training.collection), []
        training.learner.update(training_batch(training, next(batches)))  # warms up
        collect = processor_time(lambda: collected.append(next(batches)), UPDATES)
        update = processor_time(lambda: training.learn(collected.pop().clone(), 1), UPDATES)
        frames = cfg.collector.frames_per_batch
        gradient = sum(p.numel() * p.element_size() for p in training.loss.parameters() if p.requires_grad)
        receive, publish, weights, data = measure_workers(options)
        training.close()
    steps = cfg.loss.epochs * -(-frames // cfg.loss.mini_batch_size)
    return Pieces(frames, steps, simulation, collect, update, receive, publish, gradient, weights, data)


def training_batch(training: Training, data: Any) -> Any:
    training.learner.gae(data)
    return data.reshape(-1)[: training.cfg.loss.mini_batch_size]


def measure_workers(options: list[str]) -> tuple[float, float, int, int]:
    """Reception of a frame and publication to one more worker, s; bytes of the weights and of a frame."""
    from torchrl_genpo.configuration import build_env, build_models
    from torchrl_genpo.training import Progress

    publish, received = [], 0.0
    for workers in (1, 2):
        cfg = configure(*options, "collector=multi_sync", f"collector.num_workers={workers}")
        env = build_env(cfg, cfg.env.num_envs, 0)
        actor, *_ = build_models(cfg, env)
        collection = WorkerCollection(cfg, env, actor, 0, Progress())
        batch = next(collection)
        publish.append(wall_time(collection._publish, 20))
        start = time.process_time()
        for _ in range(UPDATES):
            next(collection)
        received = (time.process_time() - start) / UPDATES / batch.numel()
        weights = collection._learner.weights()
        collection.close()
        env.close()
    return received, max(publish[1] - publish[0], 0.0), weights.bytes(), batch.bytes() // batch.numel()


def measure_run(options: list[str], processes: int | None = None) -> tuple[float, float, float]:
    """Frames a second of a whole run, and seconds of collection and update; medians over its updates but the first."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes else []
        command = [sys.executable, *launcher, "sota-implementations/genpo.py", *QUIET, *options]
        command += [f"hydra.run.dir={folder}/run"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        rows = read_metrics(Path(folder, "run", "metrics.csv"))
    collect, update = (statistics.median(rows[f"time/{part}"][1:]) for part in ("collect", "update"))
    return rows["frames"][0] / (collect + update), collect, update


def measured_runs() -> Iterator[tuple[str, float, float, float]]:
    base = ["env=half_cheetah"]
    short = 2048 * (UPDATES + 1)
    for processes in (1, 2):
        options = [*base, f"collector.total_frames={short * processes}"]
        yield f"torchrun, {processes} process{'es' * (processes > 1)}", *measure_run(options, processes)
    for workers in (1, 2):
        options = [*base, f"collector.total_frames={short}", f"collector.num_workers={workers}"]
        for kind in ("multi_sync", "multi_async"):
            yield f"{kind}, {workers} worker{'s' * (workers > 1)}", *measure_run([*options, f"collector={kind}"])


def half_point(speeds: dict[int, float]) -> str:
    """The first number whose speed is less than half of that many single ones."""
    single = speeds[min(speeds)] / min(speeds)
    return next((str(number) for number, speed in speeds.items() if speed < single * number / 2), f"over {max(speeds)}")


def report(
    runs: list[tuple[str, float, float, float]], pieces: dict[str, Pieces], messages: Messages, load: float
) -> list[str]:
    table = [
        f"Measured on {os.cpu_count()} cores that other work shares (load average {load:.1f} at the start): whole "
        "runs, by the wall clock, say that everything works together, not how fast a free machine is.",
        "",
        "| HalfCheetah, default setting | frames/s | collection, s | update, s |",
        "|---|---:|---:|---:|",
        *(f"| {name} | {speed:.0f} | {collect:.2f} | {update:.2f} |" for name, speed, collect, update in runs),
        "",
        "Pieces of one process and one update; processor time, where nothing else is said.",
        "",
        "| piece | " + " | ".join(pieces) + " |",
        "|---|" + "---:|" * len(pieces),
    ]
    rows: dict[str, Callable[[Pieces], str]] = {
        "frames": lambda p: f"{p.frames}",
        "optimizer steps": lambda p: f"{p.steps}",
        "simulation, ms a frame": lambda p: f"{1e3 * p.simulation:.3f}",
        "collection (simulation, inference, transforms), s": lambda p: f"{p.collect:.2f}",
        "of it inference and transforms, s": lambda p: f"{p.collect - p.frames * p.simulation:.2f}",
        "update, s": lambda p: f"{p.update:.2f}",
        "reception from workers and normalisation, ms a frame": lambda p: f"{1e3 * p.receive:.4f}",
        "weights to one more worker, ms (wall clock)": lambda p: f"{1e3 * p.publish:.2f}",
        "gradient, kB": lambda p: f"{p.gradient / 1e3:.0f}",
        "weights and statistics, kB": lambda p: f"{p.weights / 1e3:.0f}",
        "data of a frame, bytes": lambda p: f"{p.data}",
        "all-reduce of the gradient, 2 processes, ms (wall clock)": lambda p: (
            f"{1e3 * messages.all_reduce(p.gradient, 2):.2f}"
        ),
    }
    table += [f"| {name} | " + " | ".join(map(cell, pieces.values())) + " |" for name, cell in rows.items()]
    table += [
        "",
        f"A hop between two processes (gloo, this machine) takes {1e6 * messages.latency:.0f} µs and "
        f"{messages.bandwidth / 1e9:.2f} GB/s.",
        "",
        "**Model on paper: ranks of torchrun.** Each rank keeps its batch; a step costs two ring all-reduces, of the "
        "gradient and of a flag. Frames/s where a rank computes as fast as one core here, and 10 and 100 times faster "
        "(a GPU) with messages as slow as measured; last, where half of the machine waits for messages.",
        "",
        "| task, computation | " + " | ".join(str(n) for n in RANKS) + " | half lost at |",
        "|---|" + "---:|" * (len(RANKS) + 1),
    ]
    for name, p in pieces.items():
        for speedup in SPEEDUPS:
            speeds = {number: p.ranks(number, messages, speedup) for number in RANKS}
            cells = " | ".join(f"{speed:,.0f}" for speed in speeds.values())
            table.append(f"| {name}, {speedup} times | {cells} | {half_point(speeds)} |")
    table += [
        "",
        "The ring's latency grows with the number of ranks and the gradient is small, so latency, not bandwidth, is "
        "what ends it: the larger the batch of a rank (fewer, longer steps), the later.",
        "",
        "**Model on paper: simulation workers of one learner.** Each worker has a core and collects as much as one "
        "process does now; the learner is one core.",
        "",
        "| task, collection | " + " | ".join(str(n) for n in WORKERS) + " | half lost at |",
        "|---|" + "---:|" * (len(WORKERS) + 1),
    ]
    for name, p in pieces.items():
        for kind, is_async in (("waiting", False), ("not waiting", True)):
            speeds = {number: p.workers(number, is_async) for number in WORKERS}
            cells = " | ".join(f"{speed:,.0f}" for speed in speeds.values())
            table.append(f"| {name}, {kind} | {cells} | {half_point(speeds)} |")
    limits = "; ".join(
        f"{name}: {p.learner_limit:,.0f} frames/s, of which the update takes "
        f"{100 * p.update / p.frames * p.learner_limit:.0f} %"
        for name, p in pieces.items()
    )
    table += [
        "",
        f"It saturates at what the learner can take ({limits}). So workers pay as long as a frame costs more to "
        "collect than to learn from; beyond that the learner has to become faster (a GPU, fewer epochs) or several "
        "(torchrun, each rank with workers of its own).",
        "",
        "![Frames a second against ranks and workers, on paper](scaling.png)",
    ]
    return table


def draw(pieces: dict[str, Pieces], messages: Messages) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for index, (name, p) in enumerate(pieces.items()):
        for speedup, style in zip(SPEEDUPS, ("-", "--", ":"), strict=True):
            speeds = [p.ranks(number, messages, speedup) for number in RANKS]
            left.loglog(RANKS, speeds, style, color=f"C{index}", label=f"{name}, {speedup} times")
        for is_async, style in ((False, "-"), (True, "--")):
            speeds = [p.workers(number, is_async) for number in WORKERS]
            right.loglog(WORKERS, speeds, style, color=f"C{index}", label=name + (", not waiting" if is_async else ""))
    left.set(xlabel="ranks", ylabel="frames/s", title="torchrun")
    right.set(xlabel="simulation workers", title="workers of one learner")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(RESULTS / "scaling.png", dpi=120)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    load = os.getloadavg()[0]
    messages = measure_messages()
    pieces = {name: measure_pieces(options) for name, options in TASKS.items()}
    lines = report(list(measured_runs()), pieces, messages, load)
    draw(pieces, messages)
    save_part("scaling", {"lines": lines})


if __name__ == "__main__":
    main()
