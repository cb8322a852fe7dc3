# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A flow policy that remembers: a point has to reach a goal that it is shown in the first step alone.

    python examples/recurrent.py                # a GRU before the flow
    python examples/recurrent.py --memory none  # the same without it, which can only wait in the middle

TorchRL's ``GRUModule`` is one more module of the sequence. Updates see whole sequences, over which the loss runs the
GRU again, from a state of zero wherever an episode begins; so the ratio stays exact. Half a minute on a CPU.
"""

from __future__ import annotations

import argparse

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import (
    AddStateIndependentNormalScale,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import (
    Composite,
    LazyTensorStorage,
    SamplerWithoutReplacement,
    TensorDictReplayBuffer,
    Unbounded,
)
from torchrl.envs import EnvBase, ExplorationType, StepCounter, TransformedEnv, set_exploration_type
from torchrl.modules import MLP, GRUModule, ValueOperator
from torchrl.objectives.value import GAE

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP

STEP = 0.4  # longest move; goals are at most 1 away from the middle, along each axis
HORIZON = 10
FEATURES = 64


class ShownOnce(EnvBase):
    """A batch of points, each with a goal that its first observation shows, before it can move."""

    def __init__(self, num_envs: int, seed: int) -> None:
        super().__init__(batch_size=[num_envs])
        self.observation_spec = Composite(observation=Unbounded((num_envs, 5)), shape=[num_envs])
        self.action_spec = Unbounded((num_envs, 2))
        self.reward_spec = Unbounded((num_envs, 1))
        self.point, self.goal = torch.zeros(2, num_envs, 2)
        self.is_first = torch.zeros(num_envs, 1, dtype=torch.bool)
        self.set_seed(seed)

    def _set_seed(self, seed: int | None) -> None:
        self.generator = torch.Generator().manual_seed(seed or 0)

    def _reset(self, tensordict: TensorDictBase | None) -> TensorDictBase:
        again = None if tensordict is None else tensordict.get("_reset", None)  # [num_envs, 1]; None for all
        self.is_first = again = torch.ones(*self.batch_size, 1, dtype=torch.bool) if again is None else again
        goal = 2 * torch.rand(*self.batch_size, 2, generator=self.generator) - 1
        self.goal, self.point = torch.where(again, goal, self.goal), self.point.where(~again, 0.0)
        return TensorDict(observation=self.observe(), batch_size=self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.point = self.point + STEP * tensordict["action"].clamp(-1, 1) * ~self.is_first
        self.is_first = done = torch.zeros_like(self.is_first)
        reward = -(self.point - self.goal).norm(dim=-1, keepdim=True)
        return TensorDict(observation=self.observe(), reward=reward, done=done, batch_size=self.batch_size)

    def observe(self) -> Tensor:
        """Observations ``[num_envs, 5]``: the point, whether the episode begins, and the goal where it does."""
        return torch.cat([self.point, self.is_first.float(), self.goal * self.is_first], -1)


def make_policy(memory: str) -> ProbabilisticTensorDictSequential:
    """Builds an encoder that writes features, with a memory or without, and a flow that reads them."""
    if memory == "gru":
        encoder = GRUModule(
            input_size=5,
            hidden_size=FEATURES,
            in_keys=["observation", "recurrent_state"],
            out_keys=["features", ("next", "recurrent_state")],
        )
    else:
        mlp = MLP(in_features=5, out_features=FEATURES, num_cells=[FEATURES], activation_class=nn.Tanh)
        encoder = TensorDictModule(mlp, in_keys=["observation"], out_keys=["features"])
    velocity = VelocityMLP(FEATURES, action_dim=2, num_cells=(64, 64), activation_class=nn.Tanh)
    gaussian = nn.Sequential(nn.Linear(FEATURES, 2), AddStateIndependentNormalScale(2))
    actor = ReversibleFlowActor(velocity, gaussian=gaussian, in_keys=["features"])
    return ProbabilisticTensorDictSequential(encoder, actor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", choices=["gru", "none"], default="gru")
    parser.add_argument("--frames", type=int, default=60 * 1280)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)

    policy = make_policy(options.memory)
    value = ValueOperator(MLP(in_features=FEATURES, out_features=1, num_cells=[64]), in_keys=["features"])
    critic = TensorDictSequential(policy[0], value)  # it shares the memory
    loss = GenPOLoss(policy, critic, clip_epsilon=0.2, normalize_advantage=True)
    gae = GAE(gamma=0.9, lmbda=0.9, value_network=critic, average_gae=False, deactivate_vmap=True)
    optimizer = torch.optim.Adam(loss.parameters(), lr=7e-4)
    collector = Collector(
        TransformedEnv(ShownOnce(64, options.seed), StepCounter(max_steps=HORIZON)),
        policy,
        frames_per_batch=1280,
        total_frames=options.frames,
        auto_register_policy_transforms=True,  # the environment keeps the state of the GRU, and where episodes begin
    )
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(64), sampler=SamplerWithoutReplacement(), batch_size=16)
    for iteration, data in enumerate(collector):  # [64, 20]
        with torch.no_grad():
            gae(data)
        for _ in range(4):
            buffer.empty()
            buffer.extend(data.exclude("next"))
            for batch in buffer:  # [16, 20], whole sequences
                out = loss(batch)
                optimizer.zero_grad()
                (out["loss_objective"] + out["loss_critic"]).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
        collector.update_policy_weights_()
        if iteration % 10 == 9:
            distance = -data["next", "reward"].mean()
            print(f"{(iteration + 1) * 1280:>6} frames: mean distance {distance:.2f}, KL {out['kl_approx']:.3f}")
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        end = collector.env.rollout(HORIZON, policy)[:, -1]
    print(f"zero noise: {-end['next', 'reward'].mean():.2f} away from the goal at the end")
    collector.shutdown()


if __name__ == "__main__":
    main()
