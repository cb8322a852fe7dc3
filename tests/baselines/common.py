"""What the tests of the baselines share: a smooth velocity, data, a bandit."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import nn
from torchrl.modules import MLP, ValueOperator

from torchrl_genpo import VelocityMLP

TARGET = torch.tensor([1.0, -0.5])


def make_velocity(action_dim: int = 2) -> VelocityMLP:
    """A network whose velocity is not nearly zero, as it is at first."""
    velocity = VelocityMLP(3, action_dim, (16, 16))
    nn.init.normal_(velocity.trunk[-1].weight, std=0.5)
    return velocity


def make_critic() -> ValueOperator:
    return ValueOperator(MLP(in_features=3, out_features=1, num_cells=[16]))


def collect(actor, size: int = 64, dtype: torch.dtype = torch.float32) -> TensorDict:
    """Actions of a policy for random observations, with random advantages and value targets."""
    data = actor(TensorDict(observation=torch.randn(size, 3, dtype=dtype), batch_size=[size])).detach()
    data["advantage"], data["value_target"] = torch.randn(2, size, 1, dtype=dtype)
    return data


def perturb(module: nn.Module, std: float = 0.05) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn_like(parameter))


def check_gradients(loss, data: TensorDict) -> None:
    """Every parameter of actor and critic gets a finite gradient that is not zero."""
    loss.zero_grad()
    out = loss(data)
    sum(out[key] for key in out.keys() if key.startswith("loss_")).backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def train_bandit(actor, loss, iterations: int = 40, lr: float = 3e-3) -> tuple[float, float]:
    """Trains on a bandit that pays minus the squared distance to a target; mean distance before and after."""

    def distance() -> float:
        with torch.no_grad():
            action = actor(TensorDict(observation=torch.zeros(512, 3), batch_size=[512]))["action"]
        return (action - TARGET).norm(dim=-1).mean().item()

    before, optimizer = distance(), torch.optim.Adam(loss.parameters(), lr=lr)
    for _ in range(iterations):
        with torch.no_grad():
            data = actor(TensorDict(observation=torch.zeros(256, 3), batch_size=[256]))
        reward = -(data["action"] - TARGET).square().sum(-1, keepdim=True)
        data["advantage"] = (reward - reward.mean()) / reward.std()
        data = loss.before_updates(data)
        for _ in range(4):
            optimizer.zero_grad()
            out = loss(data)
            sum(out[key] for key in out.keys() if key.startswith("loss_")).backward()
            nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
            optimizer.step()
    return before, distance()
