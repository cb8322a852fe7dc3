# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers what each method costs, as a ratio to Gaussian PPO: the paper's Table 1, on any machine.

    python -m benchmarks.cost.table1                   # CPU, one thread, a quarter of an hour
    python -m benchmarks.cost.table1 --device cuda     # the paper's sizes of batches
    python -m benchmarks.cost.table1 --parts task      # the running task again, the rest as an earlier run found it
    python -m benchmarks.cost.table1 --parts           # only writes the report of what was measured

Humanoid and G1 are networks and batches of those sizes without their simulator: one call of the policy, what the loss
keeps of a batch and one optimizer step are timed, and an iteration is made of them. HalfCheetah is whole iterations of
the running task: simulator, advantages and update. The determinant by autograd is left out on a GPU: one mini-batch
would take hundreds of gigabytes, and a smaller one says little about a larger one's time there.

The methods take turns in one process; the times are medians after warm-up, on a CPU of processor time, which other work
on the machine hardly changes. It writes ``table1.md``, ``.csv`` and ``.png`` (``table1_cuda`` of a GPU) to
``benchmarks/results``.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from tensordict.nn import CudaGraphModule
from torchrl.data import Unbounded

from benchmarks._lib.in_process import build_models, configure, prepare, start_training
from benchmarks._lib.origin import RESULTS, commit, origin
from benchmarks._lib.report import parser, pyplot, save
from benchmarks._lib.timing import CLOCKS, medians, peak_megabytes, synchronized
from benchmarks.cost.autograd_determinant import AutogradFlow
from torchrl_genpo.modules import flow_of
from torchrl_genpo.training import make_update

SIZES = {"Humanoid": (87, 21, (400, 200, 100)), "G1 rough": (310, 37, (512, 256, 128))}
"""The sizes of observation and action, and the hidden layers."""
METHODS = {
    "gaussian": ("Gaussian PPO", ["policy=gaussian"]),
    "reversible_flow": ("GenPO++ (reversible_flow)", ["policy=reversible_flow"]),
    "genpo_uncompressed": ("GenPO without its compression loss", ["policy=genpo", "policy.loss.compression_coeff=0"]),
    "genpo": ("GenPO (dummy action)", ["policy=genpo"]),
    "genpo_jacobian": ("GenPO, determinant by autograd", ["policy=genpo"]),
    "policyflow": ("PolicyFlow", ["policy=policyflow"]),
    "fpo": ("FPO++, 10 steps, 8 samples", ["policy=fpo"]),
    "fpo_published": (
        "FPO++, 64 steps, 32 samples",
        ["policy=fpo", "policy.options.num_steps=64", "policy.loss.num_samples=32"],
    ),
}
"""The label and the options of the entry script of each method."""
JACOBIAN = "genpo_jacobian"
SCALED = 8
"""The part of the samples on which the update by autograd is measured, whose time is then multiplied."""


class Batch(NamedTuple):
    """The sizes of an iteration."""

    num_envs: int
    steps: int
    epochs: int
    mini_batches: int

    @property
    def mini_batch_size(self) -> int:
        return self.num_envs * self.steps // self.mini_batches


BATCHES = {"cpu": Batch(64, 32, 5, 2), "cuda": Batch(4096, 32, 5, 4)}
COLUMNS = ("task", "method", "collect", "update", "iteration", "megabytes")
"""The columns of a row; times are in seconds."""


def make_size(
    method: str, size: str, device: str, compile_mode: str | None = None, cudagraphs: bool = False
) -> tuple[dict[str, Callable[[], Any]], float]:
    """Returns the works that are timed of a method at a size, and the share of a mini-batch that its step takes."""
    obs_dim, action_dim, hidden_sizes = SIZES[size]
    hidden = f"[{','.join(map(str, hidden_sizes))}]"
    networks = [
        f"{name}.{option}" for name in ("policy", "critic") for option in ("activation=mish", f"hidden_sizes={hidden}")
    ]
    cfg = configure(*METHODS[method][1], f"device={device}", *networks)
    spec = {"observation": Unbounded(obs_dim)}
    sizes: Any = SimpleNamespace(
        observation_spec=spec, action_spec=Unbounded(action_dim), device=device, batch_size=torch.Size(())
    )
    actor, _, loss = build_models(cfg, sizes)
    if method == JACOBIAN:
        flow_of(actor).flow_class = AutogradFlow
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
    """Returns the rows of a size."""
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


def measure_task(
    task: str, overrides: list[str], methods: list[str], device: str, repetitions: int
) -> list[dict[str, Any]]:
    """Returns the rows of a running task, whose methods train in turn, iteration by iteration."""
    clock, rows = CLOCKS[device], []
    seconds: dict[str, list[tuple[float, ...]]] = {method: [] for method in methods}
    with tempfile.TemporaryDirectory() as folder:
        trainings = {}
        for method in methods:
            cfg = configure(*METHODS[method][1], f"device={device}", f"env={task}", "seed=0", *overrides)
            trainings[method] = start_training(cfg, Path(folder) / method)
            if method == JACOBIAN:
                flow_of(trainings[method].policy).flow_class = AutogradFlow
        batches = {method: iter(training.collection) for method, training in trainings.items()}
        for i in range(repetitions + 1):  # the first warms up
            for method, training in trainings.items():
                begin = clock()
                data = next(batches[method])
                collected = clock()
                training.learn(data, 1)
                end = clock()
                if i:
                    seconds[method].append((collected - begin, end - collected, end - begin))
        for method, training in trainings.items():
            times = [statistics.median(column) for column in zip(*seconds[method], strict=True)]
            data = next(batches[method])
            megabytes = peak_megabytes(lambda training=training, data=data: training.learn(data, 1), device)
            rows.append(dict(zip(COLUMNS, (task, method, *times, megabytes), strict=True)))
            training.close()
    return rows


def ratio(row: dict[str, Any], rows: list[dict[str, Any]], column: str) -> float:
    """Returns a column as a ratio to Gaussian PPO's on the same task."""
    (base,) = (other for other in rows if (other["task"], other["method"]) == (row["task"], "gaussian"))
    return row[column] / base[column]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of an earlier run."""
    with path.open(newline="") as file:
        return [row | {column: float(row[column]) for column in COLUMNS[2:]} for row in csv.DictReader(file)]


def write_table(
    rows: list[dict[str, Any]], introduction: list[str], tasks: list[str], path: Path, made_by: list[str]
) -> None:
    """Writes the table; ``made_by`` is its last lines."""
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
    save(path, [*lines, *made_by, f"Commits of the rows: {', '.join(dict.fromkeys(row['commit'] for row in rows))}."])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws a panel of bars for each task."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = pyplot().subplots(
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
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cpu", choices=BATCHES)
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    arguments.add_argument("--task", default="half_cheetah", help="the running one")
    arguments.add_argument("--parts", nargs="*", default=["sizes", "task"], choices=("sizes", "task"))
    arguments.add_argument("--overrides", nargs="+", default=[], help="options of its runs: env.num_envs=64 ...")
    options = arguments.parse_args()
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
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {}
    if "sizes" in options.parts:
        for size in SIZES:
            parts[size] = partial(measure_size, size, methods, options.device, options.repetitions)
    if "task" in options.parts:
        parts[options.task] = partial(
            measure_task, options.task, options.overrides, methods, options.device, options.repetitions
        )
    path, report = RESULTS / f"{name}.csv", RESULTS / f"{name}.md"
    rows = read_rows(path) if set(options.parts) != {"sizes", "task"} and path.exists() else []
    for task, part in parts.items():  # what is measured is written before the next part begins
        rows = [row for row in rows if row["task"] != task] + [row | {"commit": commit()} for row in part()]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, (*COLUMNS, "commit"))
            writer.writeheader()
            writer.writerows(rows)
    said = report.read_text().splitlines() if report.exists() else []
    made_by = (
        origin() if parts else ["", *(line for line in said if line.startswith(("Command:", "Versions:", "Machine:")))]
    )
    write_table(rows, lines, [*SIZES, options.task], report, made_by)
    draw(rows, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
