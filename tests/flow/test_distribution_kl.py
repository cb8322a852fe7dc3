# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The divergence of two flows, as torch.distributions computes it."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential
from torch.distributions import kl_divergence

from torchrl_genpo import IndependentStart, ReversibleFlow, ReversibleFlowActor, ReversibleSolver, VelocityMLP
from torchrl_genpo.modules import Squash


def make_flow(scale, rows=20_000):
    start = IndependentStart("learned", 2, initial_scale=scale).double()
    return ReversibleFlow(lambda x, t: -x, 2, ReversibleSolver(), start, (rows,), dtype=torch.float64)


def test_its_mean_is_the_closed_form_of_two_scales():
    torch.manual_seed(0)
    # one map of both: the divergence is that of their starts, four normal numbers of deviation 0.8 and 1.2
    exact = 4 * (math.log(1.2 / 0.8) + 0.8**2 / (2 * 1.2**2) - 0.5)
    value = kl_divergence(make_flow(0.8), make_flow(1.2))
    assert abs(value.mean() - exact) < 5 * value.std() / len(value) ** 0.5 < 0.05


def test_it_is_zero_for_a_policy_and_itself_and_trains_both_sides_behind_a_squash():
    torch.manual_seed(0)
    data = TensorDict(observation=torch.randn(64, 3), batch_size=[64])
    flows = []
    for _ in range(2):
        actor = ReversibleFlowActor(VelocityMLP(3, 2, (16,)), action_key="raw_action")
        policy = ProbabilisticTensorDictSequential(actor, Squash(-torch.ones(2), torch.ones(2)))
        flows.append((actor, policy.get_dist(data).dists["raw_action"]))
    assert kl_divergence(flows[0][1], flows[0][1]).abs().max() < 1e-4
    kl_divergence(flows[0][1], flows[1][1]).mean().backward()
    for actor, _ in flows:
        assert actor.velocity.trunk[-1].weight.grad.abs().sum() > 0


def test_two_shapes_have_no_divergence():
    with pytest.raises(ValueError, match="same shapes"):
        kl_divergence(make_flow(1.0, rows=3), make_flow(1.0, rows=4))
