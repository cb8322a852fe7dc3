# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Fine-tune a pre-trained flow so that it gets better at what it does, and goes on doing all of it.

    python examples/finetune_with_reference.py

A point reaches one of four equally good goals. Demonstrations reach each of them, slowly and by detours; flow matching
trains a policy on them. GenPO++ then improves its return in three ways: freely, near its pre-trained self by the
divergence of the two (``GenPOLoss(reference=...)``), and with the velocity frozen, where a ``SteeredStart`` alone is
trained. The exact densities of the flow make each of them a few lines. What is printed is the return with random noise,
and the entropy of the goals that are reached: 1.39 nats are all four alike, 0 is one. About four minutes on a CPU.
"""

from __future__ import annotations

import argparse
from copy import deepcopy

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_genpo import ConsistentStart, FlowMatchingLoss, GenPOLoss, ReversibleFlowActor, SteeredStart, VelocityMLP
from torchrl_genpo.envs import make_env
from torchrl_genpo.modules import RunningNormalizer
from torchrl_genpo.training import evaluate

BATCH = 2048
RADIUS, NUM_GOALS = 5.0, 4
SPEED, NOISE = 0.4, 0.25  # of a step of a demonstration, which is neither as slow nor as straight as would be best
REFERENCE_COEFF = {"freely": 0.0, "near itself": 0.3, "steered": 0.5}
"""The weight of the divergence from the pre-trained policy, for each way of fine-tuning."""


def demonstrate(episodes: int, steps: int = 12) -> TensorDict:
    """Makes positions and velocities ``[episodes * steps, 2]`` of walks to a goal that each walk chooses for itself."""
    angle = torch.randint(NUM_GOALS, (episodes, 1)) * (2 * torch.pi / NUM_GOALS)
    goals = RADIUS * torch.cat([angle.cos(), angle.sin()], -1)
    position, walk = 0.1 * torch.randn(episodes, 2), []
    for _ in range(steps):
        action = SPEED * nn.functional.normalize(goals - position, dim=-1) + NOISE * torch.randn(episodes, 2)
        walk.append(TensorDict(observation=position, action=action, batch_size=[episodes]))
        position = position + action
    return torch.stack(walk, 1).reshape(-1)


def make_actor(velocity: VelocityMLP, is_steered: bool = False) -> ReversibleFlowActor:
    """Integrates a velocity from where it was trained to begin."""
    start = ConsistentStart(tau=0.1)
    return ReversibleFlowActor(velocity, start=SteeredStart(start, 2, velocity.context_dim) if is_steered else start)


def pretrain(data: TensorDict, iterations: int) -> VelocityMLP:
    """Trains a velocity on the demonstrations by flow matching."""
    velocity = VelocityMLP(in_features=2, action_dim=2, num_cells=(128, 128))
    loss = FlowMatchingLoss(ReversibleFlowActor(velocity))
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    for _ in range(iterations):
        optimizer.zero_grad()
        loss(data[torch.randint(len(data), (512,))])["loss_flow_matching"].backward()
        optimizer.step()
    return velocity


def finetune(env: EnvBase, velocity: VelocityMLP, way: str, frames: int) -> ReversibleFlowActor:
    """Improves a copy of the policy by PPO with exact ratios, in one of the three ways."""
    is_steered = way == "steered"
    actor = make_actor(deepcopy(velocity).requires_grad_(not is_steered), is_steered)
    coeff = REFERENCE_COEFF[way]
    near = {"reference": actor, "reference_coeff": coeff} if coeff else {}
    critic = make_critic()
    loss = GenPOLoss(actor, critic, normalize_advantage=True, **near)
    train(env, actor, critic, loss, frames, lr=1e-3 if is_steered else 1e-4)
    return actor


def make_critic() -> TensorDictSequential:
    """Builds a value network with a normaliser of its own, for the policy keeps the units that it was trained in."""
    value = MLP(in_features=2, out_features=1, num_cells=[64, 64], activation_class=nn.Tanh)
    return TensorDictSequential(RunningNormalizer(2), ValueOperator(value, in_keys=["normalized_observation"]))


def train(
    env: EnvBase, policy: nn.Module, critic: TensorDictSequential, loss: ClipPPOLoss, frames: int, lr: float
) -> None:
    """Runs PPO as any script of TorchRL would; every output of the loss called ``loss_*`` is minimised."""
    gae = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    trained = [p for p in loss.actor_network_params.parameters() if p.requires_grad]
    values = {"params": loss.critic_network_params.parameters(), "lr": 1e-3}
    optimizer = torch.optim.Adam([{"params": trained, "lr": lr}, values])
    collector = Collector(
        env, policy, frames_per_batch=BATCH, total_frames=frames, auto_register_policy_transforms=False
    )
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(BATCH), sampler=SamplerWithoutReplacement(), batch_size=512
    )
    for iteration, data in enumerate(collector):
        data["next", "reward"] *= 0.05  # values of order one suit the critic better than values of a hundred
        critic[0].update(data["observation"])  # its normaliser
        for _ in range(5):
            with torch.no_grad():
                gae(data)
            buffer.empty()
            buffer.extend(data.reshape(-1))
            for batch in buffer:
                out = loss(batch)
                # the critic first, for it knows nothing yet
                terms = ["loss_critic"] if iteration < 5 else [key for key in out.keys() if key.startswith("loss_")]
                optimizer.zero_grad()
                sum(out[key] for key in terms).backward()
                nn.utils.clip_grad_norm_(trained, 0.5)
                optimizer.step()
        collector.update_policy_weights_()
    collector.shutdown(close_env=False)


def measure(env: EnvBase, actor: ReversibleFlowActor, seed: int) -> tuple[float, float, float]:
    """Returns return, success and entropy of the reached goals, with random noise."""
    results = evaluate(env, actor, seed, rounds=5)
    value, success, entropy = (results[f"eval/random_noise/{name}"] for name in ("return", "success", "goal_entropy"))
    return value, success, entropy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrain-iterations", type=int, default=3000)
    parser.add_argument("--frames", type=int, default=48 * BATCH)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # small networks are no faster with more
    torch.manual_seed(options.seed)
    env = make_env("multi_goal", num_envs=32, seed=options.seed)
    velocity = pretrain(demonstrate(500), options.pretrain_iterations)

    for way in ("pre-trained", *REFERENCE_COEFF):
        actor = make_actor(velocity) if way == "pre-trained" else finetune(env, velocity, way, options.frames)
        value, success, entropy = measure(env, actor, options.seed)
        print(f"{way:>12}: return {value:5.0f}, success {success:.2f}, entropy of the goals {entropy:.2f}", flush=True)


if __name__ == "__main__":
    main()
