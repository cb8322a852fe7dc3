# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A goal is hidden in one of four places: a flow tries all four, a Gaussian cannot.

    python examples/multimodal.py

Many searchers attempt to find a goal, a point of the plane, which hides in one of four places until it is found, or
given up after twenty attempts. They remember nothing, so the best policy tries all places alike. PPO trains a
reversible flow and a Gaussian to find it; the attempts of each are drawn side by side into ``multimodal.png``. Half a
minute on a CPU.

No bonus on an entropy is needed to keep all places: the goals that are still hidden are those which are tried too
seldom. ``env=hidden_point`` and ``env=hidden_reach`` are such searches as environments.
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

PLACES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
NEAR = 0.35  # an attempt this close to the goal finds it
ATTEMPTS = 20  # after which another goal is hidden


class Search:
    """Goals that are hidden, one for each of ``size`` searchers."""

    def __init__(self, size: int) -> None:
        self.hidden = torch.randint(len(PLACES), (size,))
        self.attempts = torch.zeros(size)

    def attempt(self, action: torch.Tensor) -> torch.Tensor:
        """Returns which of the actions ``[size, 2]`` find their goals, ``[size]``; those hide anew."""
        found = (action - PLACES[self.hidden]).norm(dim=-1) < NEAR
        self.attempts += 1
        is_over = found | (self.attempts == ATTEMPTS)
        self.hidden = torch.where(is_over, torch.randint_like(self.hidden, len(PLACES)), self.hidden)
        self.attempts[is_over] = 0
        return found


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
    """Draws ``size`` attempts. The observation is always zero."""
    return actor(TensorDict(observation=torch.zeros(size, 1), batch_size=[size]))


def train(actor, loss: ClipPPOLoss, iterations: int, size: int = 2048, epochs: int = 4) -> None:
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    search = Search(size)
    for _ in range(iterations):
        data = sample(actor, size)
        found = search.attempt(data["action"]).float().unsqueeze(-1)
        data["advantage"] = (found - found.mean()) / (found.std() + 1e-6)  # an attempt is all there is: no critic
        for batch in [data[i] for _ in range(epochs) for i in torch.randperm(size).chunk(4)]:
            optimizer.zero_grad()
            loss(batch)["loss_objective"].backward()
            optimizer.step()


def share_of_places(action: torch.Tensor) -> torch.Tensor:
    """Computes the share ``[4]`` of the attempts at each place."""
    return (torch.cdist(action, PLACES) < NEAR).float().mean(0)


def mean_failures(shares: torch.Tensor) -> float:
    """Computes how often a searcher fails in the mean before it finds the goal or gives up."""
    return float(sum((1 - shares) ** attempt for attempt in range(1, ATTEMPTS + 1)).mean())


def draw(samples: dict[str, TensorDict], path: str) -> None:
    """Draws the attempts of each policy over the places."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(samples), figsize=(4.2 * len(samples), 4.4), layout="constrained")
    for panel, (name, data) in zip(panels, samples.items(), strict=True):
        for place in PLACES:
            panel.add_patch(plt.Circle(place.tolist(), NEAR, color="0.85"))
        panel.scatter(*data["action"].T, s=4, alpha=0.5, color="C0" if name == "flow" else "C1")
        failures = mean_failures(share_of_places(data["action"]))
        panel.set(title=f"{name}: fails {failures:.1f} times before it finds", aspect="equal")
        panel.set(xlim=(-1.9, 1.9), ylim=(-1.9, 1.9))
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", default="multimodal.png")
    options = parser.parse_args()
    torch.set_num_threads(1)  # small networks are no faster with more
    samples = {}
    for name, make, loss_class in (("flow", flow, GenPOLoss), ("Gaussian", gaussian, ClipPPOLoss)):
        torch.manual_seed(options.seed)
        actor = make()
        train(actor, loss_class(actor, None, critic_coeff=None, entropy_bonus=False), options.iterations)
        samples[name] = sample(actor, 2000)
        shares = share_of_places(samples[name]["action"])
        print(
            f"{name}: {mean_failures(shares):.1f} failures before the goal is found; attempts at each place: "
            + ", ".join(f"{100 * share:.0f} %" for share in shares)
        )
    draw(samples, options.picture)
    print(f"Picture: {options.picture}")


if __name__ == "__main__":
    main()
