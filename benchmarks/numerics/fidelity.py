# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""How faithfully each solver and start samples a pre-trained flow, at equal velocity evaluations.

    python benchmarks/fidelity.py    # about four minutes

The flow, its data (eight modes on a circle) and the energy distance are those of
``examples/pretrain_then_finetune.py``, pre-trained once a seed. Writes ``fidelity.md`` and ``fidelity.png`` to
``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from provenance import RESULTS, ROOT, origin
from scipy import stats
from torch import Tensor

from torchrl_genpo import ConsistentStart, IndependentStart, ReversibleSolver, VelocityMLP

sys.path.insert(0, str(ROOT / "examples"))
from pretrain_then_finetune import energy_distance, euler, make_velocity, mixture, pretrain, sample

STEPS = (5, 10, 20)
SIZE = 5_000  # samples of every setting


def reversible(make_solver: Callable[[int], ReversibleSolver], tau: float | None) -> Callable[..., Tensor]:
    def draw(velocity: VelocityMLP, size: int, num_steps: int) -> Tensor:
        solver = make_solver(num_steps)
        start = IndependentStart(num_memories=solver.num_memories) if tau is None else ConsistentStart(tau)
        return sample(velocity, solver, start, size)

    return draw


def two_step(num_steps: int) -> ReversibleSolver:
    return ReversibleSolver.two_step(0.75, num_steps)


def midpoint(num_steps: int) -> ReversibleSolver:
    return ReversibleSolver.two_step(1.0, num_steps)


def three_step(num_steps: int) -> ReversibleSolver:
    return ReversibleSolver.three_step(1.0, num_steps)


SETTINGS: dict[str, Callable[..., Tensor]] = {
    "Euler (no exact density)": euler,
    "two-step 0.75, paper's start": reversible(two_step, None),
    **{f"two-step 0.75, consistent, tau {tau}": reversible(two_step, tau) for tau in (0.03, 0.1, 0.3, 1.0)},
    "midpoint, consistent, tau 0.1": reversible(midpoint, 0.1),
    "three-step, independent": reversible(three_step, None),
    **{f"three-step, consistent, tau {tau}": reversible(three_step, tau) for tau in (0.03, 0.1, 0.3, 1.0)},
}
EULER = "Euler (no exact density)"


def measure(seed: int) -> dict[tuple[str, int], float]:
    torch.manual_seed(seed)
    velocity = make_velocity()
    pretrain(velocity)
    data = mixture(SIZE)
    results = {("new data", num_steps): energy_distance(mixture(SIZE), data) for num_steps in STEPS}
    for name, draw in SETTINGS.items():
        for num_steps in STEPS:
            results[name, num_steps] = energy_distance(draw(velocity, SIZE, num_steps), data)
    return results


def mean_and_interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval (Student's t)."""
    samples = torch.tensor(values, dtype=torch.float64)
    half = stats.t.ppf(0.975, len(values) - 1) * samples.std().item() / len(values) ** 0.5
    return samples.mean().item(), half


def table(results: list[dict[tuple[str, int], float]]) -> list[str]:
    lines = [
        "| setting | " + " | ".join(f"M = {n} | Euler / it" for n in STEPS) + " |",
        "|---|" + "---:|---:|" * len(STEPS),
    ]
    for name in ("new data", *SETTINGS):
        cells = []
        for n in STEPS:
            mean, half = mean_and_interval([run[name, n] for run in results])
            reference, _ = mean_and_interval([run[EULER, n] for run in results])
            ratio = f"{reference / mean:.1f}" if mean > half else f"over {reference / (mean + half):.1f}"
            if name in ("new data", EULER):
                ratio = ""
            cells.append(f"{1e4 * mean:.1f} ± {1e4 * half:.1f} | {ratio}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def draw_chart(results: list[dict[tuple[str, int], float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.4), layout="constrained")
    names = list(SETTINGS)
    for offset, n in enumerate(STEPS):
        bars = [mean_and_interval([1e4 * run[name, n] for run in results]) for name in names]
        positions = [index + 0.26 * (offset - 1) for index in range(len(names))]
        means, halves = zip(*bars, strict=True)
        means = [max(mean, 0.3) for mean in means]  # the unbiased estimate may be below zero
        axes.barh(positions, means, 0.24, xerr=halves, label=f"M = {n}", color=f"C{offset}")
    axes.set(xscale="log", xlim=(0.3, None), xlabel="energy distance to the data, x 1e-4 (mean and 95 % of 5 seeds)")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    figure.savefig(RESULTS / "fidelity.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(seed) for seed in options.seeds]
    lines = [
        "# Fidelity: samples of a pre-trained flow",
        "",
        f"Energy distance to the data, times 10,000; {SIZE:,} samples; mean and 95 % confidence interval of "
        f"{len(results)} seeds, each with its own pre-training; and by how much it beats Euler's rule at the same "
        'number M of velocity evaluations. "over": the distance is within the noise of the samples, and the ratio is '
        "that of its upper limit.",
        "",
        *table(results),
        *origin("python benchmarks/fidelity.py"),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fidelity.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    draw_chart(results)


if __name__ == "__main__":
    main()
