# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers where the time of a training goes, part by part, and what compiling saves of it.

    python -m benchmarks.cost.profile_loop    # about five minutes

Gaussian PPO and the flow take turns in one process, update by update; the times are medians of processor time. It
writes ``profile_loop.md`` to ``benchmarks/results``.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks._lib.in_process import configure, start_training
from benchmarks._lib.origin import RESULTS, origin
from benchmarks._lib.report import parser, save

POLICIES = ("gaussian", "reversible_flow")
COLLECTION = ("simulator", "transforms", "policy", "rest of the collection")
UPDATE = ("advantages", "loss", "gradient", "optimizer", "rest of the update")


class Clock:
    """Counts processor time by part. What a part calls that is a part of its own does not count for it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        now = time.process_time()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what happens in this context for a part."""
        self._switch()
        self._stack.append(name)
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Returns the function with its calls counted for a part."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return wrapper

    def watch(self, training: Any) -> None:
        """Counts the calls of a training's parts."""
        for owner, method, name in (
            (training.env.base_env, "_step", "simulator"),
            (training.env.transform, "_step", "transforms"),
            (training.policy, "forward", "policy"),
            (training.learner.gae, "forward", "advantages"),
            (training.loss, "forward", "loss"),
            (training.learner.optimizer, "step", "optimizer"),
        ):
            object.__setattr__(owner, method, self.timed(getattr(owner, method), name))


def measure_parts(task: str, updates: int) -> dict[str, dict[str, float]]:
    """Returns the median milliseconds of an update by policy and part."""
    found: dict[str, dict[str, list[float]]] = {policy: defaultdict(list) for policy in POLICIES}
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for policy in POLICIES:
            cfg = configure("seed=0", f"env={task}", f"policy={policy}")
            training, clock = start_training(cfg, Path(folder) / policy), Clock()
            clock.watch(training)
            runs[policy] = training, clock, iter(training.collection)
        for update, (policy, (training, clock, batches)) in product(range(updates + 1), runs.items()):
            clock.seconds.clear()
            with clock.part("rest of the collection"):
                data = next(batches)
            gradient = clock.timed(torch.Tensor.backward, "gradient")
            with clock.part("rest of the update"), patch.object(torch.Tensor, "backward", gradient):
                training.learn(data, 1)
            if update:  # the first warms up
                for part in (*COLLECTION, *UPDATE):
                    found[policy][part].append(1e3 * clock.seconds[part])
        for training, _, _ in runs.values():
            training.close()
    return {
        policy: {part: statistics.median(times) for part, times in parts.items()} for policy, parts in found.items()
    }


def whole_updates(task: str, updates: int) -> list[str]:
    """Returns a table of collection and update, eager and compiled, without the clock's own time."""
    found: dict[tuple[bool, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for compiled, policy in product((False, True), POLICIES):
            cfg = configure("seed=0", f"env={task}", f"policy={policy}", f"compile.enabled={str(compiled).lower()}")
            training = start_training(cfg, Path(folder) / f"{policy}_{compiled}")
            runs[compiled, policy] = training, iter(training.collection)
        for _, (key, (training, batches)) in product(range(updates + 1), runs.items()):
            begin = time.process_time()
            training.learn(next(batches), 1)
            found[key].append(time.process_time() - begin)
        for training, _ in runs.values():
            training.close()
    lines = [
        "| whole update | Gaussian, ms | flow, ms | ratio | to the eager Gaussian | the flow's first, s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    median = {key: statistics.median(seconds[1:]) for key, seconds in found.items()}  # the first warms up
    eager = median[False, "gaussian"]
    for compiled in (False, True):
        gaussian, flow = (median[compiled, policy] for policy in POLICIES)
        cells = [f"{1e3 * gaussian:.0f}", f"{1e3 * flow:.0f}", f"{flow / gaussian:.2f}", f"{flow / eager:.2f}"]
        cells.append(f"{found[compiled, 'reversible_flow'][0]:.0f}")
        lines.append(f"| {'compiled' if compiled else 'eager'} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--task", default="half_cheetah", help="default: half_cheetah")
    arguments.add_argument("--updates", type=int, default=15, help="default: 15")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    gaussian, flow = measure_parts(options.task, options.updates).values()
    totals = [sum(times.values()) for times in (gaussian, flow)]
    lines = [
        "# Where the time of a training goes",
        "",
        f"{options.task}, default setting: 2048 frames and 40 mini-batches an update. Processor time, medians of "
        f"{options.updates} updates in turn in one process.",
        "",
        "| part | Gaussian, ms | flow, ms | flow - Gaussian, ms | of the flow's update, % |",
        "|---|---:|---:|---:|---:|",
    ]
    for part in (*COLLECTION, *UPDATE):
        cells = [f"{gaussian[part]:.0f}", f"{flow[part]:.0f}", f"{flow[part] - gaussian[part]:+.0f}"]
        lines.append(f"| {part} | {' | '.join(cells)} | {100 * flow[part] / totals[1]:.0f} |")
    lines.append(f"| all | {totals[0]:.0f} | {totals[1]:.0f} | {totals[1] - totals[0]:+.0f} | 100 |")
    lines += ["", f"Ratio of the flow's time to the Gaussian's: {totals[1] / totals[0]:.2f}.", ""]
    lines += ["Whole updates, and the first of all, which compiles:", "", *whole_updates(options.task, options.updates)]
    save(RESULTS / "profile_loop.md", [*lines, *origin()])


if __name__ == "__main__":
    main()
