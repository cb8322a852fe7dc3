# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers which setting of a method learns best, from the same number of runs for each method.

    python -m benchmarks.learning.tuning --methods gaussian reversible_flow   # 66 runs of about a minute for each
    python -m benchmarks.learning.tuning --report

``PROTOCOL.md`` says what is run and how a setting is chosen. The base of the Gaussian must be finished first, because
scores are relative to it. Finished runs are lines of ``tuning.jsonl`` in ``benchmarks/results`` and are not run again;
``tuning.md`` lies beside it.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks._lib.origin import RESULTS
from benchmarks._lib.report import origins, parser, save
from benchmarks._lib.runs import Run, cost, execute_all, last, read_results

TASKS = ("half_cheetah", "hopper", "walker2d")
SEEDS = (101, 102, 103)
FRAMES = 200_000
KEPT = 4
"""The number of settings that are run on every seed."""
BASE, COMBINED = "base", "combined"
STD = ("policy.initial_std=0.35", "policy.initial_std=0.7")
FIRST_NOISE = {
    "gaussian": STD,
    "reversible_flow": STD,
    "genpo": STD,
    "fpo": ("policy.options.perturbation=0", "policy.options.perturbation=0.1"),
    "policyflow": ("policy.options.initial_scale=0.25", "policy.options.initial_scale=0.5"),
}
"""The two other values of a method's noise at first."""
CRITIC = ("optim.critic_lr=1e-4", "optim.critic_lr=1e-3")
SHARED = {"reversible_flow": ("optim.head_lr=3e-4",)}
"""What the shared setting says of a method whose default is another: the flow's head has the rate of the rest."""
OWN_RATE = {
    "gaussian": ("optim.noise_lr=1e-4", "optim.noise_lr=1e-3"),
    "reversible_flow": ("optim.head_lr=1e-4", "optim.head_lr=3e-5"),
    "genpo": CRITIC,
    "fpo": CRITIC,
    "policyflow": CRITIC,
}
"""Two values of the rate of one part: a Gaussian's deviation, the head of our flow, the critic of others."""
AXES = (
    ("optim.target_kl=0.01", "optim.target_kl=0.06"),
    ("loss.clip_epsilon=0.1", "loss.clip_epsilon=0.3"),
    ("policy.activation=tanh", "policy.activation=relu"),
)
"""The two other values of what every method has."""
NOISES = ("zero", "random")
Settings = dict[str, tuple[str, ...]]


def axes(method: str) -> tuple[tuple[str, str], ...]:
    """Returns the pairs of values that are tried in place of the shared ones."""
    return (*AXES, FIRST_NOISE[method], OWN_RATE[method])


def first_settings(method: str) -> Settings:
    """Returns the shared setting and those that differ from it in one value.

    Names become folders, in which Hydra's command line takes no ``=``.
    """
    options, shared = [option for axis in axes(method) for option in axis], SHARED.get(method, ())
    named = {re.sub(r".*\.(?=[a-z])", "", option).replace("=", "_"): option for option in options}
    return {BASE: shared, **{setting: merged(*shared, option) for setting, option in named.items()}}


def merged(*options: str) -> tuple[str, ...]:
    """Returns the options, of those of one name the last."""
    return tuple({option.partition("=")[0]: option for option in options}.values())


class Tuning:
    """The finished runs, and what follows from them: scores, what is run next, the setting that is chosen."""

    def __init__(self) -> None:
        self.runs = read_results("tuning")
        found = {(run.policy, run.task, run.seed): record for run, record in self.runs.items()}
        self.ends = {key: both_ends(record) for key, record in found.items()}

    def score(self, method: str, setting: str, seeds: Sequence[int]) -> float:
        """Returns the mean over tasks, seeds and both evaluations, 1 where the Gaussian's base ends on these seeds."""

        def end(policy: str, task: str) -> float:
            return statistics.fmean(value for seed in seeds for value in self.ends[policy, task, seed])

        return statistics.fmean(end(name(method, setting), task) / end(name("gaussian", BASE), task) for task in TASKS)

    def is_finished(self, method: str, setting: str, seeds: Sequence[int]) -> bool:
        """Returns whether a setting has been run on these seeds of every task."""
        return all((name(method, setting), task, seed) in self.ends for task in TASKS for seed in seeds)

    def ranked(self, method: str, settings: Settings, seeds: Sequence[int]) -> list[str]:
        """Returns the names of the settings that are finished, the best first."""
        there = [setting for setting in settings if self.is_finished(method, setting, seeds)]
        return sorted(there, key=lambda setting: -self.score(method, setting, seeds))

    def kept(self, method: str) -> list[str]:
        """Returns the settings that the first seed's runs keep; the shared one is always among them."""
        others = [setting for setting in self.ranked(method, first_settings(method), SEEDS[:1]) if setting != BASE]
        return [BASE, *others[: KEPT - 1]]

    def settings(self, method: str) -> Settings:
        """Returns all settings of a method: the first ones, and the best value of each axis together."""
        first = first_settings(method)
        order = self.ranked(method, first, SEEDS[:1])
        best: list[str] = []
        for axis in axes(method):
            setting = next((setting for setting in order if setting == BASE or {*axis} & {*first[setting]}), BASE)
            best += {*axis} & {*first[setting]}
        return {**first, COMBINED: merged(*first[BASE], *best)}

    def chosen(self, method: str) -> tuple[str, tuple[str, ...]] | None:
        """Returns the best setting of all seeds and its options, ``None`` while there are runs to come."""
        settings = self.settings(method)
        ranked = self.ranked(method, settings, SEEDS)
        is_done = {*self.kept(method), COMBINED} <= set(ranked)
        return (ranked[0], settings[ranked[0]]) if is_done else None


def both_ends(record: dict[str, Any]) -> list[float]:
    """Returns the last returns of a run with zero and with random noise."""
    return [last(record, f"eval/{noise}_noise/return") for noise in NOISES]


def name(method: str, setting: str) -> str:
    """Returns the name of a policy in the results."""
    return f"{method}-{setting}"


def tune(method: str, workers: int) -> None:
    """Runs what is not finished of a method's three stages."""

    def execute(settings: Settings, seeds: Sequence[int]) -> None:
        execute_all(
            [
                Run("tuning", task, name(method, setting), (f"policy={method}", *options), seed, FRAMES)
                for seed in seeds
                for setting, options in settings.items()
                for task in TASKS
            ],
            workers,
        )

    execute(first_settings(method), SEEDS[:1])
    tuning = Tuning()
    settings = tuning.settings(method)
    execute({setting: settings[setting] for setting in tuning.kept(method)}, SEEDS[1:])
    execute({COMBINED: settings[COMBINED]}, SEEDS)


def report() -> None:
    """Writes the scores and the chosen settings."""
    tuning = Tuning()
    lines = [
        "# The settings of each method",
        "",
        f"{', '.join(TASKS)}, {FRAMES:,} frames. A score is the mean over tasks, seeds and both evaluations (zero and "
        "random noise) of the return as a ratio to that of the Gaussian's base on the same seeds. "
        "benchmarks/learning/PROTOCOL.md says how a setting is chosen.",
        "",
        f"| method | setting | seed {SEEDS[0]} | seeds {SEEDS[0]} to {SEEDS[-1]} |",
        "|---|---|---:|---:|",
    ]
    choices = []
    for method in FIRST_NOISE:
        settings = tuning.settings(method)
        chosen = tuning.chosen(method)
        for setting in tuning.ranked(method, settings, SEEDS[:1]):
            is_chosen = chosen is not None and chosen[0] == setting
            cells = [
                f"{tuning.score(method, setting, seeds):.2f}" if tuning.is_finished(method, setting, seeds) else ""
                for seeds in (SEEDS[:1], SEEDS)
            ]
            text = f"**{setting}**" if is_chosen else setting
            lines.append(f"| {method} | {text} | {' | '.join(cells)} |")
        if chosen is not None:
            took = cost(record for run, record in tuning.runs.items() if run.policy.startswith(name(method, "")))
            choices.append(f"- {method}: `{' '.join(chosen[1]) or 'the shared setting'}`; {took}")
    save(
        RESULTS / "tuning.md",
        [*lines, "", "Chosen, and what the runs took:", "", *choices, *origins([*tuning.runs.values()])],
    )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--methods", nargs="+", default=list(FIRST_NOISE), choices=FIRST_NOISE)
    arguments.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    arguments.add_argument("--report", action="store_true", help="only write the report of the finished runs")
    options: Any = arguments.parse_args()
    if not options.report:
        if options.methods[0] != "gaussian" and not Tuning().is_finished("gaussian", BASE, SEEDS):
            sys.exit("Scores are relative to the Gaussian's base, which is not finished: --methods gaussian first.")
        for method in options.methods:
            tune(method, options.workers)
    report()


if __name__ == "__main__":
    main()
