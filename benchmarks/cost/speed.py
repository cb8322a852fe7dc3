# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What a flow costs: its update and its collection, against a Gaussian of the same trunk.

    python benchmarks/speed.py    # about five minutes

Times are medians of interleaved repetitions in one process, one thread, after warm-up, and reported as ratios. Writes
``speed.md`` to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from provenance import RESULTS, origin
from tensordict import TensorDict
from torch import nn
from torchrl.modules import MLP, ProbabilisticActor

from torchrl_genpo import ReversibleFlowActor, ReversibleSolver, VelocityMLP
from torchrl_genpo.flow import Mish
from torchrl_genpo.models import gaussian_actor

SIZES = {  # observation, action, trunk, aim eager, aim compiled
    "Humanoid": (87, 21, (400, 200, 100), 5.2, 4.5),
    "G1 rough": (310, 37, (512, 256, 128), 4.6, 4.0),
}
SAMPLES = 8192
NUM_STEPS = 5


def gaussian_policy(
    obs_dim: int, action_dim: int, hidden_sizes: tuple[int, ...], activation: type[nn.Module] = nn.Mish
) -> ProbabilisticActor:
    trunk = MLP(in_features=obs_dim, out_features=action_dim, num_cells=list(hidden_sizes), activation_class=activation)
    return gaussian_actor(trunk, action_dim)


def flow_actor(obs_dim: int, action_dim: int, hidden_sizes: tuple[int, ...]) -> ReversibleFlowActor:
    velocity = VelocityMLP(obs_dim, action_dim, hidden_sizes)
    return ReversibleFlowActor(velocity, solver=ReversibleSolver(NUM_STEPS))


def log_prob_and_backward(actor, data: TensorDict, compiled: bool) -> Callable[[], None]:
    def log_prob(td):
        return actor.log_prob(td).mean()

    scored = torch.compile(log_prob) if compiled else log_prob

    def work():
        actor.zero_grad(set_to_none=True)
        scored(data).backward()

    return work


def collection(actor, data: TensorDict) -> Callable[[], None]:
    observations = data.select("observation")

    @torch.no_grad()
    def work():
        actor(observations.copy())

    return work


def medians(
    works: dict[Any, Callable[[], None]], repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Any, float]:
    """Median seconds of each work, one after the other in turn."""
    for work in works.values():
        for _ in range(3):
            work()
    times: dict[Any, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            begin = clock()
            work()
            times[name].append(clock() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def count_velocity_evaluations(actor: ReversibleFlowActor, data: TensorDict) -> int:
    calls = []
    handle = actor.velocity.register_forward_hook(lambda *_: calls.append(1))
    collection(actor, data)()
    handle.remove()
    return len(calls)


def measure_sizes(repetitions: int) -> list[str]:
    lines = [
        "| size | what | Gaussian, ms | flow, ms | ratio | aim |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, (obs_dim, action_dim, hidden_sizes, eager_aim, compiled_aim) in SIZES.items():
        torch.manual_seed(0)
        actors = {
            "gaussian": gaussian_policy(obs_dim, action_dim, hidden_sizes),
            "flow": flow_actor(obs_dim, action_dim, hidden_sizes),
        }
        with torch.no_grad():
            data = {
                key: actor(TensorDict(observation=torch.randn(SAMPLES, obs_dim), batch_size=[SAMPLES]))
                for key, actor in actors.items()
            }
        evaluations = count_velocity_evaluations(actors["flow"], data["flow"])
        if evaluations != NUM_STEPS:
            sys.exit(f"Collection took {evaluations} velocity evaluations instead of {NUM_STEPS}.")
        # the flow's Mish is cheaper once compiled: a Gaussian that has it too is the like-for-like comparison
        same = {"gaussian": gaussian_policy(obs_dim, action_dim, hidden_sizes, Mish), "flow": actors["flow"]}
        measurements = {
            ("log-prob + backward, eager", f"{eager_aim}"): {
                key: log_prob_and_backward(actor, data[key], compiled=False) for key, actor in actors.items()
            },
            ("log-prob + backward, compiled", f"{compiled_aim}"): {
                key: log_prob_and_backward(actor, data[key], compiled=True) for key, actor in actors.items()
            },
            ("log-prob + backward, compiled, Gaussian with our Mish", ""): {
                key: log_prob_and_backward(actor, data[key], compiled=True) for key, actor in same.items()
            },
            ("collection (no gradient), eager", f"{evaluations} velocity evaluations"): {
                key: collection(actor, data[key]) for key, actor in actors.items()
            },
        }
        for (what, aim), works in measurements.items():
            seconds = medians(works, repetitions)
            ratio = seconds["flow"] / seconds["gaussian"]
            milliseconds = f"{1e3 * seconds['gaussian']:.1f} | {1e3 * seconds['flow']:.1f}"
            lines.append(f"| {name} | {what} | {milliseconds} | {ratio:.2f} | {aim} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=21)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Speed",
        "",
        f"{SAMPLES} samples, M = {NUM_STEPS}, float32, one thread, medians of {options.repetitions} interleaved "
        "repetitions. Milliseconds depend on the machine and its load; the ratio is the result.",
        "",
        *measure_sizes(options.repetitions),
    ]
    lines += origin("python benchmarks/speed.py")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
