# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers how much farther the pair moves in KL than the action when a part of the default policy changes.

    python -m benchmarks.numerics.default_kl        # some minutes

The default policy is a mean and a small head behind a network that both share, where ``pairs.py`` has a whole network
as the velocity. Writes ``default_kl.md`` to ``benchmarks/results``.
"""

from __future__ import annotations

import copy
import math
import statistics

import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale
from torch import Tensor, nn

from benchmarks._lib.origin import RESULTS, origin
from benchmarks._lib.report import parser, save
from torchrl_genpo import ReversibleFlowActor, ReversibleSolver, VelocityMLP

ACTION_DIM, FEATURES, SAMPLES, MEMORIES = 6, 64, 512, 128
STEPS = (1, 2, 3, 5, 8)
PARTS = {"mean": "gaussian.0", "head": "velocity", "scale": "gaussian.1"}
"""What is changed, and the attribute of the actor that it is."""
SIZE = 0.01
"""The deviation of the change of each parameter."""


def make_actor(num_steps: int, gain: float) -> ReversibleFlowActor:
    """Returns an actor as training has it, which bends the noise by a head with a last layer of a given size."""
    scale = AddStateIndependentNormalScale(ACTION_DIM, init_value=math.log(0.5))
    velocity = VelocityMLP(FEATURES, ACTION_DIM, (64,))
    nn.init.normal_(velocity.trunk[-1].weight, std=gain)
    gaussian = nn.Sequential(nn.Linear(FEATURES, ACTION_DIM), scale)
    return ReversibleFlowActor(velocity, solver=ReversibleSolver(num_steps), gaussian=gaussian).double()


def divergence(log_ratio: Tensor) -> float:
    """Returns the mean of ``r - 1 - log r``, which is never negative."""
    return (log_ratio.expm1() - log_ratio).mean().item()


@torch.no_grad()
def ratio_of_divergences(actor: ReversibleFlowActor, part: str) -> float:
    """Returns the KL of the pair for each unit of the action's, after a small change of a part."""
    features = torch.randn(SAMPLES, FEATURES, dtype=torch.float64)
    data = actor(TensorDict(observation=features, batch_size=[SAMPLES]))
    moved = copy.deepcopy(actor)
    for parameter in moved.get_submodule(part).parameters():
        parameter.add_(SIZE * torch.randn_like(parameter))
    pair = moved.log_prob(data) - actor.log_prob(data)
    observed = data.select("observation")
    proposed = actor.get_dist(observed).propose_memory(data["action"], MEMORIES, data["action_memory"])
    old, new = (
        each.get_dist(observed).estimate_action_log_prob(data["action"], *proposed).log_prob for each in (actor, moved)
    )
    return divergence(pair) / divergence(new - old)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", nargs="+", type=int, default=list(range(8)))
    seeds = arguments.parse_args().seeds
    torch.set_num_threads(1)
    lines = [
        "# The pair's KL and the action's, of the default policy",
        "",
        "How far the pair (action, memory) moves in KL for each unit that the action alone moves: "
        f"{ACTION_DIM} numbers, sigma 0.75, a head that bends the noise little (a last layer of 0.1) or much (0.3), a "
        f"small random change of one part, in float64, the memory integrated out by {MEMORIES} samples; median of "
        f"{len(seeds)} policies.",
        "",
        f"| head | changed | {' | '.join(f'M = {steps}' for steps in STEPS)} |",
        f"|---|---|{'---:|' * len(STEPS)}",
    ]
    for gain, bends in ((0.1, "little"), (0.3, "much")):
        for name, part in PARTS.items():
            cells = []
            for steps in STEPS:
                ratios = []
                for seed in seeds:
                    torch.manual_seed(seed)
                    ratios.append(ratio_of_divergences(make_actor(steps, gain), part))
                cells.append(f"{statistics.median(ratios):.2f}")
            lines.append(f"| {bends} | {name} | {' | '.join(cells)} |")
    save(RESULTS / "default_kl.md", [*lines, *origin()])


if __name__ == "__main__":
    main()
