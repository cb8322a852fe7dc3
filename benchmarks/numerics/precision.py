# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers how exact the inversion is in floating point, what a float64 state costs, and what memory gradients take.

    python -m benchmarks.numerics.precision    # about five minutes

It writes ``precision.md`` to ``benchmarks/results``.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import torch
from tensordict import TensorDict
from torch import nn
from torchrl.modules import MLP, ValueOperator

from benchmarks._lib.origin import RESULTS, origin
from benchmarks._lib.report import parser, save
from benchmarks._lib.timing import CLOCKS, medians, peak_megabytes
from torchrl_genpo import GenPOLoss, ReversibleFlowActor, ReversibleSolver, VelocityMLP
from torchrl_genpo.flow import ConditionedVelocity

HUMANOID = (87, 21, (400, 200, 100))
SAMPLES = 8192
STEPS = (5, 10, 20, 40)
SIGMAS = (0.5, 0.75, 0.95, 1.0)


def make_velocity() -> VelocityMLP:
    """Returns a velocity of Humanoid size, with an output of order one, as a trained policy has."""
    torch.manual_seed(0)
    velocity = VelocityMLP(*HUMANOID)
    nn.init.orthogonal_(velocity.trunk[-1].weight, 1.0)
    return velocity


@torch.no_grad()
def inversion_error(velocity: VelocityMLP, solver: ReversibleSolver, dtype: torch.dtype) -> float:
    """Returns the largest error of the noise recovered by a float32 network and a state in ``dtype``."""
    d = velocity.action_dim
    conditioned = ConditionedVelocity(velocity, velocity.condition(torch.randn(4096, HUMANOID[0])), torch.float32)
    x, memory = torch.randn(4096, d, dtype=dtype), torch.randn(4096, d, dtype=dtype)
    with mock.patch.object(ReversibleSolver, "state_dtype", lambda self, _: dtype):  # measure what it would choose from
        recovered = solver.invert(conditioned, *solver.integrate(conditioned, x, memory))
    return max((recovered[0] - x).abs().max().item(), (recovered[1] - memory).abs().max().item())


def precision_table() -> list[str]:
    """Returns the errors by sigma, the state's dtype and the number of steps."""
    velocity = make_velocity()
    lines = [
        "| sigma | state | " + " | ".join(f"M = {n}" for n in STEPS) + " |",
        "|---:|---|" + "---:|" * len(STEPS),
    ]
    for sigma in SIGMAS:
        for dtype in (torch.float32, torch.float64):
            cells = []
            for n in STEPS:
                try:
                    solver = ReversibleSolver(n, sigma)
                except ValueError:
                    cells.append("refused")
                    continue
                chosen = solver.state_dtype(torch.float32) == dtype
                error = f"{inversion_error(velocity, solver, dtype):.0e}"
                cells.append(f"**{error}**" if chosen else error)
            lines.append(f"| {sigma} | {str(dtype).removeprefix('torch.')} | {' | '.join(cells)} |")
    return lines


def loss_step(velocity: VelocityMLP, solver: ReversibleSolver) -> Callable[[], None]:
    """Returns the work of one loss and its gradient."""
    actor = ReversibleFlowActor(velocity, solver=solver)
    critic = ValueOperator(MLP(in_features=HUMANOID[0], out_features=1, num_cells=list(HUMANOID[2])))
    loss = GenPOLoss(actor, critic)
    with torch.no_grad():
        data = actor(TensorDict(observation=torch.randn(SAMPLES, HUMANOID[0]), batch_size=[SAMPLES]))
    data["advantage"], data["value_target"] = torch.randn(2, SAMPLES, 1)

    def work() -> None:
        loss.zero_grad(set_to_none=True)
        out = loss(data)
        (out["loss_objective"] + out["loss_critic"]).backward()

    return work


def float64_cost(repetitions: int) -> str:
    """Says what the loss costs with the pair carried in float64, over the loss with float32 and the same solver."""
    velocity, works = make_velocity(), {}
    for name in ("float32", "float64"):
        solver = ReversibleSolver(5, 0.75)
        dtype = getattr(torch, name)
        solver.state_dtype = lambda _, dtype=dtype: dtype  # type: ignore[method-assign]
        works[name] = loss_step(velocity, solver)
    seconds = medians(works, repetitions, CLOCKS["cpu"])
    return (
        f"A float64 state costs {100 * (seconds['float64'] / seconds['float32'] - 1):.1f} % of the loss at Humanoid "
        f"size (forward and backward, {SAMPLES} samples, M = 5: {1e3 * seconds['float32']:.0f} ms and "
        f"{1e3 * seconds['float64']:.0f} ms); aim: under 10 %."
    )


def memory_table(repetitions: int) -> list[str]:
    """Returns the peak of memory and the time of each way to make gradients."""
    lines = ["| gradient | M | peak, MB | to M = 1 | time to stored |", "|---|---:|---:|---:|---:|"]
    for gradient in ("stored", "reversible"):
        base = peak_megabytes(gradient_step(gradient, 1))
        for num_steps in (1, 5, 20):
            peak = peak_megabytes(gradient_step(gradient, num_steps))
            ratio = 1.0
            if gradient != "stored":
                works = {kind: gradient_step(kind, num_steps) for kind in ("stored", gradient)}
                seconds = medians(works, repetitions, CLOCKS["cpu"])
                ratio = seconds[gradient] / seconds["stored"]
            lines.append(f"| {gradient} | {num_steps} | {peak:.0f} | {peak / base:.2f} | {ratio:.2f} |")
    return lines


def gradient_step(gradient: str, num_steps: int) -> Callable[[], None]:
    """Returns the work of the log density of a batch and its gradient."""
    actor = ReversibleFlowActor(make_velocity(), solver=ReversibleSolver(num_steps, 0.75, gradient=gradient))
    with torch.no_grad():
        data = actor(TensorDict(observation=torch.randn(SAMPLES, HUMANOID[0]), batch_size=[SAMPLES]))

    def work() -> None:
        actor.zero_grad(set_to_none=True)
        actor.log_prob(data).mean().backward()

    return work


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repetitions", type=int, default=11)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Precision and memory of the inversion",
        "",
        "Largest error of the recovered noise, 4096 samples of Humanoid size (d = 21), the network in float32 and the "
        "state in the dtype named. Bold: the dtype that the solver chooses for float32 data.",
        "",
        *precision_table(),
        "",
        "## What a float64 state costs",
        "",
        float64_cost(options.repetitions),
        "",
        "## Memory of the gradient",
        "",
        f"Most bytes of live tensors while the log-density of {SAMPLES} samples is differentiated (Humanoid size); "
        "aim: reversible at M = 20 at most 1.3 times that at M = 1. Time: forward and backward, to the stored gradient "
        "with as many steps.",
        "",
        *memory_table(options.repetitions),
    ]
    save(RESULTS / "precision.md", [*lines, *origin()])


if __name__ == "__main__":
    main()
