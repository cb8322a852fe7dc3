# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A flow policy trained by TorchRL's own trainer: no training loop to write.

    python examples/trainer.py

The policy learns to balance an inverted pendulum, where 1000 is the best return. About a minute on a CPU.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from tensordict.nn import AddStateIndependentNormalScale
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
from torchrl.envs import RewardScaling, TransformedEnv
from torchrl.modules import MLP, ValueOperator
from torchrl.record import CSVLogger

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, ReversibleSolver, VelocityMLP
from torchrl_genpo.envs import make_env
from torchrl_genpo.training import GenPOTrainer, evaluate

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--frames", type=int, default=30 * 2048)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
torch.manual_seed(options.seed)
torch.set_num_threads(1)  # small networks are no faster with more
warnings.filterwarnings("ignore", category=UserWarning)  # TorchRL's trainers are experimental, and say so

OBS_DIM, ACTION_DIM = 4, 1
env = make_env("pendulum", num_envs=16, seed=options.seed)
env = TransformedEnv(env, RewardScaling(loc=0.0, scale=0.1))  # values of order ten suit the critic better
policy = ReversibleFlowActor(
    VelocityMLP(OBS_DIM, ACTION_DIM, num_cells=(64, 64)),
    solver=ReversibleSolver(num_steps=5, sigma=0.75),
    gaussian=nn.Sequential(nn.Linear(OBS_DIM, ACTION_DIM), AddStateIndependentNormalScale(ACTION_DIM)),
)
critic = ValueOperator(MLP(in_features=OBS_DIM, out_features=1, num_cells=[64, 64]))
loss = GenPOLoss(policy, critic, clip_epsilon=0.2, normalize_advantage=True)

# What remains is PPO's, keyword by keyword.
trainer = GenPOTrainer(
    collector=Collector(
        env,
        policy,
        frames_per_batch=2048,
        total_frames=options.frames,
        auto_register_policy_transforms=False,
    ),
    loss_module=loss,
    optimizer=torch.optim.Adam(loss.parameters(), lr=1e-3),
    replay_buffer=ReplayBuffer(storage=LazyTensorStorage(2048), sampler=SamplerWithoutReplacement(), batch_size=512),
    logger=CSVLogger("trainer"),
    total_frames=options.frames,
    frame_skip=1,
    optim_steps_per_batch=None,  # all mini-batches of the buffer
    num_epochs=5,
    clip_norm=0.5,
    seed=options.seed,
)
trainer.train()

# Zero noise makes the policy deterministic.
returns = evaluate(make_env("pendulum", num_envs=16), policy, seed=options.seed)
print(f"zero noise: return {returns['eval/zero_noise/return']:.0f}")
