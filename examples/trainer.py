# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A flow policy trained by TorchRL's trainer, from Hydra configurations: no training loop to write.

    python examples/trainer.py

Balances an inverted pendulum; 1000 is the best return. Half a minute on a CPU.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from hydra.utils import instantiate
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.trainers.algorithms.configs import (
    AdamConfig,
    BatchedEnvConfig,
    CollectorConfig,
    CSVLoggerConfig,
    GymEnvConfig,
    LazyTensorStorageConfig,
    MLPConfig,
    ReplayBufferConfig,
    RoundRobinWriterConfig,
    SamplerWithoutReplacementConfig,
    ValueModelConfig,
)
from torchrl_genpo.trainers.configs import (
    GenPOLossConfig,
    GenPOTrainerConfig,
    IndependentStartConfig,
    ReversibleFlowActorConfig,
    ReversibleSolverConfig,
    VelocityMLPConfig,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--frames", type=int, default=30 * 2048)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
torch.manual_seed(options.seed)
torch.set_num_threads(1)  # small networks are no faster with more
warnings.filterwarnings("ignore", category=UserWarning)  # TorchRL's trainers are experimental, and say so

OBS_DIM, ACTION_DIM = 4, 1
env = BatchedEnvConfig(
    create_env_fn=GymEnvConfig(env_name="InvertedPendulum-v5", double_to_float=True),
    num_workers=8,
    batched_env_type="serial",
)
policy = ReversibleFlowActorConfig(
    velocity=VelocityMLPConfig(obs_dim=OBS_DIM, action_dim=ACTION_DIM, hidden_sizes=[64, 64]),
    solver=ReversibleSolverConfig(num_steps=5, sigma=0.75),
    start=IndependentStartConfig(scale="learned", action_dim=ACTION_DIM),
)
critic = ValueModelConfig(
    network=MLPConfig(in_features=OBS_DIM, out_features=1, num_cells=[64, 64]), in_keys=["observation"]
)

# What remains is PPO's, field by field; every value could as well be an override on a command line.
trainer = instantiate(
    GenPOTrainerConfig(
        collector=CollectorConfig(create_env_fn=env, policy=policy, frames_per_batch=2048, total_frames=options.frames),
        loss_module=GenPOLossConfig(actor_network=policy, critic_network=critic, clip_epsilon=0.2),
        optimizer=AdamConfig(lr=3e-3, eps=1e-8),
        replay_buffer=ReplayBufferConfig(
            storage=LazyTensorStorageConfig(max_size=2048),
            sampler=SamplerWithoutReplacementConfig(),
            writer=RoundRobinWriterConfig(),
            batch_size=512,
        ),
        logger=CSVLoggerConfig(exp_name="trainer"),
        total_frames=options.frames,
        optim_steps_per_batch=None,  # all mini-batches of the buffer
        num_epochs=5,
        clip_norm=5.0,
        seed=options.seed,
        save_trainer_file=None,
    )
)
trainer.collector.reset()  # its first episodes began before it had a seed
trainer.train()

# Zero noise makes the policy deterministic. The collector closed its environment; its configuration is a factory.
with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
    steps = instantiate(env)().rollout(1000, trainer.loss_module.actor_network, break_when_all_done=True)
first = (steps["next", "done"].cumsum(1) <= 1).squeeze(-1)
returns = steps["next", "reward"].squeeze(-1).masked_fill(~first, 0).sum(1)
print(f"zero noise: return {returns.mean():.0f}")
