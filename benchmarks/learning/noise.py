# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers what training has made of a policy's noise: how wide it is, how correlated, how far from a normal law.

    python -m benchmarks.learning.noise    # seconds for each trained policy

It measures every finished run of ``curves.py`` and ``hidden_goals.py`` whose folder is still in ``outputs``, and adds a
line for it to ``noise.jsonl`` in ``benchmarks/results``; ``noise.md`` lies beside it. The runs that are there were made
by these two, with ``--frames 300000``.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from benchmarks._lib.in_process import latest_checkpoint, load_policy
from benchmarks._lib.origin import RESULTS
from benchmarks._lib.report import append_line, origins, parser, read_lines, save, spread
from benchmarks._lib.runs import Run, read_results

STUDIES = ("learning", "hidden_goals")
LABELS = {"gaussian": "Gaussian", "reversible_flow": "flow", "flow": "flow"}
NUM_ENVS, STEPS, EVERY, DRAWS = 4, 100, 4, 512
COLUMNS = ("deviation", "correlation", "skewness", "excess kurtosis", "change over states")


def shape_of(actions: torch.Tensor, half_width: torch.Tensor) -> dict[str, float]:
    """Returns the measures of actions; roots of mean squares are less those of as many normal draws.

    Args:
        actions (Tensor): ``[states, draws, d]``, in the units of the task, not clipped.
        half_width (Tensor): half of the range of each number of an action, ``[d]``.
    """
    count, size = actions.shape[1:]
    centred = actions.double() - actions.double().mean(1, keepdim=True)
    covariance = centred.mT @ centred / (count - 1)
    deviation = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    z = centred / deviation.unsqueeze(1)
    correlation = (covariance / (deviation.unsqueeze(-1) * deviation.unsqueeze(-2)))[:, ~torch.eye(size, dtype=bool)]

    def root(square: torch.Tensor, of_normal: float) -> float:
        return (square.mean() - of_normal).clamp_min(0).sqrt().item()

    relative = deviation / deviation.mean(0) - 1
    return {
        "deviation": (deviation / half_width).mean().item(),
        "correlation": root(correlation.square(), 1 / count) if size > 1 else float("nan"),
        "skewness": root((z**3).mean(1).square(), 6 / count),
        "excess kurtosis": ((z**4).mean() - 3).item(),
        "change over states": root(relative.square(), 1 / (2 * count)),
    }


@torch.no_grad()
def measure(run: Run) -> dict[str, float]:
    """Returns the measures of the last policy of a run, at states that it visits with zero noise."""
    torch.manual_seed(0)
    policy, env, _ = load_policy(latest_checkpoint(run.folder), NUM_ENVS)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        seen = env.rollout(STEPS, policy, break_when_any_done=False)["observation"].flatten(0, 1)[::EVERY]
    space = env.action_spec.space
    data = TensorDict(observation=seen, batch_size=[len(seen)])
    with set_exploration_type(ExplorationType.RANDOM):
        draws = torch.stack([policy(data.clone())["action"] for _ in range(DRAWS)], 1)
    env.close()
    return shape_of(draws, ((space.high - space.low) / 2)[0])


def main() -> None:
    parser(__doc__).parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "noise.jsonl"
    for run in (run for study in STUDIES for run in read_results(study) if run.policy in LABELS):
        key: dict[str, Any] = {"study": run.name, "task": run.task, "policy": run.policy, "seed": run.seed}
        key |= {"frames": run.frames}
        if not run.folder.exists() or any(key.items() <= line.items() for line in read_lines(path)):
            continue
        values = {name: round(value, 4) for name, value in measure(run).items()}
        append_line(path, key | {"values": values} | json.loads((run.folder / "origin.json").read_text()))
        print(f"{run.task}, {run.policy}, seed {run.seed}: done", flush=True)
    found = read_lines(path)
    if not found:
        raise SystemExit("There is no folder of a finished run: benchmarks.learning.hidden_goals first.")
    lines = [
        "# The noise of trained policies",
        "",
        f"At the end of training, {DRAWS} actions in each of {NUM_ENVS * STEPS // EVERY} states that the policy visits "
        "with zero noise; median of the seeds (each in brackets). Deviation: of an action, half of its range being 1, "
        "before the environment clips it. Correlation: of two numbers of an action; skewness; change over states: of "
        "the deviation, relative to its mean; each a root of mean squares, less that of as many normal draws. A "
        "Gaussian with its own deviation for each number has 0 but for the first.",
        "",
        f"| task | policy | frames | {' | '.join(COLUMNS)} |",
        f"|---|---|---:|{'---:|' * len(COLUMNS)}",
    ]
    for task, frames, label in sorted({(line["task"], line["frames"], LABELS[line["policy"]]) for line in found}):
        key = (task, frames, label)
        chosen = [line["values"] for line in found if (line["task"], line["frames"], LABELS[line["policy"]]) == key]
        cells = [spread([values[name] for values in chosen], 2) for name in COLUMNS]
        lines.append(f"| {task} | {label} | {frames:,} | {' | '.join(cells)} |")
    save(RESULTS / "noise.md", [*lines, *origins(found)])


if __name__ == "__main__":
    main()
