# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What an actor says of stored data: ratios to another policy, and densities of actions without memories."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_genpo import ConsistentStart, ReversibleFlowActor, ReversibleSolver, VelocityMLP
from torchrl_genpo.baselines import FPOActor


def test_a_log_ratio_is_that_of_any_two_policies():
    torch.manual_seed(0)
    data = TensorDict(observation=torch.randn(16, 3), batch_size=[16])
    actor = ReversibleFlowActor(VelocityMLP(3, 2, (16,)))
    reference = ReversibleFlowActor(
        VelocityMLP(3, 2, (8,)), solver=ReversibleSolver(3, 0.5), start=ConsistentStart(0.3)
    )
    data = reference(data)
    expected = actor.log_prob(data) - data["action_log_prob"]
    torch.testing.assert_close(actor.log_ratio(data, reference), expected, rtol=1e-4, atol=1e-4)
    # over actions of the reference the mean of the ratio is one, whatever the two are
    many = reference(TensorDict(observation=torch.randn(20_000, 3), batch_size=[20_000]))
    wide = ReversibleFlowActor(VelocityMLP(3, 2, (8,)), solver=ReversibleSolver(3, 0.5), start=ConsistentStart(0.25))
    ratio = wide.log_ratio(many, reference).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(ratio) ** 0.5 < 0.1
    with pytest.raises(TypeError, match="density of pairs"):
        actor.log_ratio(data, FPOActor(VelocityMLP(3, 2, (8,))))


def test_actions_of_demonstrations_are_scored_without_their_memory():
    torch.manual_seed(0)
    data = TensorDict(observation=torch.randn(8, 3), action=torch.randn(8, 2), batch_size=[8])
    actor = ReversibleFlowActor(VelocityMLP(3, 2, (16,)))
    # at first the velocity is nearly zero, so that the action is a linear map of normal noise
    width = actor.start.free_pair(actor.solver)[0].norm()
    expected = torch.distributions.Normal(0.0, width).log_prob(data["action"]).sum(-1)
    value = actor.action_log_prob(data, num_samples=256)
    torch.testing.assert_close(value, expected, rtol=0.02, atol=0.15)
    (-value.mean()).backward()
    assert actor.velocity.trunk[-1].weight.grad.abs().sum() > 0
