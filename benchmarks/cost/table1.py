# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What each method costs, as a ratio to Gaussian PPO: the paper's Table 1, on any machine.

    python benchmarks/table1.py                   # CPU, one thread, a quarter of an hour
    python benchmarks/table1.py --device cuda     # the paper's sizes of batches
    python benchmarks/table1.py --parts task      # the running task again, the rest as an earlier run found it
    python benchmarks/table1.py --device cuda --task isaaclab/humanoid    # and its task, where Isaac Lab is installed

Humanoid and G1 are networks and batches of those sizes without their simulator: one call of the policy, what the loss
keeps of a batch (``prepare``) and one optimizer step are timed, and an iteration is made of them. HalfCheetah is whole
iterations of the running task: simulator, advantages and update. The determinant by autograd is left out on a GPU: one
mini-batch would take hundreds of gigabytes, and a smaller one says little about a larger one's time there.

All in one process, method after method in turn, medians after warm-up; on a CPU of the time of the process, which
other work on the machine hardly changes. Writes ``table1.md``, ``.csv`` and ``.png`` (``table1_cuda...`` of a GPU) to
``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from precision import PeakMemory
from provenance import RESULTS, ROOT, commit, origin
from speed import SIZES, medians
from tensordict import TensorDict
from tensordict.nn import CudaGraphModule
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer, Unbounded
from torchrl.envs import EnvBase
from torchrl.objectives.value import GAE

from torchrl_genpo.configuration import build_env, build_models
from torchrl_genpo.envs import one_simulation
from torchrl_genpo.training import batch_keys, make_update, prepare

METHODS = {  # name -> (label, options of the entry script)
    "gaussian": ("Gaussian PPO", ["policy=gaussian"]),
    "reversible_flow": ("GenPO++ (reversible_flow)", ["policy=reversible_flow"]),
    "self_adjoint_flow": ("self-adjoint flow", ["policy=self_adjoint_flow"]),
    "dummy_flow_uncompressed": (
        "GenPO without its compression loss",
        ["policy=dummy_flow", "policy.loss.compression_coeff=0"],
    ),
    "dummy_flow": ("GenPO (dummy_flow)", ["policy=dummy_flow"]),
    "dummy_flow_jacobian": ("GenPO, determinant by autograd", ["policy=dummy_flow_jacobian"]),
    "policyflow": ("PolicyFlow", ["policy=policyflow"]),
    "fpo": ("FPO++, 10 steps, 8 samples", ["policy=fpo"]),
    "fpo_published": (
        "FPO++, 64 steps, 32 samples",
        ["policy=fpo", "policy.options.num_steps=64", "policy.loss.num_samples=32"],
    ),
}
JACOBIAN = "dummy_flow_jacobian"
SCALED = 8  # its update is measured on this part of the samples, and multiplied; a GPU has not the memory


class Batch(NamedTuple):
    """Sizes of an iteration."""

    num_envs: int
    steps: int
    epochs: int
    mini_batches: int

    @property
    def mini_batch_size(self) -> int:
        return self.num_envs * self.steps // self.mini_batches


BATCHES = {"cpu": Batch(64, 32, 5, 2), "cuda": Batch(4096, 32, 5, 4)}
CLOCKS = {"cpu": time.process_time, "cuda": time.perf_counter}
COLUMNS = ("task", "method", "collect", "update", "iteration", "megabytes")  # seconds


def configure(method: str, device: str, overrides: list[str]) -> Any:
    with initialize_config_dir(str(ROOT / "torchrl_genpo" / "config"), version_base="1.3"):
        return compose("genpo", [*METHODS[method][1], f"device={device}", *overrides])


def synchronized(work: Callable[[], Any], device: str) -> Callable[[], None]:
    def run() -> None:
        work()
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def peak_megabytes(work: Callable[[], Any], device: str) -> float:
    """Most bytes of tensors that ``work`` makes."""
    if device == "cpu":
        with PeakMemory() as memory:
            work()
        return memory.peak / 1e6
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def make_size(
    method: str, size: str, device: str, compile_mode: str | None = None, cudagraphs: bool = False
) -> tuple[dict[str, Callable[[], Any]], float]:
    """What is timed of a method at a size, and the share of a mini-batch that its step takes."""
    obs_dim, action_dim, hidden_sizes, *_ = SIZES[size]
    hidden = f"[{','.join(map(str, hidden_sizes))}]"
    networks = [
        f"{name}.{option}" for name in ("policy", "critic") for option in ("activation=mish", f"hidden_sizes={hidden}")
    ]
    cfg = configure(method, device, networks)
    spec = {"observation": Unbounded(obs_dim)}
    sizes: Any = SimpleNamespace(observation_spec=spec, action_spec=Unbounded(action_dim), device=device)
    actor, _, loss = build_models(cfg, sizes)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-5, fused=True)
    update = make_update(loss, optimizer, max_grad_norm=1.0, compile_mode=compile_mode, cudagraphs=cudagraphs)
    policy = actor if compile_mode is None else torch.compile(actor, mode=compile_mode)
    policy = CudaGraphModule(policy) if cudagraphs else policy
    batch = BATCHES[device]

    def observe(n: int) -> TensorDict:
        return TensorDict(observation=torch.randn(n, obs_dim, device=device), batch_size=[n], device=device)

    with torch.no_grad():
        share = SCALED if method == JACOBIAN else 1
        data = actor(observe(batch.mini_batch_size // share))
        data["advantage"], data["value_target"] = torch.randn(2, len(data), 1, device=device)
        now = observe(batch.num_envs)
    prepared = prepare(loss, data.clone())

    def collect() -> None:
        with torch.no_grad():
            policy(now.clone())

    works = {"collect": collect, "prepare": lambda: prepare(loss, data.clone()), "step": lambda: update(prepared)}
    return works, share


def measure_size(size: str, methods: list[str], device: str, repetitions: int) -> list[dict[str, Any]]:
    batch, works, shares, rows = BATCHES[device], {}, {}, []
    for method in methods:
        parts, shares[method] = make_size(method, size, device)
        works |= {(method, part): synchronized(work, device) for part, work in parts.items()}
    seconds = medians(works, repetitions, CLOCKS[device])
    for method in methods:
        collect = batch.steps * seconds[method, "collect"]
        mini_batch = seconds[method, "prepare"] + batch.epochs * seconds[method, "step"]
        update = batch.mini_batches * mini_batch * shares[method]
        megabytes = peak_megabytes(works[method, "step"], device) * shares[method]
        rows.append(dict(zip(COLUMNS, (size, method, collect, update, collect + update, megabytes), strict=True)))
    return rows


class Task:
    """A method on a running task, iteration by iteration."""

    def __init__(self, cfg: Any, env: EnvBase) -> None:
        self.cfg, self.env, device = cfg, env, cfg.device
        self.clock = CLOCKS[device]
        self.actor, critic, self.loss = build_models(cfg, self.env)
        self.gae = GAE(gamma=cfg.loss.gamma, lmbda=cfg.loss.gae_lambda, value_network=critic, average_gae=False)
        self.apply = make_update(
            self.loss, torch.optim.Adam(self.loss.parameters(), lr=cfg.optim.lr, fused=True), cfg.optim.max_grad_norm
        )
        frames = cfg.collector.frames_per_batch
        options = {"frames_per_batch": frames, "total_frames": -1, "trust_policy": True, "track_traj_ids": False}
        self.collector = Collector(
            self.env, self.actor, device=device, auto_register_policy_transforms=False, **options
        )
        self.batches = iter(self.collector)
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(frames, device=device),
            sampler=SamplerWithoutReplacement(),
            batch_size=cfg.loss.mini_batch_size,
        )

    def iterate(self) -> tuple[float, float, float]:
        """Seconds of the collection, of the update with its advantages, and of both."""
        begin = self.clock()
        data = next(self.batches)
        collected = self.clock()
        self.update(data)
        self.collector.update_policy_weights_()
        end = self.clock()
        return collected - begin, end - collected, end - begin

    def update(self, data: TensorDict) -> None:
        with torch.no_grad():
            self.gae(data)
        self.buffer.empty()
        self.buffer.extend(
            prepare(self.loss, data.select(*batch_keys(self.loss, self.actor), strict=False).reshape(-1))
        )
        for _ in range(self.cfg.loss.epochs):
            for batch in self.buffer:
                self.apply(batch)


def measure_task(
    task: str, overrides: list[str], methods: list[str], device: str, repetitions: int
) -> list[dict[str, Any]]:
    configs = {method: configure(method, device, [f"env={task}", *overrides]) for method in methods}
    tasks: dict[str, Task] = {}
    shared = None  # Isaac Lab has one simulation a process: the methods step it in turn
    if one_simulation(configs["gaussian"].env.name):
        shared = build_env(configs["gaussian"], configs["gaussian"].env.num_envs, seed=0)
    for method, cfg in configs.items():
        tasks[method] = Task(cfg, shared or build_env(cfg, cfg.env.num_envs, seed=0))
    seconds: dict[str, list[tuple[float, ...]]] = {method: [] for method in methods}
    for i in range(repetitions + 1):  # the first warms up
        for method, running in tasks.items():
            measured = running.iterate()
            if i:
                seconds[method].append(measured)
    rows = []
    for method, running in tasks.items():
        medians_ = [statistics.median(column) for column in zip(*seconds[method], strict=True)]
        data = next(running.batches)
        megabytes = peak_megabytes(lambda running=running, data=data: running.update(data), device)
        rows.append(dict(zip(COLUMNS, (task, method, *medians_, megabytes), strict=True)))
        running.collector.shutdown(close_env=shared is None)
    return rows


def ratio(row: dict[str, Any], rows: list[dict[str, Any]], column: str) -> float:
    (base,) = (other for other in rows if (other["task"], other["method"]) == (row["task"], "gaussian"))
    return row[column] / base[column]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run."""
    with path.open(newline="") as file:
        return [row | {column: float(row[column]) for column in COLUMNS[2:]} for row in csv.DictReader(file)]


def write_table(rows: list[dict[str, Any]], introduction: list[str], tasks: list[str], path: Path) -> None:
    lines = [
        *introduction,
        "| task | method | collection, ms | update, ms | iteration, ms | peak, MB | collection | update | iteration "
        "| peak |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [f"{1e3 * row[column]:.0f}" for column in COLUMNS[2:5]] + [f"{row['megabytes']:.0f}"]
        cells += [f"{ratio(row, rows, column):.2f}" for column in COLUMNS[2:]]
        lines.append(f"| {row['task']} | {METHODS[row['method']][0]} | {' | '.join(cells)} |")
    missing = [label for name, (label, _) in METHODS.items() if all(row["method"] != name for row in rows)]
    missing += [task for task in tasks if all(row["task"] != task for row in rows)]
    if missing:
        lines += ["", f"Not measured: {'; '.join(missing)}."]
    lines += origin(" ".join(["python benchmarks/table1.py", *sys.argv[1:]]))
    lines.append(f"Commits of the rows: {', '.join(dict.fromkeys(row['commit'] for row in rows))}.")
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(4.3 * len(tasks), 3.9), layout="constrained", sharey=True, squeeze=False
    )
    for panel, task in zip(axes[0], tasks, strict=True):
        chosen = [row for row in rows if row["task"] == task and row["method"] != "gaussian"]
        for offset, column in ((0.2, "update"), (-0.2, "iteration")):
            values = [ratio(row, rows, column) for row in chosen]
            positions = [-i + offset for i in range(len(chosen))]
            bars = panel.barh(positions, values, height=0.38, label=column)
            panel.bar_label(bars, [f"{value:.1f}" for value in values], padding=2, fontsize=8)
        panel.set(title=task, xscale="log", xlabel="time, Gaussian PPO = 1")
        panel.set_yticks([-i for i in range(len(chosen))], [METHODS[row["method"]][0] for row in chosen])
        panel.axvline(1, color="black", lw=0.8)
        panel.set_xlim(0.8, 2.5 * max(ratio(row, rows, column) for row in chosen for column in ("update", "iteration")))
        panel.grid(axis="x", alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=BATCHES)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--task", default="half_cheetah", help="the running one")
    parser.add_argument("--parts", nargs="+", default=["sizes", "task"], choices=("sizes", "task"))
    parser.add_argument("--overrides", nargs="+", default=[], help="options of its runs: env.num_envs=64 ...")
    options = parser.parse_args()
    is_cpu = options.device == "cpu"
    methods = list(dict.fromkeys(["gaussian", *options.methods]))  # what the others are compared with
    methods = [method for method in methods if is_cpu or method != JACOBIAN]
    autograd = f"The update by autograd of the two sizes is of 1/{SCALED} of the samples, multiplied, its peak too. "
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch, clock = BATCHES[options.device], "CPU time" if is_cpu else "wall-clock time"
    lines = [
        "# Table 1: the cost of each method, as a ratio to Gaussian PPO",
        "",
        f"Device: {options.device}. {' and '.join(SIZES)}: networks and batches of that size without a simulator, "
        f"{batch.num_envs} environments x {batch.steps} steps, {batch.epochs} epochs of {batch.mini_batches} "
        f"mini-batches. {options.task}: whole iterations of the default run, simulator included. Eager, medians of "
        f"{options.repetitions} repetitions in turn in one process, {clock}. Peak: most bytes of tensors made in one "
        f"optimizer step (of {options.task}: in one update). Solvers take 5 steps, PolicyFlow 10 of two evaluations. "
        f"{autograd if is_cpu else ''}The last four columns are ratios.",
        "",
    ]
    name = "table1" if is_cpu else f"table1_{options.device}"
    RESULTS.mkdir(exist_ok=True)
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {}
    if "sizes" in options.parts:
        for size in SIZES:
            parts[size] = partial(measure_size, size, methods, options.device, options.repetitions)
    if "task" in options.parts:
        parts[options.task] = partial(
            measure_task, options.task, options.overrides, methods, options.device, options.repetitions
        )
    path = RESULTS / f"{name}.csv"
    rows = read_rows(path) if set(options.parts) != {"sizes", "task"} and path.exists() else []
    for task, part in parts.items():  # what is measured is written before the next part begins
        rows = [row for row in rows if row["task"] != task] + [row | {"commit": commit()} for row in part()]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, (*COLUMNS, "commit"))
            writer.writeheader()
            writer.writerows(rows)
        write_table(rows, lines, [*SIZES, options.task], RESULTS / f"{name}.md")
        draw(rows, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
