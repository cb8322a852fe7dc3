# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A steered start has an exact density, begins as its base, and leaves the flow alone."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.modules import ValueOperator

from torchrl_genpo import (
    ConsistentStart,
    GenPOLoss,
    IndependentStart,
    ReversibleFlow,
    ReversibleFlowActor,
    ReversibleSolver,
    SteeredStart,
    VelocityMLP,
)
from torchrl_genpo.flow import ConditionedVelocity

D = 2
BASES = {
    "unit": IndependentStart,
    "consistent": lambda: ConsistentStart(0.2),
    "consistent_learned": lambda: ConsistentStart(0.2, D),
}


def make_flow(base, rows=6, seed=0, is_steered=True):
    torch.manual_seed(seed)
    velocity = VelocityMLP(3, D, (8,)).double()
    with torch.no_grad():
        velocity.trunk[-1].weight.normal_()
    start = SteeredStart(BASES[base](), D, velocity.context_dim, (8,)).double()
    if is_steered:
        with torch.no_grad():
            start.network[-1].weight.normal_(std=0.3)
    context = velocity.condition(torch.randn(rows, 3, dtype=torch.float64))
    bound = ConditionedVelocity(velocity, context)
    return ReversibleFlow(bound, D, ReversibleSolver(3), start, (rows,), dtype=torch.float64)


@pytest.mark.parametrize("base", BASES)
def test_its_density_is_that_of_an_autograd_jacobian(base):
    flow = make_flow(base)
    noise = torch.randn(6, 2 * D, dtype=torch.float64)

    def pair_of(noise):
        pair = flow.start.from_noise(flow.velocity, *noise.split(D, -1), solver=flow.solver)
        return torch.cat(flow.solver.integrate(flow.velocity, *pair), -1)

    pair = pair_of(noise)
    jacobian = torch.autograd.functional.jacobian(pair_of, noise)[torch.arange(6), :, torch.arange(6)]
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(-1) - jacobian.det().abs().log()
    torch.testing.assert_close(flow.log_prob(*pair.split(D, -1)), expected)
    torch.testing.assert_close(torch.cat(flow.to_noise(*pair.split(D, -1)), -1), noise)


def test_at_first_it_is_its_base_and_within_its_bound_ever_after():
    flow = make_flow("consistent_learned", is_steered=False)
    pair = flow.sample()
    torch.testing.assert_close(flow.log_prob(*pair), flow.with_start(flow.start.base).log_prob(*pair))
    with torch.no_grad():
        flow.start.network[-1].bias.fill_(1e6)
    zeros = torch.zeros(6, D, dtype=torch.float64)
    moved = flow.start.base.to_noise(
        flow.velocity, *flow.start.from_noise(flow.velocity, zeros, zeros, solver=flow.solver), solver=flow.solver
    )
    assert (torch.cat(moved).abs() <= 3 + 1e-9).all()
    hidden = flow.start.network[0].weight.clone()
    flow.start.reset_parameters()
    torch.testing.assert_close(flow.log_prob(*pair), flow.with_start(flow.start.base).log_prob(*pair))
    assert (flow.start.network[0].weight != hidden).all()


def test_to_steer_a_trained_start_leaves_it_as_it_was_trained():
    base = ConsistentStart(0.3, D)
    base.log_tau.data.fill_(-3.0)
    start = SteeredStart(base, D, 8)
    start.reset_parameters()
    assert (base.log_tau == -3.0).all()


def test_ppo_trains_the_start_alone_and_keeps_it_near_a_reference():
    torch.manual_seed(0)
    velocity = VelocityMLP(3, D, (16,)).requires_grad_(False)
    actor = ReversibleFlowActor(velocity, start=SteeredStart(ConsistentStart(0.2), D, velocity.context_dim))
    loss = GenPOLoss(actor, ValueOperator(torch.nn.Linear(3, 1)), reference=actor, reference_coeff=0.1)
    data = actor(TensorDict(observation=torch.randn(64, 3), batch_size=[64])).detach()
    data["advantage"], data["value_target"] = torch.randn(2, 64, 1)
    trained = [p for p in loss.actor_network_params.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for step in range(3):
        out = loss(data)
        if step == 0:
            assert out["kl_reference"].abs() < 1e-6 and out["kl_approx"].abs() < 1e-4
        sum(value for key, value in out.items() if key.startswith("loss_")).backward()
        optimizer.step()
    assert loss(data)["kl_reference"] > 1e-6
    with loss.actor_network_params.to_module(loss.actor_network):
        assert loss.actor_network.start.network[-1].weight.abs().sum() > 0
    assert velocity.trunk[-1].weight.grad is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SteeredStart(SteeredStart(IndependentStart(), D, 8), D, 8), "steered already"),
        (lambda: SteeredStart(ConsistentStart(0.2, 3), D, 8), "action_dim=3, not 2"),
        (
            lambda: ReversibleFlow(lambda x, t: x, D, ReversibleSolver(), SteeredStart(IndependentStart(), D, 8)),
            "ConditionedVelocity",
        ),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
