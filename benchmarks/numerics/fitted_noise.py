# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers how much of a policy's update only fits the noise of its batch: PPO on advantages that are pure noise.

    python -m benchmarks.numerics.fitted_noise        # two minutes

Nothing can be learned from such advantages, so whatever an update gains on its own batch it has fitted by chance. A
rate that follows the KL divergence pays for that: the more a policy fits, the smaller its rate. Writes
``fitted_noise.md`` to ``benchmarks/results``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torchrl.modules import MLP

from benchmarks._lib.origin import RESULTS, origin
from benchmarks._lib.report import parser, save
from torchrl_genpo import ConsistentStart, ReversibleFlowActor, SteeredStart, VelocityMLP
from torchrl_genpo.modules.sequence import dist_of
from torchrl_genpo.training.build import parameter_groups
from torchrl_genpo.training.policy import gaussian_steps, learned_scale

SAMPLES, MINI_BATCH, EPOCHS, CLIP, STD = 2048, 512, 10, 0.2, 0.5
RATE, LOWER = 3e-4, 1e-4
"""The rate of Adam, and that of a flow's head."""


@dataclass(frozen=True)
class Size:
    """The sizes of observation, action and network of a task."""

    name: str
    observation: int
    action: int
    cells: tuple[int, ...]


SIZES = (Size("half_cheetah", 17, 6, (64, 64)), Size("chunks of two arms", 32, 56, (256, 256)))


def gaussian(size: Size) -> tuple[nn.Module, list[nn.Parameter]]:
    """Returns TorchRL's stock policy."""
    network = MLP(size.observation, size.action, num_cells=list(size.cells), activation_class=nn.SiLU)
    return ProbabilisticTensorDictSequential(*gaussian_steps(network, size.action, initial_std=STD)), []


def with_head(size: Size) -> tuple[nn.Module, list[nn.Parameter]]:
    """Returns the default flow: a Gaussian whose noise is bent by a head; and the parameters of the head."""
    width = size.cells[-1]
    trunk = MLP(
        size.observation, width, num_cells=list(size.cells[:-1]), activation_class=nn.SiLU, activate_last_layer=True
    )
    velocity = VelocityMLP(width, size.action, (64,), nn.SiLU)
    bent = nn.Sequential(nn.Linear(width, size.action), learned_scale(size.action, STD, 0.0))
    actor = ReversibleFlowActor(velocity, gaussian=bent, in_keys="features")
    encoder = TensorDictModule(trunk, ["observation"], ["features"])
    return ProbabilisticTensorDictSequential(encoder, actor), list(velocity.parameters())


def whole(size: Size) -> tuple[nn.Module, list[nn.Parameter]]:
    """Returns the paper's flow, whose whole network reads the noise in every step."""
    return ReversibleFlowActor(VelocityMLP(size.observation, size.action, size.cells, nn.SiLU)), []


def steered(size: Size) -> tuple[nn.Module, list[nn.Parameter]]:
    """Returns a flow of which the start alone is trained, by a network that reads the observation alone."""
    velocity = VelocityMLP(size.observation, size.action, size.cells, nn.SiLU).requires_grad_(False)
    start = SteeredStart(ConsistentStart(0.1), size.action, velocity.context_dim)
    return ReversibleFlowActor(velocity, start=start), []


POLICIES: dict[str, tuple[Callable[[Size], tuple[nn.Module, list[nn.Parameter]]], float]] = {
    "Gaussian": (gaussian, RATE),
    "flow": (with_head, LOWER),
    "flow, the same rate for its head": (with_head, RATE),
    "flow, whole network": (whole, RATE),
    "flow, steered": (steered, RATE),
}
"""What makes each policy, and the rate of its head."""


def log_prob(policy: nn.Module, data: TensorDictBase) -> Tensor:
    """Returns the log density of what was drawn: of a pair, or of a Gaussian's action."""
    if "action_memory" in data.keys():
        return dist_of(policy, data).log_prob(data["action"], data["action_memory"])
    return policy.log_prob(data)  # type: ignore[operator, no-any-return]


def measure(policy: nn.Module, data: TensorDictBase) -> tuple[float, float]:
    """Returns the KL divergence since the data was drawn, and the gain: the mean of ratio times advantage."""
    log_ratio = log_prob(policy, data) - data["action_log_prob"]
    return (log_ratio.expm1() - log_ratio).mean().item(), (log_ratio.exp() * data["advantage"]).mean().item()


def update(make: Callable[[Size], tuple[nn.Module, list[nn.Parameter]]], head_rate: float, size: Size) -> list[float]:
    """Returns KL and gain of an update, on its own batch and on other draws of the policy that it began with."""
    policy, head = make(size)

    @torch.no_grad()
    def draw() -> TensorDictBase:
        data = policy(TensorDict(observation=torch.randn(SAMPLES, size.observation), batch_size=[SAMPLES]))
        advantage = torch.randn(SAMPLES)
        return data.set("advantage", (advantage - advantage.mean()) / advantage.std())

    own, other = draw(), draw()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameter_groups(trained, RATE, (head, head_rate)), eps=1e-5)
    for _ in range(EPOCHS):
        for batch in own[torch.randperm(SAMPLES)].split(MINI_BATCH):
            ratio = (log_prob(policy, batch) - batch["action_log_prob"]).exp()
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            objective = torch.min(ratio * batch["advantage"], clipped * batch["advantage"]).mean()
            optimizer.zero_grad()
            (-objective).backward()
            nn.utils.clip_grad_norm_(trained, 0.5)
            optimizer.step()
    with torch.no_grad():
        return [value for data in (own, other) for value in measure(policy, data)]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    seeds = arguments.parse_args().seeds
    torch.set_num_threads(1)
    lines = [
        "# What an update fits of the noise of its batch",
        "",
        f"PPO with advantages that are independent normal numbers: {SAMPLES:,} samples, {EPOCHS} epochs of "
        f"mini-batches of {MINI_BATCH}, clip {CLIP}, Adam with a rate of {RATE:g}, untrained policies. Gain: mean of "
        f"the ratio times the advantage, which nothing but chance can make other than 0. Median of {len(seeds)} seeds.",
        "",
        "| task's size | policy | KL on the batch | on other draws | gain on the batch | on other draws |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for size in SIZES:
        for name, (make, head_rate) in POLICIES.items():
            found = []
            for seed in seeds:
                torch.manual_seed(seed)
                found.append(update(make, head_rate, size))
            kl, gain, other_kl, other_gain = (statistics.median(values) for values in zip(*found, strict=True))
            lines.append(f"| {size.name} | {name} | {kl:.4f} | {other_kl:.4f} | {gain:.3f} | {other_gain:.3f} |")
            print(lines[-1], flush=True)
    save(RESULTS / "fitted_noise.md", [*lines, *origin()])


if __name__ == "__main__":
    main()
