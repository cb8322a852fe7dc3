# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers how faithfully the reversible rule samples a pre-trained flow by each start, at equal velocity evaluations.

    python -m benchmarks.numerics.fidelity    # about three minutes

The flow, its data (eight modes on a circle) and the energy distance are those of
``examples/pretrain_then_finetune.py``, pre-trained once a seed. It writes ``fidelity.md`` and ``fidelity.png`` to
``benchmarks/results``.
"""

from __future__ import annotations

import sys

import torch
from scipy import stats

from benchmarks._lib.origin import RESULTS, ROOT, origin
from benchmarks._lib.report import parser, pyplot, save
from torchrl_genpo import ConsistentStart, IndependentStart, ReversibleSolver, VelocityMLP

sys.path.insert(0, str(ROOT / "examples"))
from pretrain_then_finetune import energy_distance, euler, make_velocity, mixture, pretrain, sample

STEPS = (5, 10, 20)
SIZE = 5_000
"""The number of samples of every setting."""
EULER = "Euler (no exact density)"
SETTINGS: dict[str, tuple[float, float | None]] = {
    "sigma 0.75, paper's start": (0.75, None),
    **{f"sigma 0.75, consistent, tau {tau}": (0.75, tau) for tau in (0.03, 0.1, 0.3, 1.0)},
    "midpoint (sigma 1), consistent, tau 0.1": (1.0, 0.1),
}
"""The sigma of the solver and the tau of the consistent start, ``None`` for the paper's start."""
NAMES = (EULER, *SETTINGS)
Distances = dict[tuple[str, int], float]


def measure(seed: int) -> Distances:
    """Returns the energy distance to the data by setting and number of steps."""
    torch.manual_seed(seed)
    velocity: VelocityMLP = make_velocity()
    pretrain(velocity)
    data = mixture(SIZE)
    results = {("new data", num_steps): energy_distance(mixture(SIZE), data) for num_steps in STEPS}
    for num_steps in STEPS:
        results[EULER, num_steps] = energy_distance(euler(velocity, SIZE, num_steps), data)
        for name, (sigma, tau) in SETTINGS.items():
            start = IndependentStart() if tau is None else ConsistentStart(tau)
            drawn = sample(velocity, ReversibleSolver(num_steps, sigma), start, SIZE)
            results[name, num_steps] = energy_distance(drawn, data)
    return results


def mean_and_interval(values: list[float]) -> tuple[float, float]:
    """Returns the mean and the half width of its 95 % confidence interval (Student's t)."""
    samples = torch.tensor(values, dtype=torch.float64)
    half = stats.t.ppf(0.975, len(values) - 1) * samples.std().item() / len(values) ** 0.5
    return samples.mean().item(), half


def table(results: list[Distances]) -> list[str]:
    """Returns the table of all settings."""
    lines = [
        "| setting | " + " | ".join(f"M = {n} | Euler / it" for n in STEPS) + " |",
        "|---|" + "---:|---:|" * len(STEPS),
    ]
    for name in ("new data", *NAMES):
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


def draw_chart(results: list[Distances]) -> None:
    """Draws a bar for each setting and number of steps."""
    figure, axes = pyplot().subplots(figsize=(8, 3.4), layout="constrained")
    for offset, n in enumerate(STEPS):
        bars = [mean_and_interval([1e4 * run[name, n] for run in results]) for name in NAMES]
        positions = [index + 0.26 * (offset - 1) for index in range(len(NAMES))]
        means, halves = zip(*bars, strict=True)
        means = [max(mean, 0.3) for mean in means]  # the unbiased estimate may be below zero
        axes.barh(positions, means, 0.24, xerr=halves, label=f"M = {n}", color=f"C{offset}")
    seeds = len(results)
    axes.set(xscale="log", xlim=(0.3, None), xlabel=f"energy distance, x 1e-4 (mean and 95 % of {seeds} seeds)")
    axes.set_yticks(range(len(NAMES)), NAMES)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    figure.savefig(RESULTS / "fidelity.png", dpi=130)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    options = arguments.parse_args()
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
    ]
    save(RESULTS / "fidelity.md", [*lines, *origin()])
    draw_chart(results)


if __name__ == "__main__":
    main()
