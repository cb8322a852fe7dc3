# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers what ``compile.enabled=true`` and ``compile.cudagraphs=true`` save of an iteration.

    python -m benchmarks.cost.cuda_graphs                 # a GPU, the paper's sizes of batches; about five minutes
    python -m benchmarks.cost.cuda_graphs --device cpu    # eager and compiled; three minutes

It times Gaussian PPO and the flow at the sizes of ``table1.py``, without a simulator: one call of the policy and one
optimizer step, eager, compiled, captured in a CUDA graph, and both. They take turns in one process; the times are
medians after warm-up. It writes ``cuda_graphs.md``, on a CPU ``compiled_cpu.md``, to ``benchmarks/results``.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks._lib.origin import RESULTS, origin
from benchmarks._lib.report import parser, save
from benchmarks._lib.timing import CLOCKS, medians, synchronized
from benchmarks.cost.table1 import BATCHES, METHODS, SIZES, make_size
from torchrl_genpo.training.update import CAPTURE_AFTER

EXECUTIONS: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compile_mode": "default"},
    "CUDA graphs": {"cudagraphs": True},
    "compiled, CUDA graphs": {"compile_mode": "default", "cudagraphs": True},
}
POLICIES = ("gaussian", "reversible_flow")
WARM_UP = CAPTURE_AFTER + 1
"""The number of calls after which the policy's graph is captured too."""


def measure(size: str, executions: list[str], device: str, repetitions: int) -> list[str]:
    """Returns the rows of the table of one size."""
    works = {}
    for policy in POLICIES:
        for execution in executions:
            parts, _ = make_size(policy, size, device, **EXECUTIONS[execution])
            for part in ("collect", "step"):
                work = works[policy, execution, part] = synchronized(parts[part], device)
                for _ in range(WARM_UP):
                    work()
    seconds = medians(works, repetitions, CLOCKS[device])
    batch, rows = BATCHES[device], []
    for execution in executions:
        totals = {}
        for policy in POLICIES:
            call, step = (seconds[policy, execution, part] for part in ("collect", "step"))
            totals[policy] = batch.steps * call + batch.epochs * batch.mini_batches * step
            cells = [f"{1e3 * call:.2f}", f"{1e3 * step:.2f}", f"{1e3 * totals[policy]:.0f}"]
            cells.append(f"{totals[policy] / totals['gaussian']:.2f}")
            rows.append(f"| {size} | {METHODS[policy][0]} | {execution} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cuda", choices=BATCHES)
    arguments.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    arguments.add_argument("--executions", nargs="+", default=list(EXECUTIONS), choices=EXECUTIONS)
    arguments.add_argument("--repetitions", type=int, default=21)
    options = arguments.parse_args()
    executions = [
        name for name in options.executions if options.device != "cpu" or "cudagraphs" not in EXECUTIONS[name]
    ]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = BATCHES[options.device]
    lines = [
        "# What compiling and CUDA graphs save",
        "",
        f"Device: {options.device}. {batch.num_envs} environments x {batch.steps} steps, {batch.epochs} epochs of "
        f"{batch.mini_batches} mini-batches, without a simulator. Medians of {options.repetitions} repetitions in turn "
        "in one process. An iteration is its calls of the policy and its optimizer steps.",
        "",
        "| size | method | how | a call of the policy, ms | an optimizer step, ms | an iteration, ms | to Gaussian |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for size in options.sizes:
        lines += measure(size, executions, options.device, options.repetitions)
    save(RESULTS / ("compiled_cpu.md" if options.device == "cpu" else "cuda_graphs.md"), [*lines, *origin()])


if __name__ == "__main__":
    main()
