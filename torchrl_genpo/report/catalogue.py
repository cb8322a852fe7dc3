# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the columns of ``metrics.csv`` are called in a report, and in which order they are drawn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["CATALOGUE", "OWN", "Chart", "charts"]


@dataclass(frozen=True)
class Chart:
    """The chart of a column.

    Args:
        column (str): of ``metrics.csv``.
        title (str): for people.
        note (str, optional): what is measured, in a line. Defaults to ``""``.
        is_log (bool, optional): drawn on a logarithmic axis where all values are positive. Defaults to ``False``.
    """

    column: str
    title: str
    note: str = ""
    is_log: bool = False


CATALOGUE: dict[str, tuple[Chart, ...]] = {
    "Return and success": (
        Chart("eval/zero_noise/return", "Return, evaluation, zero noise", "the deterministic policy"),
        Chart("eval/random_noise/return", "Return, evaluation, random noise", "the sampled policy"),
        Chart("train/return", "Return, training", "the last episodes that ended, sampled policy"),
        Chart("train/success", "Success, training", "part of the episodes that ended in a batch"),
        Chart("eval/zero_noise/success", "Success, zero noise", "part of the evaluated episodes"),
        Chart("eval/random_noise/success", "Success, random noise", "part of the evaluated episodes"),
        Chart("eval/zero_noise/goal_entropy", "Entropy of the goals, zero noise", "nats; of those that were reached"),
        Chart("eval/random_noise/goal_entropy", "Entropy of the goals, random noise", "nats; of those reached"),
    ),
    "Optimisation": (
        Chart("train/kl", "KL", "nats; to the policy that collected, mean over an update; of a flow, the pair's"),
        Chart("train/clip_fraction", "Clip fraction", "part of the samples whose ratio was clipped"),
        Chart("train/lr", "Learning rate", "after the update", is_log=True),
        Chart("train/entropy", "Entropy", "nats; where the loss has an entropy bonus"),
        Chart("train/grad_norm", "Gradient norm", "before clipping", is_log=True),
        Chart("train/loss_objective", "Loss of the policy", "the clipped surrogate, negative"),
        Chart("train/loss_critic", "Loss of the critic", "squared error of the value", is_log=True),
    ),
    "Exactness and the pair": (
        Chart(
            "train/inversion_error",
            "Inversion error",
            "nats; largest gap between stored and recomputed log density",
            is_log=True,
        ),
        Chart("train/sigma", "Sigma", "weight of the memory, where it adapts"),
        Chart("diagnostics/kl_pair", "KL of the pair", "nats; action and memory, after the update"),
        Chart("diagnostics/kl_action", "KL of the action", "nats; of the executed action alone, estimated"),
        Chart("diagnostics/clip_fraction_pair", "Clip fraction of the pair", "after the update"),
        Chart("diagnostics/clip_fraction_action", "Clip fraction of the action", "after the update, estimated"),
        Chart("diagnostics/ess", "Effective sample size", "of the action's density, part of its memories"),
    ),
    "Time": (
        Chart("time/collect", "Collection", "seconds an update", is_log=True),
        Chart("time/update", "Update", "seconds an update", is_log=True),
        Chart("collect/staleness", "Staleness", "updates between a step's policy and the learner's, on average"),
        Chart("collect/max_staleness", "Largest staleness", "of the oldest step of a batch"),
        Chart("collect/dropped", "Dropped", "steps that were too old to train on"),
    ),
}
"""Sections of a report, in order."""

OWN = "The task's own statistics"
"""The section of what is not in the catalogue."""

AXES = ("frames", "time/seconds")


def charts(columns: Iterable[str]) -> dict[str, list[Chart]]:
    """Sorts columns into the sections of a report; what the catalogue does not know comes last.

    Args:
        columns (iterable of str): those that hold values.

    Example:
        >>> {name: [chart.title for chart in section] for name, section in charts(["task/turns", "train/kl"]).items()}
        {'Optimisation': ['KL'], "The task's own statistics": ['turns, training']}
    """
    present = [column for column in dict.fromkeys(columns) if column not in AXES]
    known = {chart.column for section in CATALOGUE.values() for chart in section}
    sections = {name: [chart for chart in section if chart.column in present] for name, section in CATALOGUE.items()}
    sections[OWN] = [Chart(column, _title(column)) for column in sorted(present, key=_key) if column not in known]
    return {name: section for name, section in sections.items() if section}


def _title(column: str) -> str:
    for prefix, where in (
        ("eval/zero_noise/", "zero noise"),
        ("eval/random_noise/", "random noise"),
        ("task/", "training"),
    ):
        if column.startswith(prefix):
            return f"{column.removeprefix(prefix)}, {where}"
    return column


def _key(column: str) -> tuple[bool, str]:
    """Evaluations first, each statistic's two kinds of noise beside each other."""
    return not column.startswith("eval/"), column.split("_noise/")[-1]
