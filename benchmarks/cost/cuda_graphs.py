# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What ``compile.enabled=true`` and ``compile.cudagraphs=true`` save of an iteration.

    python benchmarks/cuda_graphs.py                 # a GPU, the paper's sizes of batches
    python benchmarks/cuda_graphs.py --device cpu    # without the graphs

Gaussian PPO and the flow at the sizes of ``table1.py``, without a simulator: one call of the policy and one optimizer
step, eager, compiled, captured in a CUDA graph, and both. All in one process, in turn, medians after warm-up. Writes
``cuda_graphs.md`` to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from provenance import RESULTS, origin
from speed import SIZES, medians
from table1 import BATCHES, CLOCKS, METHODS, make_size, synchronized

from torchrl_genpo.training.update import CAPTURE_AFTER

EXECUTIONS: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compile_mode": "default"},
    "CUDA graphs": {"cudagraphs": True},
    "compiled, CUDA graphs": {"compile_mode": "default", "cudagraphs": True},
}
POLICIES = ("gaussian", "reversible_flow")
WARM_UP = CAPTURE_AFTER + 1  # calls, by which the policy's graph is captured too


def measure(size: str, executions: list[str], device: str, repetitions: int) -> list[str]:
    """Rows of the table, of one size."""
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
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=BATCHES)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--executions", nargs="+", default=list(EXECUTIONS), choices=EXECUTIONS)
    parser.add_argument("--repetitions", type=int, default=21)
    options = parser.parse_args()
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
    lines += origin(" ".join(["python benchmarks/cuda_graphs.py", *sys.argv[1:]]))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cuda_graphs.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
