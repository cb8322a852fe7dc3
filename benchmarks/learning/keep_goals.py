# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers whether fine-tuning keeps the goals that were pre-trained, of a flow and of a Gaussian.

    python -m benchmarks.learning.keep_goals                 # five seeds, about five minutes each
    python -m benchmarks.learning.keep_goals --report

It is ``examples/finetune_with_reference.py`` with several seeds, and with a Gaussian that is trained on the same
demonstrations by likelihood. Finished seeds are lines of ``keep_goals.jsonl`` in ``benchmarks/results`` and are not run
again; ``keep_goals.md`` lies beside it.
"""

from __future__ import annotations

import math
import statistics
import sys
from copy import deepcopy
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential
from torch import nn
from torch.distributions import kl_divergence
from torchrl.envs import EnvBase
from torchrl.objectives import ClipPPOLoss

from benchmarks._lib.origin import RESULTS, ROOT, record_origin
from benchmarks._lib.report import append_line, origins, parser, read_lines, save, spread
from torchrl_genpo.envs import make_env
from torchrl_genpo.training.encoders import make_mlp
from torchrl_genpo.training.policy import gaussian_steps

sys.path.append(str(ROOT / "examples"))
import finetune_with_reference as example

SEEDS = (1, 2, 3, 4, 5)
PRETRAIN_ITERATIONS = 3000
FRAMES = 48 * example.BATCH
REFERENCE_COEFF = {"freely": 0.0, "near itself": 0.3}
"""The weight of the divergence from the pre-trained Gaussian."""


class NearGaussianLoss(ClipPPOLoss):
    """Stock PPO with the divergence from a frozen Gaussian policy, in closed form."""

    def __init__(self, policy: Any, critic: Any, reference_coeff: float) -> None:
        super().__init__(policy, critic, entropy_bonus=False, normalize_advantage=True)
        self.reference_coeff = reference_coeff
        self.reference = deepcopy(policy).requires_grad_(False)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        td_out = super().forward(tensordict)
        seen = tensordict.select("observation")
        with self.actor_network_params.to_module(self.actor_network):
            divergence = kl_divergence(self.actor_network.get_dist(seen), self.reference.get_dist(seen)).mean()
        return td_out.set("loss_reference", self.reference_coeff * divergence)


def pretrained_gaussian(data: TensorDict) -> ProbabilisticTensorDictSequential:
    """Trains a Gaussian policy on the demonstrations by likelihood."""
    steps = gaussian_steps(make_mlp(2, (128, 128, 2), nn.SiLU, gain=0.01), 2)
    policy = ProbabilisticTensorDictSequential(*steps)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    for _ in range(PRETRAIN_ITERATIONS):
        optimizer.zero_grad()
        (-policy.log_prob(data[torch.randint(len(data), (512,))]).mean()).backward()
        optimizer.step()
    return policy


def measured(env: EnvBase, policy: nn.Module, seed: int) -> dict[str, float]:
    """Returns what :func:`examples.finetune_with_reference.measure` does, by name."""
    return dict(zip(("return", "success", "entropy"), example.measure(env, policy, seed), strict=True))


def run(seed: int) -> dict[str, dict[str, float]]:
    """Returns the results of every policy and way for one seed."""
    torch.manual_seed(seed)
    env = make_env("multi_goal", num_envs=32, seed=seed)
    data = example.demonstrate(500)
    velocity = example.pretrain(data, PRETRAIN_ITERATIONS)
    results = {"flow, pre-trained": measured(env, example.make_actor(velocity), seed)}
    for way in example.REFERENCE_COEFF:
        results[f"flow, {way}"] = measured(env, example.finetune(env, velocity, way, FRAMES), seed)
    gaussian = pretrained_gaussian(data)
    results["Gaussian, pre-trained"] = measured(env, gaussian, seed)
    for way, coeff in REFERENCE_COEFF.items():
        policy, critic = deepcopy(gaussian), example.make_critic()
        example.train(env, policy, critic, NearGaussianLoss(policy, critic, coeff), FRAMES, lr=1e-4)
        results[f"Gaussian, {way}"] = measured(env, policy, seed)
    return results


def report(records: list[dict[str, Any]]) -> None:
    """Writes the table."""
    lines = [
        "# Goals that are kept",
        "",
        f"MultiGoal: policies of 500 demonstrations that reach four goals alike, then {FRAMES:,} frames of PPO. With "
        f"random noise, {len(records)} seeds: median return, and the entropy in nats of the goals that are reached, "
        f"{math.log(4):.2f} of all four alike and 0 of one (each seed). The divergence of the flow's pairs and of the "
        "Gaussian's actions has the weights of the script.",
        "",
        "| policy | return | entropy of the goals | success |",
        "|---|---:|---:|---:|",
    ]
    for name in records[0]["results"]:
        values = [record["results"][name] for record in records]
        cells = [
            spread([value["return"] for value in values], 0),
            spread([value["entropy"] for value in values], 2),
            f"{statistics.median(value['success'] for value in values):.2f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    save(RESULTS / "keep_goals.md", [*lines, *origins(records)])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments.add_argument("--report", action="store_true", help="only write the report of the finished runs")
    options: Any = arguments.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "keep_goals.jsonl"
    finished = {record["seed"] for record in read_lines(path)}
    if not options.report:
        for seed in (seed for seed in options.seeds if seed not in finished):
            append_line(path, {"seed": seed, **record_origin(), "results": run(seed)})
    if not (records := read_lines(path)):
        sys.exit("No run is finished; start some without --report.")
    report(sorted(records, key=lambda record: record["seed"]))


if __name__ == "__main__":
    main()
