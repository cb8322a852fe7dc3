# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers whether a flow finds hidden goals by fewer attempts than any Gaussian, and than the methods of others.

    python -m benchmarks.learning.hidden_goals --policies flow gaussian gaussian_covariance    # 30 runs of two minutes
    python -m benchmarks.learning.hidden_goals --policies genpo fpo policyflow --seeds 1 2 3
    python -m benchmarks.learning.hidden_goals --report

The best policy of these tasks (``torchrl_genpo/envs/hidden_goals.py``) is a mixture of four actions. All methods have
the shared setting of ``PROTOCOL.md``, untuned. The report also has the best return that any Gaussian can reach, found
by search, so that nothing hangs on how a Gaussian is trained. Finished runs are lines of ``hidden_goals.jsonl`` in
``benchmarks/results`` and are not run again; ``hidden_goals.md`` and ``hidden_goals.png`` lie beside it.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import differential_evolution

from benchmarks._lib.origin import RESULTS
from benchmarks._lib.report import origins, parser, save, spread
from benchmarks._lib.runs import by_task_and_policy, draw, execute_asked, last
from torchrl_genpo.envs.hidden_goals import ATTEMPTS, NUM_GOALS, HiddenGoalEnv, HiddenPointEnv, HiddenReachEnv

TASKS = {
    "hidden_point": (HiddenPointEnv, np.array([1.0, 0.0])),
    "hidden_reach": (HiddenReachEnv, np.array([0.0, 0.0])),
}
"""The environment of each task, and what it observes in the middle of its episodes."""
GRID, DRAWS = 201, 4000  # of actions on each axis, and of the search's Gaussians
POLICIES = {
    "flow": ("flow", ()),
    "flow_one_rate": ("flow, one rate", ("optim.head_lr=3e-4",)),
    "gaussian": ("Gaussian", ("policy=gaussian",)),
    "gaussian_covariance": ("Gaussian with a covariance", ("policy=gaussian", "policy.scale=covariance")),
    "gaussian_state_dependent": (
        "Gaussian whose deviation depends on the state",
        ("policy=gaussian", "policy.scale=state_dependent"),
    ),
    "gaussian_entropy": ("Gaussian with a bonus on its entropy", ("policy=gaussian", "loss.entropy_coeff=0.01")),
    "genpo": ("GenPO", ("policy=genpo",)),
    "fpo": ("FPO++", ("policy=fpo",)),
    "policyflow": ("PolicyFlow", ("policy=policyflow",)),
}
"""The label of each policy and its options of the entry script."""


def mean_return(hit: np.ndarray) -> float:
    """Computes the mean return of a policy that hits each goal with a probability ``[goals]`` in an attempt."""
    return float(-np.mean([((1 - hit) ** attempt) for attempt in range(1, ATTEMPTS + 1)], axis=1).sum())


def best_gaussian(env: HiddenGoalEnv, observed: np.ndarray) -> float:
    """Searches the mean and covariance whose Gaussian has the best return, with actions clipped to their bounds."""
    axis = np.linspace(-1, 1, GRID)
    ends = np.array([[env.attempt(observed, np.array([x, y])) for y in axis] for x in axis])
    hits = np.linalg.norm(ends[:, :, None] - env.goals(observed), axis=-1) < env.THRESHOLD
    noise = np.random.default_rng(0).standard_normal((DRAWS, 2))

    def cost(values: np.ndarray) -> float:
        mean, (log_first, log_second, slope) = values[:2], values[2:]
        first, second = np.exp([log_first, log_second])
        actions = mean + noise @ np.array([[first, slope * second], [0.0, second]])
        cells = np.rint((np.clip(actions, -1, 1) + 1) * (GRID - 1) / 2).astype(int)
        return -mean_return(hits[cells[:, 0], cells[:, 1]].mean(0))

    bounds = [(-1, 1), (-1, 1), (-4, 1.5), (-4, 1.5), (-10, 10)]
    return -differential_evolution(cost, bounds, seed=0, popsize=30, maxiter=200).fun


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    records = execute_asked("hidden_goals", POLICIES, arguments, [*TASKS], [1, 2, 3, 4, 5], frames=300_000)
    mixture = mean_return(np.full(NUM_GOALS, 1 / NUM_GOALS))
    one = mean_return(np.eye(NUM_GOALS)[0])
    bounds = ", ".join(f"{best_gaussian(make(), middle):.1f} in {task}" for task, (make, middle) in TASKS.items())
    lines = [
        "# A hidden goal, and no memory of what was tried",
        "",
        f"Returns after {records[0]['frames']:,} frames: minus the attempts that fail, at most {ATTEMPTS}; median of "
        "the seeds (each in brackets), mean of 100 evaluation episodes with random noise, and the share of episodes "
        f"that find the goal. Trying each of the four goals as often has {mixture:.1f}, one of them alone {one:.1f}. "
        f"The best Gaussian, of any mean and covariance, has {bounds} (numerical search); a mean of 100 episodes has a "
        "standard error of up to 1.",
        "",
        "| task | policy | return | found |",
        "|---|---|---:|---:|",
    ]
    for task, policy, chosen in by_task_and_policy(records, POLICIES):
        ends = [[last(record, f"eval/random_noise/{key}") for record in chosen] for key in ("return", "success")]
        lines.append(f"| {task} | {POLICIES[policy][0]} | {spread(ends[0], 1)} | {np.median(ends[1]):.2f} |")
    options = {"unit": 1e3, "xlabel": "thousand frames", "ylabel": "training return"}
    draw(records, POLICIES, RESULTS / "hidden_goals.png", **options)
    save(RESULTS / "hidden_goals.md", [*lines, *origins(records)])


if __name__ == "__main__":
    main()
