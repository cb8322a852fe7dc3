# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Where the time of a training goes, part by part, and what two ways to save some of it are worth.

    python benchmarks/profile_loop.py

Gaussian PPO and the flow take turns in one process, update by update; medians of processor time; whole updates also
compiled. What is saved is measured on one optimizer step: with the first layer of the velocity as one matrix product at
every step of the solver, as it is plainly written, and with that layer split, eager and compiled. Writes
``profile_loop.md``.
"""

from __future__ import annotations

import argparse
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
import torch.nn.functional as F
from in_process import configure, start_training
from provenance import RESULTS, origin
from speed import SIZES, log_prob_and_backward, medians
from tensordict import TensorDict
from torch import Tensor

from torchrl_genpo import ReversibleFlowActor, VelocityMLP
from torchrl_genpo.training.loop import Training

POLICIES = {"gaussian": "Gaussian", "reversible_flow": "flow"}
COLLECTION = ("simulator", "transforms", "policy", "rest of the collection")
UPDATE = ("advantages", "loss", "gradient", "optimizer", "rest of the update")
NETWORKS = {"half_cheetah": (17, 6, (64, 64), 512)} | {  # observation, action, hidden layers, samples
    name: (*sizes, 4096) for name, (*sizes, _, _) in SIZES.items()
}


class PlainVelocity(VelocityMLP):
    """The same network, its first layer one product with (observation, state, time) at every step."""

    def condition(self, *observations: Tensor) -> Tensor:
        return torch.cat(observations, -1)

    def forward(self, x: Tensor, t: float | Tensor, context: Tensor) -> Tensor:
        layers = (self.observation_layer, self.state_layer, self.time_layer)
        time = self.time_embedding(t).expand(*x.shape[:-1], -1)
        weight = torch.cat([layer.weight for layer in layers], -1)
        return self.trunk(F.linear(torch.cat([context, x, time], -1), weight, self.observation_layer.bias))


class Clock:
    """Processor time by part; what a part calls that is a part of its own does not count for it."""

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
        self._switch()
        self._stack.append(name)
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, its calls counted for a part."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return wrapper

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Counts the calls of an object's method for a part."""
        object.__setattr__(owner, method, self.timed(getattr(owner, method), name))


def start(task: str, policy: str, folder: Path) -> tuple[Training, Clock]:
    cfg = configure("seed=0", f"env={task}", f"policy={policy}")
    training, clock = start_training(cfg, folder / policy), Clock()
    for owner, method, name in (
        (training.env.base_env, "_step", "simulator"),
        (training.env.transform, "_step", "transforms"),
        (training.actor, "forward", "policy"),
        (training.learner.gae, "forward", "advantages"),
        (training.loss, "forward", "loss"),
        (training.learner.optimizer, "step", "optimizer"),
    ):
        clock.watch(owner, method, name)
    return training, clock


def measure(task: str, updates: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of an update by policy and part."""
    found: dict[str, dict[str, list[float]]] = {policy: defaultdict(list) for policy in POLICIES}
    with tempfile.TemporaryDirectory() as folder:
        runs = {policy: start(task, policy, Path(folder)) for policy in POLICIES}
        batches = {policy: iter(training.collection) for policy, (training, _) in runs.items()}
        for update, (policy, (training, clock)) in product(range(updates + 1), runs.items()):
            clock.seconds.clear()
            with clock.part("rest of the collection"):
                data = next(batches[policy])
            gradient = clock.timed(torch.Tensor.backward, "gradient")
            with clock.part("rest of the update"), patch.object(torch.Tensor, "backward", gradient):
                training.learn(data, 1)
            if update:  # the first warms up
                for part in (*COLLECTION, *UPDATE):
                    found[policy][part].append(1e3 * clock.seconds[part])
        for training, _ in runs.values():
            training.close()
    return {
        policy: {part: statistics.median(times) for part, times in parts.items()} for policy, parts in found.items()
    }


def whole_updates(task: str, updates: int) -> list[str]:
    """A table of collection and update, eager and with ``compile.enabled=true``, without the clock's own time."""
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


def savings(repetitions: int) -> list[str]:
    """A table of one step's loss and gradient: plain first layer, split, split and compiled."""
    lines = [
        "| size | plain first layer, ms | split | split, compiled | plain / split | plain / compiled |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, (obs_dim, action_dim, hidden_sizes, samples) in NETWORKS.items():
        torch.manual_seed(0)
        split = ReversibleFlowActor(VelocityMLP(obs_dim, action_dim, hidden_sizes))
        plain = ReversibleFlowActor(PlainVelocity(obs_dim, action_dim, hidden_sizes))
        plain.load_state_dict(split.state_dict())
        data = TensorDict(observation=torch.randn(samples, obs_dim), batch_size=[samples])
        data = split(data).detach()
        torch.testing.assert_close(plain.log_prob(data), split.log_prob(data), rtol=1e-4, atol=1e-3)
        works = {
            "plain": log_prob_and_backward(plain, data, compiled=False),
            "split": log_prob_and_backward(split, data, compiled=False),
            "compiled": log_prob_and_backward(split, data, compiled=True),
        }
        seconds = medians(works, repetitions, time.process_time)
        cells = [*(f"{1e3 * value:.1f}" for value in seconds.values())]
        cells += [f"{seconds['plain'] / seconds[key]:.2f}" for key in ("split", "compiled")]
        lines.append(f"| {name}, {samples} samples | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="half_cheetah", help="default: half_cheetah")
    parser.add_argument("--updates", type=int, default=15, help="default: 15")
    parser.add_argument("--repetitions", type=int, default=15, help="of one step's loss and gradient; default: 15")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options.task, options.updates)
    gaussian, flow = (found[policy] for policy in POLICIES)
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
        times = [gaussian[part], flow[part]]
        cells = [
            *(f"{value:.0f}" for value in times),
            f"{times[1] - times[0]:+.0f}",
            f"{100 * times[1] / totals[1]:.0f}",
        ]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    lines.append(f"| all | {totals[0]:.0f} | {totals[1]:.0f} | {totals[1] - totals[0]:+.0f} | 100 |")
    lines += ["", f"Ratio of the flow's time to the Gaussian's: {totals[1] / totals[0]:.2f}.", ""]
    lines += ["Whole updates, and the first of all, which compiles:", "", *whole_updates(options.task, options.updates)]
    lines += ["", "Loss and gradient of one step, M = 5, before and after:", "", *savings(options.repetitions)]
    lines += origin("python benchmarks/profile_loop.py")
    (RESULTS / "profile_loop.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
