# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A hybrid action: a flow for where to go, beside a categorical distribution for how.

    python examples/hybrid.py

A vehicle has to reach a goal. It moves only in the gear that the ground asks for, and the ground changes in every step.
The policy is one sequence of two heads with ``return_composite=True``, and TorchRL's own ``ClipPPOLoss`` trains it: it
finds the keys of both heads and multiplies their likelihood ratios. Half a minute on a CPU.
"""

from __future__ import annotations

import argparse

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import (
    AddStateIndependentNormalScale,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.data import Categorical as CategoricalSpec
from torchrl.data import Composite, LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer, Unbounded
from torchrl.envs import EnvBase, ExplorationType, StepCounter, TransformedEnv, set_exploration_type
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_genpo import ReversibleFlowActor, VelocityMLP

GEARS, HORIZON = 4, 16
OBS_DIM = 2 + GEARS  # the way to the goal, and the ground
STEP, NEAR = 0.25, 0.2  # the longest move, and a distance that counts as reached; the plane is 2 wide


class Drive(EnvBase):
    """A batch of vehicles, which all begin and end their episodes together."""

    def __init__(self, num_envs: int, seed: int) -> None:
        super().__init__(batch_size=[num_envs])
        self.observation_spec = Composite(observation=Unbounded((num_envs, OBS_DIM)), shape=[num_envs])
        self.action_spec = Composite(
            direction=Unbounded((num_envs, 2)), gear=CategoricalSpec(GEARS, shape=[num_envs]), shape=[num_envs]
        )
        self.reward_spec = Unbounded((num_envs, 1))
        self.set_seed(seed)

    def _set_seed(self, seed: int | None) -> None:
        self.generator = torch.Generator().manual_seed(seed or 0)

    def _reset(self, tensordict: TensorDictBase | None) -> TensorDictBase:
        self.point, self.goal = 2 * torch.rand(2, *self.batch_size, 2, generator=self.generator) - 1
        return TensorDict(observation=self.observe(), batch_size=self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        moves = (tensordict["gear"] == self.ground).unsqueeze(-1)
        self.point = (self.point + STEP * moves * tensordict["direction"].clamp(-1, 1)).clamp(-1, 1)
        reward = -(self.point - self.goal).norm(dim=-1, keepdim=True)
        done = torch.zeros_like(reward, dtype=torch.bool)
        return TensorDict(observation=self.observe(), reward=reward, done=done, batch_size=self.batch_size)

    def observe(self) -> Tensor:
        self.ground = torch.randint(GEARS, self.batch_size, generator=self.generator)
        return torch.cat([self.goal - self.point, nn.functional.one_hot(self.ground, GEARS)], -1)


def make_policy() -> ProbabilisticTensorDictSequential:
    """Builds a head for the gear and a flow for the direction."""
    return ProbabilisticTensorDictSequential(
        TensorDictModule(MLP(OBS_DIM, GEARS, num_cells=[64]), in_keys=["observation"], out_keys=["logits"]),
        ReversibleFlowActor(
            VelocityMLP(OBS_DIM, action_dim=2, num_cells=(64, 64)),
            gaussian=nn.Sequential(nn.Linear(OBS_DIM, 2), AddStateIndependentNormalScale(2)),
            action_key="direction",
            memory_key="direction_memory",
            log_prob_key="direction_log_prob",
        ),
        ProbabilisticTensorDictModule(
            ["logits"], ["gear"], distribution_class=Categorical, return_log_prob=True, log_prob_keys=["gear_log_prob"]
        ),
        return_composite=True,
    )


@torch.no_grad()
def evaluate(env: Drive, policy: nn.Module | None) -> float:
    """Plays an episode with zero noise, or with random actions; returns the share of vehicles that reached the goal."""
    tensordict = env.reset()
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        for _ in range(HORIZON):
            tensordict = env.step(env.rand_action(tensordict) if policy is None else policy(tensordict))["next"]
    return ((env.point - env.goal).norm(dim=-1) < NEAR).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=60 * 1024)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)

    env = TransformedEnv(Drive(64, options.seed), StepCounter(max_steps=HORIZON))
    policy = make_policy()
    critic = ValueOperator(MLP(OBS_DIM, 1, num_cells=[64, 64]), in_keys=["observation"])
    loss = ClipPPOLoss(policy, critic, clip_epsilon=0.2, entropy_coeff=0.01, normalize_advantage=True)
    gae = GAE(gamma=0.9, lmbda=0.9, value_network=critic)
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
        for _ in range(4):
            buffer.empty()
            buffer.extend(data.reshape(-1))
            for batch in buffer:
                out = loss(batch)
                optimizer.zero_grad()
                (out["loss_objective"] + out["loss_critic"] + out["loss_entropy"]).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
        collector.update_policy_weights_()
        if iteration % 10 == 9:
            distance = -data["next", "reward"].mean()
            print(f"{(iteration + 1) * 1024:>6} frames: mean distance {distance:.2f}, KL {out['kl_approx']:.3f}")
    collector.shutdown()

    reached, by_chance = (evaluate(Drive(500, seed=10_000), actor) for actor in (policy, None))
    print(f"zero noise: {100 * reached:.0f} % of the goals reached; random actions: {100 * by_chance:.0f} %")


if __name__ == "__main__":
    main()
