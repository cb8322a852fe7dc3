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

from torchrl_genpo import (
    ConsistentStart,
    IndependentStart,
    ReversibleFlow,
    ReversibleFlowActor,
    ReversibleSolver,
    SteeredStart,
    VelocityMLP,
)
from torchrl_genpo.flow import ConditionedVelocity
from torchrl_genpo.modules import Squash


def make_flow(scale, rows=20_000):
    scale = torch.full((rows, 2), scale, dtype=torch.float64)
    solver, start = ReversibleSolver(), IndependentStart()
    weight = start.memory_weight(solver)
    return ReversibleFlow(
        lambda x, t: 0 * x, 2, solver, start, (rows,), dtype=torch.float64, scale=scale, memory_weight=weight
    )


def test_its_mean_is_the_closed_form_of_two_scales():
    torch.manual_seed(0)
    # of two normal numbers of deviation 0.8 and 1.2, which the memory is not
    exact = 2 * (math.log(1.2 / 0.8) + 0.8**2 / (2 * 1.2**2) - 0.5)
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


def steered(base):
    start = SteeredStart(base, 2, 8, (8,)).double()
    with torch.no_grad():
        start.network[-1].weight.normal_(std=0.3)
    return start


STARTS = {
    "unit": IndependentStart,
    "steered": lambda: steered(IndependentStart()),
    "consistent": lambda: ConsistentStart(0.3),
    "consistent_learned": lambda: ConsistentStart(0.2, 2).double(),
    "consistent_steered": lambda: steered(ConsistentStart(0.2)),
}


@pytest.mark.parametrize(("p", "q"), [(p, q) for p in STARTS for q in STARTS if p != q])
def test_the_closed_form_of_two_starts_is_the_mean_over_samples(p, q):
    torch.manual_seed(0)
    starts = STARTS[p](), STARTS[q]()
    velocity = VelocityMLP(3, 2, (8,)).double()
    context = velocity.condition(torch.randn(4, 3, dtype=torch.float64))
    flow = ReversibleFlow(
        ConditionedVelocity(velocity, context), 2, ReversibleSolver(3), starts[0], (4,), dtype=torch.float64
    )
    other = flow.with_start(starts[1])
    pair, log_prob = flow.rsample_and_log_prob((20_000,))
    samples = log_prob - other.log_prob(*pair)
    error = 5 * samples.std(0) / len(samples) ** 0.5
    is_closed = ("consistent" in p) == ("consistent" in q)
    value = flow.kl_divergence(other, num_samples=1 if is_closed else 20_000)
    assert ((value - samples.mean(0)).abs() < (1 if is_closed else 2) * error).all()
    if is_closed:
        torch.testing.assert_close(flow.kl_divergence(other), value, msg="it draws nothing")
    with pytest.raises(ValueError, match="num_samples must be an integer"):
        flow.kl_divergence(other, num_samples=0)
