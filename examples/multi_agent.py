# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Several agents that share one flow, and a critic that sees all of them.

    python examples/multi_agent.py

Three points on a plane have to meet at a goal that only the first of them sees, so the others learn to follow. The flow
reads ("agents", "observation") and writes ("agents", "action"), with a density for each agent, as any module of TorchRL
for several agents does; the reward is one for all. Half a minute on a CPU.
"""

from __future__ import annotations

import argparse

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import AddStateIndependentNormalScale
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import Composite, LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer, Unbounded
from torchrl.envs import EnvBase, ExplorationType, StepCounter, TransformedEnv, set_exploration_type
from torchrl.modules import MultiAgentMLP, ValueOperator
from torchrl.objectives.value import GAE

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP

AGENTS, HORIZON = 3, 16
OBS_DIM = 2 + 2 * AGENTS + 1  # the way to the goal, or zeros; the ways to all agents; whether this one leads
STEP, NEAR = 0.25, 0.2  # the longest move, and a distance that counts as reached; the plane is 2 wide


class Follow(EnvBase):
    """A batch of groups of points, which all begin and end their episodes together."""

    def __init__(self, num_envs: int, seed: int) -> None:
        super().__init__(batch_size=[num_envs])
        batch = (num_envs, AGENTS)
        self.observation_spec = Composite(
            agents=Composite(observation=Unbounded((*batch, OBS_DIM)), shape=batch), shape=[num_envs]
        )
        self.action_spec = Composite(agents=Composite(action=Unbounded((*batch, 2)), shape=batch), shape=[num_envs])
        self.reward_spec = Composite(agents=Composite(reward=Unbounded((*batch, 1)), shape=batch), shape=[num_envs])
        self.set_seed(seed)

    def _set_seed(self, seed: int | None) -> None:
        self.generator = torch.Generator().manual_seed(seed or 0)

    def _reset(self, tensordict: TensorDictBase | None) -> TensorDictBase:
        places = 2 * torch.rand(*self.batch_size, AGENTS + 1, 2, generator=self.generator) - 1
        self.points, self.goal = places.split([AGENTS, 1], dim=-2)
        return TensorDict(agents=self.group(observation=self.observe()), batch_size=self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.points = (self.points + STEP * tensordict["agents", "action"].clamp(-1, 1)).clamp(-1, 1)
        reward = -(self.points - self.goal).norm(dim=-1, keepdim=True).mean(-2, keepdim=True).expand(-1, AGENTS, 1)
        done = torch.zeros(*self.batch_size, 1, dtype=torch.bool)
        return TensorDict(
            agents=self.group(observation=self.observe(), reward=reward), done=done, batch_size=self.batch_size
        )

    def group(self, **values: Tensor) -> TensorDict:
        return TensorDict(values, batch_size=[*self.batch_size, AGENTS])

    def observe(self) -> Tensor:
        leads = torch.zeros(*self.batch_size, AGENTS, 1).index_fill(-2, torch.tensor(0), 1.0)
        ways = (self.points.unsqueeze(-3) - self.points.unsqueeze(-2)).flatten(-2)
        return torch.cat([leads * (self.goal - self.points), ways, leads], -1)


def make_models() -> tuple[ReversibleFlowActor, ValueOperator]:
    """Builds a flow for every agent, and a critic that reads the observations of all."""
    policy = ReversibleFlowActor(
        VelocityMLP(OBS_DIM, action_dim=2, num_cells=(64, 64)),
        gaussian=nn.Sequential(nn.Linear(OBS_DIM, 2), AddStateIndependentNormalScale(2)),
        in_keys=[("agents", "observation")],
        action_key=("agents", "action"),
        memory_key=("agents", "action_memory"),
        log_prob_key=("agents", "action_log_prob"),
    )
    value = MultiAgentMLP(OBS_DIM, 1, AGENTS, centralized=True, share_params=True, depth=2, num_cells=64)
    critic = ValueOperator(value, in_keys=[("agents", "observation")], out_keys=[("agents", "state_value")])
    return policy, critic


@torch.no_grad()
def evaluate(env: Follow, policy: nn.Module | None) -> float:
    """Plays an episode with zero noise, or with random actions; returns the share of groups that met at their goal."""
    tensordict = env.reset()
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        for _ in range(HORIZON):
            tensordict = env.step(env.rand_action(tensordict) if policy is None else policy(tensordict))["next"]
    return ((env.points - env.goal).norm(dim=-1) < NEAR).all(-1).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=60 * 1024)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)

    env = TransformedEnv(Follow(64, options.seed), StepCounter(max_steps=HORIZON))
    policy, critic = make_models()

    keys = {name: ("agents", name) for name in ("reward", "done", "terminated")} | {"value": ("agents", "state_value")}
    loss = GenPOLoss(policy, critic, clip_epsilon=0.2, normalize_advantage=True, normalize_advantage_exclude_dims=(-2,))
    gae = GAE(gamma=0.9, lmbda=0.9, value_network=critic)
    loss.set_keys(**keys)
    gae.set_keys(**keys)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    collector = Collector(
        env, policy, frames_per_batch=1024, total_frames=options.frames, auto_register_policy_transforms=False
    )
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(1024), sampler=SamplerWithoutReplacement(), batch_size=256
    )
    for iteration, data in enumerate(collector):
        for name in ("done", "terminated"):  # an episode ends for all of them
            ended = data["next", name].unsqueeze(-2)
            data["next", "agents", name] = ended.expand(*ended.shape[:-2], AGENTS, 1)
        with torch.no_grad():
            gae(data)
        for _ in range(4):
            buffer.empty()
            buffer.extend(data.reshape(-1))
            for batch in buffer:
                out = loss(batch)
                optimizer.zero_grad()
                (out["loss_objective"] + out["loss_critic"]).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
        collector.update_policy_weights_()
        if iteration % 10 == 9:
            distance = -data["next", "agents", "reward"].mean()
            print(f"{(iteration + 1) * 1024:>6} frames: mean distance {distance:.2f}, KL {out['kl_approx']:.3f}")
    collector.shutdown()

    met, by_chance = (evaluate(Follow(500, seed=10_000), actor) for actor in (policy, None))
    print(f"zero noise: {100 * met:.0f} % of the groups met at their goal; random actions: {100 * by_chance:.0f} %")


if __name__ == "__main__":
    main()
