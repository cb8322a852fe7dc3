# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Four equally good actions: a flow keeps them all, a Gaussian cannot.

    python examples/multimodal.py

A bandit with actions in the plane pays for coming near any of four peaks. The same PPO trains a reversible flow and a
Gaussian on it; the samples of both are drawn side by side into ``multimodal.png``. About a minute on a CPU.
"""

from __future__ import annotations

import argparse

import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
from torch import nn
from torchrl.envs import ExplorationType
from torchrl.modules import MLP, IndependentNormal, ProbabilisticActor
from torchrl.objectives import ClipPPOLoss

from torchrl_genpo import GenPOLoss, IndependentStart, ReversibleFlowActor, VelocityMLP

PEAKS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
WIDTH = 0.25  # of a peak, in units of the action


def reward(action: torch.Tensor) -> torch.Tensor:
    """Height ``[...]`` of the nearest peak at the actions ``[..., 2]``: 1 on top, near 0 between them."""
    distance = torch.cdist(action, PEAKS).amin(-1)
    return torch.exp(-0.5 * (distance / WIDTH) ** 2)


def flow_actor() -> ReversibleFlowActor:
    velocity = VelocityMLP(obs_dim=1, action_dim=2, hidden_sizes=(64, 64))
    return ReversibleFlowActor(velocity, start=IndependentStart("learned", action_dim=2))


def gaussian_actor() -> ProbabilisticActor:
    net = nn.Sequential(MLP(in_features=1, out_features=2, num_cells=[64, 64]), AddStateIndependentNormalScale(2))
    return ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        return_log_prob=True,
        default_interaction_type=ExplorationType.RANDOM,
    )


def sample(actor, size: int) -> TensorDict:
    """Plays the bandit ``size`` times; its observation is always zero."""
    with torch.no_grad():
        data = actor(TensorDict(observation=torch.zeros(size, 1), batch_size=[size]))
    data["reward"] = reward(data["action"]).unsqueeze(-1)
    return data


def train(actor, loss: ClipPPOLoss, iterations: int, batch_size: int = 2048, epochs: int = 4) -> None:
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    for _ in range(iterations):
        data = sample(actor, batch_size)
        data["advantage"] = data["reward"] - data["reward"].mean()  # one step: no critic is needed
        for batch in [data[i] for _ in range(epochs) for i in torch.randperm(batch_size).chunk(4)]:
            optimizer.zero_grad()
            loss(batch)["loss_objective"].backward()
            optimizer.step()


def share_of_peaks(action: torch.Tensor) -> torch.Tensor:
    """Share ``[4]`` of the actions that lie within two widths of each peak."""
    near = torch.cdist(action, PEAKS) < 2 * WIDTH
    return near.float().mean(0)


def draw(samples: dict[str, TensorDict], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axis = torch.linspace(-1.9, 1.9, 200)
    height = reward(torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)).reshape(200, 200)
    figure, panels = plt.subplots(1, len(samples), figsize=(4.2 * len(samples), 4.4), layout="constrained")
    for panel, (name, data) in zip(panels, samples.items(), strict=True):
        panel.contourf(axis, axis, height, levels=12, cmap="Greys", alpha=0.6)
        panel.scatter(*data["action"].T, s=4, alpha=0.5, color="C0" if "flow" in name else "C1")
        panel.set(title=f"{name}: mean reward {data['reward'].mean():.2f}", aspect="equal", xlim=(-1.9, 1.9))
        panel.set_ylim(-1.9, 1.9)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", default="multimodal.png")
    options = parser.parse_args()
    samples = {}
    for name, make, loss_class in (("flow", flow_actor, GenPOLoss), ("Gaussian", gaussian_actor, ClipPPOLoss)):
        torch.manual_seed(options.seed)
        actor = make()
        loss = loss_class(actor, None, critic_coeff=None, entropy_bonus=False, clip_epsilon=0.2)
        train(actor, loss, options.iterations)
        samples[name] = sample(actor, 2000)
        shares = ", ".join(f"{100 * share:.0f} %" for share in share_of_peaks(samples[name]["action"]))
        print(f"{name}: mean reward {samples[name]['reward'].mean():.2f}, share of samples at the peaks: {shares}")
    draw(samples, options.picture)
    print(f"Picture: {options.picture}")


if __name__ == "__main__":
    main()
