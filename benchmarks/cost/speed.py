# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers what a flow's update and collection cost, against those of a Gaussian with the same trunk.

    python -m benchmarks.cost.speed    # about five minutes

Times are medians of interleaved repetitions in one process, one thread, after warm-up, and are reported as ratios. It
writes ``speed.md`` to ``benchmarks/results``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential
from torch import nn
from torchrl.modules import MLP

from benchmarks._lib.origin import RESULTS, origin
from benchmarks._lib.report import parser, save
from benchmarks._lib.timing import medians
from torchrl_genpo import ReversibleFlowActor, ReversibleSolver, VelocityMLP
from torchrl_genpo.flow import Mish
from torchrl_genpo.training.build import gaussian_steps

SIZES = {
    "Humanoid": (87, 21, (400, 200, 100), 5.2, 4.5),
    "G1 rough": (310, 37, (512, 256, 128), 4.6, 4.0),
}
"""The sizes of observation and action, the layers of the trunk, and the ratios aimed at, eager and compiled."""
SAMPLES = 8192
NUM_STEPS = 5


def gaussian_policy(size: str, activation: type[nn.Module] = nn.Mish) -> Any:
    """Returns a Gaussian policy of a size."""
    obs_dim, action_dim, hidden_sizes, *_ = SIZES[size]
    cells = list(hidden_sizes)
    trunk = MLP(in_features=obs_dim, out_features=action_dim, num_cells=cells, activation_class=activation)
    return ProbabilisticTensorDictSequential(*gaussian_steps(trunk, action_dim))


def score(actor: Any, data: TensorDict, compiled: bool) -> Callable[[], None]:
    """Returns the work of the log density of a batch and its gradient."""

    def log_prob(td: TensorDict) -> torch.Tensor:
        return actor.log_prob(td).mean()

    scored = torch.compile(log_prob) if compiled else log_prob

    def work() -> None:
        actor.zero_grad(set_to_none=True)
        scored(data).backward()

    return work


def collect(actor: Any, data: TensorDict) -> Callable[[], None]:
    """Returns the work of the actions for a batch of observations."""
    observations = data.select("observation")

    @torch.no_grad()
    def work() -> None:
        actor(observations.copy())

    return work


def measure_size(size: str, repetitions: int) -> list[str]:
    """Returns the rows of a size."""
    obs_dim, action_dim, hidden_sizes, eager_aim, compiled_aim = SIZES[size]
    torch.manual_seed(0)
    flow = ReversibleFlowActor(VelocityMLP(obs_dim, action_dim, hidden_sizes), solver=ReversibleSolver(NUM_STEPS))
    actors = {"gaussian": gaussian_policy(size), "flow": flow}
    # the flow's Mish is cheaper once compiled, so a Gaussian that has it too is the comparison like for like
    same = {"gaussian": gaussian_policy(size, Mish), "flow": flow}
    with torch.no_grad():
        observations = TensorDict(observation=torch.randn(SAMPLES, obs_dim), batch_size=[SAMPLES])
        data = {name: actor(observations.clone()) for name, actor in actors.items()}
    what = "log-prob + backward"
    measurements = {
        (f"{what}, eager", str(eager_aim)): {n: score(actor, data[n], False) for n, actor in actors.items()},
        (f"{what}, compiled", str(compiled_aim)): {n: score(actor, data[n], True) for n, actor in actors.items()},
        (f"{what}, compiled, Gaussian with our Mish", ""): {n: score(a, data[n], True) for n, a in same.items()},
        ("collection (no gradient), eager", f"{NUM_STEPS} velocity evaluations"): {
            n: collect(actor, data[n]) for n, actor in actors.items()
        },
    }
    rows = []
    for (name, aim), works in measurements.items():
        seconds = medians(works, repetitions)
        cells = [f"{1e3 * seconds[policy]:.1f}" for policy in works]
        rows.append(f"| {size} | {name} | {' | '.join(cells)} | {seconds['flow'] / seconds['gaussian']:.2f} | {aim} |")
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repetitions", type=int, default=21)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Speed",
        "",
        f"{SAMPLES} samples, M = {NUM_STEPS}, float32, one thread, medians of {options.repetitions} interleaved "
        "repetitions. Milliseconds depend on the machine and its load; the ratio is the result.",
        "",
        "| size | what | Gaussian, ms | flow, ms | ratio | aim |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for size in SIZES:
        lines += measure_size(size, options.repetitions)
    save(RESULTS / "speed.md", [*lines, *origin()])


if __name__ == "__main__":
    main()
