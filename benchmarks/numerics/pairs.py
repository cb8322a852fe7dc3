# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers how the map moves pairs, and how far a pair moves when its action moves.

    python -m benchmarks.numerics.pairs    # about two minutes

It writes to ``benchmarks/results``:

- ``trajectories.png``: how a pre-trained flow carries noise to its data, by Euler's rule and by the reversible one.
- ``pair_map.png``: the map of one pair of numbers, step by step, and the density that it gives the action.
- ``pair_ratio.png``: the pair's likelihood ratio against that of the action alone, after one update.
- ``pair_kl.md``: how far the pair moves in KL when the action moves, by sigma.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks._lib.origin import RESULTS, ROOT, origin
from benchmarks._lib.report import parser, pyplot, save
from torchrl_genpo import (
    ConsistentStart,
    FlowMatchingLoss,
    IndependentStart,
    ReversibleFlow,
    ReversibleFlowActor,
    ReversibleSolver,
    VelocityMLP,
)
from torchrl_genpo.flow import ConditionedVelocity

sys.path.insert(0, str(ROOT / "examples"))
from pretrain_then_finetune import make_velocity, mixture, observations, pretrain

NUM_STEPS = 5
SIGMAS = (0.5, 0.65, 0.75, 0.85, 0.95)
ACTIONS = torch.linspace(-3.5, 3.5, 141, dtype=torch.float64)[:, None]
"""The actions of one number for quadrature."""
MEMORIES = torch.linspace(-4.5, 4.5, 1801, dtype=torch.float64)[:, None]
"""The memories for quadrature, finer because their law at an action is narrow."""


def path(solver: ReversibleSolver, velocity: ConditionedVelocity, x: Tensor, memory: Tensor) -> Tensor:
    """Returns every state ``[num_steps + 2, n, d]`` of an integration: memory, start and one for each step."""
    found = [memory]

    def watched(x: Tensor, t: float) -> Tensor:
        found.append(x)
        return velocity(x, t)

    end, _ = solver.integrate(watched, x, memory)
    return torch.stack([*found, end])


@torch.no_grad()
def draw_trajectories(pictures: int = 60) -> None:
    """Draws paths from noise to the modes of the pre-trained flow of ``examples/pretrain_then_finetune.py``."""
    torch.manual_seed(0)
    network = make_velocity()
    with torch.enable_grad():
        pretrain(network)
    context = network.condition(observations(1)["observation"])
    velocity = ConditionedVelocity(lambda x, t, _: network(x, t, context))
    data, x = mixture(2000), torch.randn(pictures, 2)
    solver = ReversibleSolver(NUM_STEPS)
    starts = {"reversible, paper's start": IndependentStart(), "reversible, consistent 0.1": ConsistentStart(0.1)}
    euler = [x]
    for i in range(NUM_STEPS):
        euler.append(euler[-1] + velocity(euler[-1], i / NUM_STEPS) / NUM_STEPS)
    paths = {"Euler": torch.stack(euler)}
    for name, start in starts.items():
        pair = start.from_noise(velocity, x, torch.randn(pictures, 2), solver=solver)
        paths[name] = path(solver, velocity, *pair)[1:]
    figure, panels = pyplot().subplots(1, len(paths), figsize=(10, 3.6), layout="constrained")
    for panel, (name, states) in zip(panels, paths.items(), strict=True):
        panel.scatter(*data.T, s=2, color="0.8", rasterized=True)
        panel.plot(states[..., 0], states[..., 1], color="C0", lw=0.6, alpha=0.7)
        panel.scatter(*states[0].T, s=7, color="C1", label="noise")
        panel.scatter(*states[-1].T, s=9, color="C3", zorder=3, label="action")
        panel.set(title=name, aspect="equal", xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), xticks=[], yticks=[])
    panels[0].legend(loc="upper left", frameon=False, fontsize=8)
    figure.savefig(RESULTS / "trajectories.png", dpi=110)


def bent(x: Tensor, t: float) -> Tensor:
    """Returns a velocity of one number that parts a normal law into two modes."""
    return 1.5 * (torch.tanh(3 * x) - x) + 0.3 * t


def area(points: Tensor) -> float:
    """Returns the area of a polygon ``[n, 2]`` by the shoelace formula."""
    x, y = points.T
    return 0.5 * abs((x * y.roll(-1) - y * x.roll(-1)).sum().item())


@torch.no_grad()
def draw_pair_map() -> None:
    """Draws a chessboard of noise pairs under the map, and the density of the action."""
    solver, start = ReversibleSolver(NUM_STEPS), IndependentStart()
    axis = torch.linspace(-2, 2, 161, dtype=torch.float64)
    memory, x = torch.meshgrid(axis, axis, indexing="ij")
    states = path(solver, bent, x.reshape(-1, 1), memory.reshape(-1, 1))[..., 0]
    board = ((memory * 2).floor() + (x * 2).floor()) % 2
    # the circle of radius 1 as a fine polygon, whose area is followed through the steps
    angle = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)[:-1]
    circle = path(solver, bent, angle.sin()[:, None], angle.cos()[:, None])[..., 0]
    figure, panels = pyplot().subplots(1, 5, figsize=(15, 3.5), layout="constrained")
    for panel, i in zip(panels, (0, 1, 2, NUM_STEPS), strict=False):
        old, new = states[i].view_as(x), states[i + 1].view_as(x)
        panel.pcolormesh(old, new, board, shading="gouraud", cmap="Blues", vmin=-0.3, vmax=1.6, rasterized=True)
        outline = torch.stack([circle[i], circle[i + 1]], -1)
        panel.plot(*outline.T, color="C3", lw=1.2)
        ratio = area(outline) / area(torch.stack([circle[0], circle[1]], -1))
        title = "noise" if i == 0 else f"after {i} step{'s' * (i > 1)}"
        panel.set(title=f"{title}: area {ratio:.4f}", xlabel=f"$x_{{{i - 1}}}$", ylabel=f"$x_{{{i}}}$")
        panel.set(xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), aspect="equal")
    flow = ReversibleFlow(bent, 1, solver, start, dtype=torch.float64)
    marginal = action_density(flow)
    samples = flow.sample((100_000,))[0][:, 0]
    panels[4].hist(samples, bins=120, range=(-2.3, 2.3), density=True, color="0.8", label="samples of the action")
    panels[4].plot(ACTIONS, marginal, color="C0", label="pair density, memory integrated out")
    panels[4].set(title="density of the action", xlim=(-2.3, 2.3), ylim=(0, 1.35 * marginal.max()), xlabel="action")
    panels[4].legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS / "pair_map.png", dpi=110)


@torch.no_grad()
def action_density(flow: ReversibleFlow) -> Tensor:
    """Returns the density of the action alone at :data:`ACTIONS`, the memory integrated out by quadrature."""
    size = len(ACTIONS), len(MEMORIES), 1
    log_density = flow.log_prob(ACTIONS[:, None].expand(size).reshape(-1, 1), MEMORIES.expand(size).reshape(-1, 1))
    return torch.trapezoid(log_density.exp().view(size[:-1]), MEMORIES[:, 0], dim=1)


def small_update(sigma: float, seed: int, size: float) -> tuple[ReversibleFlow, ReversibleFlow]:
    """Returns a random policy of one number with two modes, and the same policy after a small random change."""
    torch.manual_seed(seed)
    network = VelocityMLP(in_features=1, action_dim=1, num_cells=(16, 16))
    loss = FlowMatchingLoss(ReversibleFlowActor(network))
    optimizer = torch.optim.Adam(loss.parameters(), lr=5e-3)
    for _ in range(200):
        data = observations(256)
        data["action"] = 0.3 * torch.randn(256, 1) + torch.randint(2, (256, 1)) * 2.0 - 1.0
        optimizer.zero_grad()
        loss(data)["loss_flow_matching"].backward()
        optimizer.step()
    solver = ReversibleSolver(NUM_STEPS, sigma)
    flows = []
    for _ in range(2):
        frozen = VelocityMLP(in_features=1, action_dim=1, num_cells=(16, 16)).double()
        frozen.load_state_dict(network.state_dict())
        context = frozen.condition(torch.zeros(1, 1, dtype=torch.float64))
        velocity = ConditionedVelocity(frozen, context)
        flows.append(ReversibleFlow(velocity, 1, solver, IndependentStart(), dtype=torch.float64))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(size * parameter.abs().mean() * torch.randn_like(parameter))
    return flows[0], flows[1]


@torch.no_grad()
def divergences(old: ReversibleFlow, new: ReversibleFlow) -> tuple[float, float]:
    """Returns the KL of the pair, from samples, and that of the action alone, by quadrature.

    Both are means of ``r - 1 - log r``, which is never negative.
    """
    pairs = old.sample((50_000,))
    log_ratio = new.log_prob(*pairs) - old.log_prob(*pairs)
    pair = (log_ratio.expm1() - log_ratio).mean().item()
    p, q = (action_density(flow).clamp_min(1e-300) for flow in (old, new))
    return pair, torch.trapezoid(q - p - p * (q / p).log(), ACTIONS[:, 0]).item()


@torch.no_grad()
def draw_pair_ratio() -> None:
    """Draws pair ratios of samples, and the ratio of the action alone, which is their mean at each action."""
    figure, panels = pyplot().subplots(1, 3, figsize=(12, 3.4), layout="constrained", sharey=True)
    for panel, sigma in zip(panels, (0.5, 0.75, 0.95), strict=True):
        with torch.enable_grad():
            old, new = small_update(sigma, seed=0, size=0.05)
        action, memory = old.sample((4000,))
        ratio = (new.log_prob(action, memory) - old.log_prob(action, memory)).exp()
        marginals = [action_density(flow) for flow in (old, new)]
        panel.scatter(action[:, 0], ratio, s=2, alpha=0.25, color="C0", rasterized=True, label="pair, of 4000 samples")
        likely = marginals[0] > 1e-3 * marginals[0].max()
        panel.plot(ACTIONS[likely], (marginals[1] / marginals[0])[likely], color="C3", label="action alone")
        panel.axhspan(0.8, 1.2, color="0.5", alpha=0.12, lw=0)
        panel.set(title=f"sigma = {sigma}", xlabel="action", ylim=(0.3, 1.9))
    panels[0].set_ylabel("likelihood ratio after an update")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS / "pair_ratio.png", dpi=110)


def kl_table(seeds: Sequence[int]) -> list[str]:
    """Returns how much farther the pair moves than the action, by sigma."""
    lines = ["| sigma | KL of the pair / KL of the action | smallest | largest |", "|---:|---:|---:|---:|"]
    for sigma in SIGMAS:
        ratios = []
        for seed in seeds:
            pair, action = divergences(*small_update(sigma, seed, size=0.005))
            ratios.append(pair / action)
        lines.append(f"| {sigma} | {statistics.median(ratios):.1f} | {min(ratios):.1f} | {max(ratios):.1f} |")
    return lines


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", nargs="+", type=int, default=list(range(8)))
    options = arguments.parse_args()
    torch.set_num_threads(1)
    draw_pair_map()
    draw_pair_ratio()
    draw_trajectories()
    lines = [
        "# The pair's KL and the action's",
        "",
        f"How far the pair (action, memory) moves in KL for each unit that the action alone moves, by sigma: M = "
        f"{NUM_STEPS}, actions of one number with two modes, a small random change of all weights, in float64, the "
        f"memory integrated out by quadrature; median of {len(options.seeds)} policies.",
        "",
        *kl_table(options.seeds),
    ]
    save(RESULTS / "pair_kl.md", [*lines, *origin()])


if __name__ == "__main__":
    main()
