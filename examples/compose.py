# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A flow policy and its loss among TorchRL's own parts: collector, advantage, buffer, optimizer.

    python examples/compose.py

The policy learns to balance an inverted pendulum, where 1000 is the best return. About a minute on a CPU.
"""

from __future__ import annotations

import argparse

import torch
from tensordict.nn import AddStateIndependentNormalScale, ProbabilisticTensorDictSequential, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives.value import GAE

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, ReversibleSolver, VelocityMLP
from torchrl_genpo.envs import make_env
from torchrl_genpo.modules import RunningNormalizer
from torchrl_genpo.training import evaluate

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--frames", type=int, default=50 * 2048)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
torch.manual_seed(options.seed)
torch.set_num_threads(1)  # small networks are no faster with more

# Any batched TorchRL environment will do; this one wraps Gymnasium's.
env = make_env("pendulum", num_envs=16, seed=options.seed)
obs_dim, action_dim = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]

# The policy normalises the observation; a velocity, integrated by the solver, bends the noise of a Gaussian network.
normalizer = RunningNormalizer(obs_dim)
mean = MLP(in_features=obs_dim, out_features=action_dim, num_cells=[64, 64], activation_class=nn.Tanh)
actor = ReversibleFlowActor(
    VelocityMLP(obs_dim, action_dim, num_cells=(64, 64)),
    solver=ReversibleSolver(num_steps=5, sigma=0.75),
    gaussian=nn.Sequential(mean, AddStateIndependentNormalScale(action_dim)),
    in_keys=["normalized_observation"],
)
policy = ProbabilisticTensorDictSequential(normalizer, actor)
value = MLP(in_features=obs_dim, out_features=1, num_cells=[64, 64], activation_class=nn.Tanh)
critic = TensorDictSequential(normalizer, ValueOperator(value, in_keys=["normalized_observation"]))

# From here on everything is as in any PPO script of TorchRL.
loss = GenPOLoss(policy, critic, clip_epsilon=0.2, normalize_advantage=True)
gae = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
collector = Collector(
    env, policy, frames_per_batch=2048, total_frames=options.frames, auto_register_policy_transforms=False
)
buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(2048), sampler=SamplerWithoutReplacement(), batch_size=512)

for iteration, data in enumerate(collector):
    data["next", "reward"] *= 0.1  # values of order ten suit the critic better than values of a hundred
    for _ in range(5):
        with torch.no_grad():
            gae(data)
        buffer.empty()
        buffer.extend(data.reshape(-1))
        for batch in buffer:
            out = loss(batch)
            optimizer.zero_grad()
            (out["loss_objective"] + out["loss_critic"]).backward()
            nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
            optimizer.step()
    normalizer.update(data["observation"])  # only between batches, so that stored densities stay true
    collector.update_policy_weights_()
    finished = data["next", "episode_reward"][data["next", "done"]]
    if iteration % 8 == 0 and finished.numel():
        print(f"{(iteration + 1) * 2048:>7} frames: return {finished.mean():.0f}, KL {out['kl_approx']:.3f}")
collector.shutdown(close_env=False)

# Zero noise makes the policy deterministic.
returns = evaluate(env, policy, seed=options.seed)
print(f"zero noise: return {returns['eval/zero_noise/return']:.0f}")
