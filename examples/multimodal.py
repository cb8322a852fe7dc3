# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Four equally good actions: a flow keeps them all, a Gaussian cannot.

    python examples/multimodal.py

A bandit pays minus the squared distance of its action, a point of the plane, to the nearest of four targets. PPO with
an entropy bonus trains a reversible flow and a Gaussian on it; their samples are drawn side by side into
``multimodal.png``. A minute on a CPU.

The bonus is where an exact likelihood counts. The flow knows the density of the pair (action, memory), and
``GenPOLoss(action_entropy_coeff=...)`` turns it into a lower bound on the entropy of the action alone.
"""

from __future__ import annotations

import argparse
import math

import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale, NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.envs import ExplorationType
from torchrl.modules import MLP, IndependentNormal, ProbabilisticActor
from torchrl.objectives import ClipPPOLoss

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP

TARGETS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
BONUS = 0.3  # weight of the entropy of the action, beside advantages of standard deviation 1
NEAR = 0.5  # a sample this close to a target counts as its own


def reward(action: torch.Tensor) -> torch.Tensor:
    """Returns minus the squared distance ``[...]`` of the actions ``[..., 2]`` to the nearest target."""
    return -(torch.cdist(action, TARGETS).amin(-1) ** 2)


def flow() -> ReversibleFlowActor:
    velocity = VelocityMLP(in_features=1, action_dim=2, num_cells=(64, 64), activation_class=nn.Tanh)
    scale = AddStateIndependentNormalScale(2, init_value=math.log(0.7))
    return ReversibleFlowActor(velocity, gaussian=nn.Sequential(nn.Linear(1, 2), scale))


def gaussian() -> ProbabilisticActor:
    network = nn.Sequential(MLP(in_features=1, out_features=2 * 2, num_cells=[64, 64]), NormalParamExtractor())
    return ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        return_log_prob=True,
        default_interaction_type=ExplorationType.RANDOM,
    )


@torch.no_grad()
def sample(actor, size: int) -> TensorDict:
    """Plays the bandit ``size`` times. Its observation is always zero."""
    data = actor(TensorDict(observation=torch.zeros(size, 1), batch_size=[size]))
    data["reward"] = reward(data["action"])
    return data


def train(actor, loss: ClipPPOLoss, iterations: int, batch_size: int = 2048, epochs: int = 4) -> None:
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    for _ in range(iterations):
        data = sample(actor, batch_size)
        value = data["reward"].unsqueeze(-1)
        data["advantage"] = (value - value.mean()) / value.std()  # one step: no critic is needed
        for batch in [data[i] for _ in range(epochs) for i in torch.randperm(batch_size).chunk(4)]:
            optimizer.zero_grad()
            out = loss(batch)
            sum(out[key] for key in out.keys() if key.startswith("loss_")).backward()
            optimizer.step()


def share_of_targets(action: torch.Tensor) -> torch.Tensor:
    """Computes the share ``[4]`` of the actions that are near each target."""
    return (torch.cdist(action, TARGETS) < NEAR).float().mean(0)


def draw(samples: dict[str, TensorDict], path: str) -> None:
    """Draws the samples of each policy over the reward."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axis = torch.linspace(-1.9, 1.9, 200)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    height = torch.exp(reward(grid.reshape(-1, 2)) / 0.1).reshape(200, 200)
    figure, panels = plt.subplots(1, len(samples), figsize=(4.2 * len(samples), 4.4), layout="constrained")
    for panel, (name, data) in zip(panels, samples.items(), strict=True):
        panel.contourf(axis, axis, height, levels=12, cmap="Greys", alpha=0.6)
        panel.scatter(*data["action"].T, s=4, alpha=0.5, color="C0" if name == "flow" else "C1")
        near = share_of_targets(data["action"]).sum()
        panel.set(title=f"{name}: {100 * near:.0f} % of the samples near a target", aspect="equal")
        panel.set(xlim=(-1.9, 1.9), ylim=(-1.9, 1.9))
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", default="multimodal.png")
    options = parser.parse_args()
    torch.set_num_threads(1)  # small networks are no faster with more
    samples = {}
    for name, make, loss_class, bonus in (
        ("flow", flow, GenPOLoss, {"entropy_bonus": False, "action_entropy_coeff": BONUS}),
        ("Gaussian", gaussian, ClipPPOLoss, {"entropy_bonus": True, "entropy_coeff": BONUS}),
    ):
        torch.manual_seed(options.seed)
        actor = make()
        train(actor, loss_class(actor, None, critic_coeff=None, **bonus), options.iterations)
        samples[name] = sample(actor, 2000)
        shares = ", ".join(f"{100 * share:.0f} %" for share in share_of_targets(samples[name]["action"]))
        print(f"{name}: mean reward {samples[name]['reward'].mean():.2f}, samples near each target: {shares}")
    draw(samples, options.picture)
    print(f"Picture: {options.picture}")


if __name__ == "__main__":
    main()
