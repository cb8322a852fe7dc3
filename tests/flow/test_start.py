"""Starts know their density, and refuse what makes no sense."""

from __future__ import annotations

import pytest
import torch

from torchrl_genpo import ConsistentStart, IndependentStart, ReversibleFlow, ReversibleSolver
from torchrl_genpo.flow import ConditionedVelocity


def test_unit_start_is_the_standard_normal_pair():
    start, solver = IndependentStart(), ReversibleSolver()
    x, memory = torch.randn(2, 10, 3)
    assert start.from_noise(None, x, memory, solver=solver) == start.to_noise(None, x, memory, solver=solver)
    assert start.log_abs_det(None, 3, solver=solver) == 0
    assert not list(start.parameters()) and start.has_constant_entropy


@pytest.mark.parametrize("tau", [0, -1, float("nan"), "large"])
def test_tau_that_gives_no_density_is_refused_with_the_reason(tau):
    with pytest.raises(ValueError, match=r"positive finite number.*no density"):
        ConsistentStart(tau)


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="action_dim must be at least 1, got 0"):
        ConsistentStart(0.1, action_dim=0)


def test_consistent_memory_is_where_the_flow_was_up_to_tau():
    velocity, solver = (lambda x, t: x + 1), ReversibleSolver(num_steps=4)
    noise, memory_noise = torch.randn(2, 5, 3)
    x, memory = ConsistentStart(0.1).from_noise(velocity, noise, memory_noise, solver=solver)
    torch.testing.assert_close(x, noise)
    torch.testing.assert_close(memory, x - 0.25 * (x + 1) + 0.1 * memory_noise)


def test_a_learned_tau_has_the_gradient_of_the_entropy():
    start = ConsistentStart(0.2, action_dim=3)
    assert not start.has_constant_entropy
    flow = ReversibleFlow(lambda x, t: x, 3, ReversibleSolver(), start)
    (gradient,) = torch.autograd.grad(flow.entropy(), start.log_tau)
    torch.testing.assert_close(gradient, torch.ones(3))
    with torch.no_grad():
        start.log_tau.add_(1)
    start.reset_parameters()
    torch.testing.assert_close(start.log_tau.exp(), torch.full((3,), 0.2))


@pytest.mark.parametrize("num_steps", [1, 3, 5])
@pytest.mark.parametrize("start", [IndependentStart(), ConsistentStart(0.1), ConsistentStart(0.3, 2)])
def test_the_width_is_the_deviation_of_an_action_without_a_velocity(start, num_steps):
    torch.manual_seed(0)
    solver = ReversibleSolver(num_steps)
    velocity = ConditionedVelocity(lambda x, t, context: 0 * x, torch.randn(4))
    actions = ReversibleFlow(velocity, 2, solver, start, (50_000,)).sample()[0]
    torch.testing.assert_close(actions.std(0), start.width(solver).detach().expand(2), rtol=0.02, atol=0)
