# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A flow policy that sees nothing but pixels: a convolutional encoder before the flow.

    python examples/pixels.py

A red point on a small image has to reach a green goal. The encoder is a module of the policy before the flow, so it
runs once an observation, not once a step of the solver, and the loss trains it with the flow. Collector, advantage,
buffer and loss are as in ``compose.py``. A few paths are drawn into ``pixels.png``. About a minute on a CPU.
"""

from __future__ import annotations

import argparse

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import AddStateIndependentNormalScale, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import (
    Bounded,
    Composite,
    LazyTensorStorage,
    SamplerWithoutReplacement,
    TensorDictReplayBuffer,
    Unbounded,
)
from torchrl.envs import EnvBase, ExplorationType, StepCounter, TransformedEnv, set_exploration_type
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives.value import GAE

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP

SIZE = 24  # of the image, in pixels
STEP = 0.25  # longest move; the image is 2 wide
NEAR = 0.2  # a goal this near is reached
HORIZON = 16


class PixelReach(EnvBase):
    """A batch of points that move by their action towards goals. It is made of tensors, so it runs on any device."""

    def __init__(self, num_envs: int, seed: int, device: str = "cpu") -> None:
        super().__init__(device=device, batch_size=[num_envs])
        pixels = Bounded(0, 255, (num_envs, 3, SIZE, SIZE), dtype=torch.uint8, device=device)
        self.observation_spec = Composite(pixels=pixels, shape=[num_envs], device=device)
        self.action_spec = Unbounded((num_envs, 2), device=device)
        self.reward_spec = Unbounded((num_envs, 1), device=device)
        axis = torch.linspace(-1, 1, SIZE, device=device)
        self.grid = torch.stack(torch.meshgrid(axis, -axis, indexing="xy"), -1)  # [SIZE, SIZE, 2]
        self.point, self.goal = torch.zeros(2, num_envs, 2, device=device)
        self.set_seed(seed)

    def _set_seed(self, seed: int | None) -> None:
        self.generator = torch.Generator(self.device).manual_seed(seed or 0)

    def _reset(self, tensordict: TensorDictBase | None) -> TensorDictBase:
        places = 1.8 * torch.rand(2, *self.batch_size, 2, generator=self.generator, device=self.device) - 0.9
        again = None if tensordict is None else tensordict.get("_reset", None)  # [num_envs, 1]; None for all
        self.point, self.goal = (
            new if again is None else torch.where(again, new, old)
            for new, old in zip(places, (self.point, self.goal), strict=True)
        )
        return TensorDict(pixels=self.draw(), batch_size=self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.point = (self.point + STEP * tensordict["action"].clamp(-1, 1)).clamp(-1, 1)
        distance = (self.point - self.goal).norm(dim=-1, keepdim=True)
        done = torch.zeros_like(distance, dtype=torch.bool)
        return TensorDict(pixels=self.draw(), reward=-distance, done=done, batch_size=self.batch_size)

    def draw(self) -> Tensor:
        """Draws images ``[num_envs, 3, SIZE, SIZE]`` with the point in red and the goal in green."""
        places = torch.stack([self.point, self.goal], -2)[..., None, None, :]
        blobs = (255 * torch.exp(-((self.grid - places) / 0.15).square().sum(-1))).to(torch.uint8)
        return nn.functional.pad(blobs, (0, 0, 0, 0, 0, 1))  # no blue


class Encoder(nn.Module):
    """Turns images ``[..., 3, SIZE, SIZE]`` into features ``[..., out_features]``."""

    def __init__(self, out_features: int = 64) -> None:
        super().__init__()
        self.out_features = out_features
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2), nn.Mish(), nn.Conv2d(16, 32, 3, stride=2), nn.Mish(), nn.Flatten()
        )
        self.output_layer = nn.Sequential(nn.LazyLinear(out_features), nn.LayerNorm(out_features), nn.Tanh())

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.convolutions(pixels.flatten(0, -4).float() / 255)
        return self.output_layer(features).unflatten(0, pixels.shape[:-3])


def make_policy() -> ProbabilisticTensorDictSequential:
    """Builds an encoder that writes features, and a flow that reads them."""
    encoder = Encoder()
    velocity = VelocityMLP(encoder.out_features, action_dim=2, num_cells=(64, 64))
    gaussian = nn.Sequential(nn.Linear(encoder.out_features, 2), AddStateIndependentNormalScale(2))
    return ProbabilisticTensorDictSequential(
        TensorDictModule(encoder, in_keys=["pixels"], out_keys=["features"]),
        ReversibleFlowActor(velocity, gaussian=gaussian, in_keys=["features"]),
    )


@torch.no_grad()
def evaluate(env: PixelReach, policy: nn.Module | None) -> tuple[float, Tensor]:
    """Plays an episode with zero noise; returns the share of goals that it ends near to, and the paths.

    The paths have the shape ``[n, HORIZON + 1, 2]``. Without a policy the actions are random.
    """
    tensordict, path = env.reset(), [env.point]
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        for _ in range(HORIZON):
            tensordict = env.step(env.rand_action(tensordict) if policy is None else policy(tensordict))["next"]
            path.append(env.point)
    return ((env.point - env.goal).norm(dim=-1) < NEAR).float().mean().item(), torch.stack(path, 1)


def draw(env: PixelReach, paths: Tensor, images: Tensor, path: str) -> None:
    """Draws what the policy saw first, and where it went."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 6, figsize=(12, 2.2), layout="constrained")
    for panel, image, line in zip(panels, images, paths.cpu(), strict=False):
        panel.imshow(image.permute(1, 2, 0).cpu(), extent=(-1.04, 1.04, -1.04, 1.04))
        panel.plot(*line.T, "w.-", lw=1, ms=4)
        panel.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=60 * 1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", default="pixels.png")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)

    env = TransformedEnv(PixelReach(64, options.seed), StepCounter(max_steps=HORIZON))
    policy = make_policy()
    critic = ValueOperator(nn.Sequential(Encoder(), MLP(out_features=1, num_cells=[64])), in_keys=["pixels"])
    with torch.no_grad():
        critic(policy(env.reset()))  # lazy layers learn their sizes
    loss = GenPOLoss(policy, critic, clip_epsilon=0.2, normalize_advantage=True)
    gae = GAE(gamma=0.9, lmbda=0.9, value_network=critic, average_gae=False)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    collector = Collector(
        env, policy, frames_per_batch=1024, total_frames=options.frames, auto_register_policy_transforms=False
    )
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(1024), sampler=SamplerWithoutReplacement(), batch_size=256
    )
    for iteration, data in enumerate(collector):
        with torch.no_grad():
            gae(data)
        for _ in range(3):
            buffer.empty()
            buffer.extend(data.exclude("next", "features").reshape(-1))
            for batch in buffer:
                out = loss(batch)
                optimizer.zero_grad()
                (out["loss_objective"] + out["loss_critic"]).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
        collector.update_policy_weights_()
        if iteration % 10 == 9:
            distance = -data["next", "reward"].mean()
            print(f"{(iteration + 1) * 1024:>6} frames: mean distance {distance:.2f}, KL {out['kl_approx']:.3f}")
    collector.shutdown()

    test_env = PixelReach(500, seed=10_000)
    before, _ = evaluate(test_env, None)
    test_env.set_seed(10_000)
    reached, paths = evaluate(test_env, policy)
    print(f"zero noise: {100 * reached:.0f} % of the goals reached; random actions: {100 * before:.0f} %")
    test_env.point = paths[:, 0]
    draw(test_env, paths, test_env.draw(), options.picture)
    print(f"Picture: {options.picture}")


if __name__ == "__main__":
    main()
