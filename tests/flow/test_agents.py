# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Velocities that mix several agents: their densities are those of all agents together."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale
from torch import nn

from torchrl_genpo import ReversibleFlowActor, ReversibleSolver, VelocityMLP

OBS, AGENTS, D = 3, 2, 1


class Mixing(VelocityMLP):
    """A velocity in which each agent sees the mean state of all."""

    def forward(self, x, t, context):
        return super().forward(x + x.mean(-2, keepdim=True), t, context) + torch.sin(x.flip(-2))


def make_actor():
    torch.manual_seed(0)
    velocity = Mixing(OBS, D, (16,))
    nn.init.normal_(velocity.trunk[-1].weight, std=0.5)
    gaussian = nn.Sequential(nn.Linear(OBS, D), AddStateIndependentNormalScale(D, init_value=-0.3))
    return ReversibleFlowActor(velocity, solver=ReversibleSolver(3), gaussian=gaussian).double()


def observe(*shape):
    return TensorDict(observation=torch.randn(*shape, AGENTS, OBS).double(), batch_size=shape)


def test_the_sum_over_mixed_agents_is_the_density_of_a_brute_force_jacobian():
    actor = make_actor()
    td = actor(observe(1))
    dist = actor.get_dist(td.select("observation"))
    noise = torch.stack(dist.to_noise(td["action"], td["action_memory"])).flatten()

    def push(noise):
        return torch.stack(dist.from_noise(*noise.view(2, 1, AGENTS, D))).flatten()

    jacobian = torch.autograd.functional.jacobian(push, noise)
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum() - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(td["action_log_prob"].sum(), exact)


def test_the_density_of_the_actions_alone_is_that_of_agents_that_the_batch_size_counts():
    actor = make_actor()
    td = actor(observe(3)).detach()
    with pytest.raises(ValueError, match=r"Actions \[3, 2, 1\] in a tensordict of batch size \[3\]"):
        actor.action_log_prob(td)
    td.batch_size = [3, AGENTS]
    assert actor.action_log_prob(td).shape == (3, AGENTS)
