"""Starts know their density, and refuse what makes no sense."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from torchrl_genpo import ConsistentStart, IndependentStart, ReversibleFlow, ReversibleSolver
from torchrl_genpo.flow import ConditionedVelocity


def test_unit_start_is_the_standard_normal_pair():
    start = IndependentStart()
    x, memory, log_prob = start.sample(None, (10, 3))
    normal = Normal(0.0, 1.0)
    expected = normal.log_prob(x).sum(-1) + normal.log_prob(memory).sum(-1)
    torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(start.log_prob(None, x, memory), expected)
    assert not list(start.parameters()) and start.has_constant_entropy


def density_along_and_across(x, memory, scale, solver=None):
    """Of a pair that is independent along and across the direction that becomes the action."""
    (a, b), _ = IndependentStart().free_pair(solver or ReversibleSolver()).tolist()
    norm = math.hypot(a, b)
    along, across = (a * x + b * memory) / norm, (a * memory - b * x) / norm
    return Normal(0.0, scale[0]).log_prob(along).sum(-1) + Normal(0.0, scale[1]).log_prob(across).sum(-1)


def test_learned_scale_is_an_exact_density_with_a_gradient():
    start = IndependentStart("learned", 3)
    torch.testing.assert_close(start.log_scale.exp(), torch.ones(2, 3))
    with torch.no_grad():
        start.log_scale.normal_()
    x, memory, log_prob = start.sample(None, (10, 3))
    scale = start.log_scale.exp()
    expected = density_along_and_across(x, memory, scale)
    torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(start.log_prob(None, x, memory), expected)
    torch.testing.assert_close(start.entropy(None, 3), Normal(0.0, scale).entropy().sum())
    (gradient,) = torch.autograd.grad(start.entropy(None, 3), start.log_scale)
    torch.testing.assert_close(gradient, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("other",), "one of 'unit', 'learned'"),
        (("learned",), "needs action_dim"),
        (("unit", 3), "no effect"),
        (("learned", 3, 0.0), "initial_scale must be positive"),
        (("unit", None, 2.0), "initial_scale=2.0 has no effect"),
    ],
)
def test_nonsense_is_refused(args, message):
    with pytest.raises(ValueError, match=message):
        IndependentStart(*args)


@pytest.mark.parametrize("tau", [0, -1, float("nan"), "large"])
def test_tau_that_gives_no_density_is_refused_with_the_reason(tau):
    with pytest.raises(ValueError, match=r"positive finite number.*no density"):
        ConsistentStart(tau)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learn_tau": "all"}, "None, 'shared' or 'per_dimension'"),
        ({"learn_tau": "per_dimension"}, "needs action_dim"),
        ({"action_dim": 3}, "no effect"),
    ],
)
def test_consistent_start_refuses_nonsense(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ConsistentStart(**kwargs)


def test_consistent_memory_is_where_the_flow_was_up_to_tau():
    velocity, solver = (lambda x, t: x + 1), ReversibleSolver(num_steps=4)
    noise, memory_noise = torch.randn(2, 5, 3)
    x, memory = ConsistentStart(0.1).from_noise(velocity, noise, memory_noise, solver=solver)
    torch.testing.assert_close(x, noise)
    torch.testing.assert_close(memory, x - 0.25 * (x + 1) + 0.1 * memory_noise)


@pytest.mark.parametrize("learn_tau", ["shared", "per_dimension"])
def test_learned_tau_has_the_gradient_of_the_entropy(learn_tau):
    start = ConsistentStart(0.2, learn_tau, action_dim=3 if learn_tau == "per_dimension" else None)
    (gradient,) = torch.autograd.grad(start.entropy(None, 3), start.log_tau)
    torch.testing.assert_close(gradient.sum(), torch.tensor(3.0))
    with torch.no_grad():
        start.log_tau.add_(1)
    start.reset_parameters()
    torch.testing.assert_close(start.log_tau.exp(), torch.full_like(start.log_tau, 0.2))


def test_initial_scale():
    start = IndependentStart("learned", 3, initial_scale=1.4)
    torch.testing.assert_close(start.log_scale.exp(), torch.full((2, 3), 1.4))


@pytest.mark.parametrize("std", [0.3, 1.0])
@pytest.mark.parametrize("num_steps", [1, 3, 5])
@pytest.mark.parametrize(
    "start",
    [
        IndependentStart("learned", 2),
        ConsistentStart(0.1, scale="learned", action_dim=2),
        ConsistentStart(0.1, "per_dimension", "learned", 2),
    ],
    ids=["learned", "consistent", "consistent_learned"],
)
def test_first_actions_have_the_deviation_that_was_chosen(start, num_steps, std):
    solver = ReversibleSolver(num_steps)
    start.set_first_std(std, solver)
    velocity = ConditionedVelocity(lambda x, t, context: 0 * x, torch.randn(4))
    actions = ReversibleFlow(velocity, 2, solver, start, (50_000,)).sample()[0]
    torch.testing.assert_close(actions.std(0), torch.full((2,), std), rtol=0.02, atol=0)


def test_a_scale_is_not_learned_below_its_floor():
    start, solver = IndependentStart("learned", 2), ReversibleSolver()
    start.set_first_std(0.5, solver, min_std=0.2)
    with torch.no_grad():
        start.log_scale.fill_(-9.0)
    x, memory, log_prob = start.sample(None, (50_000, 2))
    torch.testing.assert_close(start.log_prob(None, x, memory), log_prob)
    actions = ReversibleFlow(lambda x, t: 0 * x, 2, solver, start, (50_000,)).sample()[0]
    torch.testing.assert_close(actions.std(0), torch.full((2,), 0.2), rtol=0.02, atol=0)
    other = IndependentStart("learned", 2)
    assert other.settings != start.settings, "the state of one would be another density of the other"


@pytest.mark.parametrize(
    ("start", "std", "min_std", "message"),
    [
        (IndependentStart(), 0.5, 0.0, "no effect on a scale of 1"),
        (IndependentStart("learned", 2), 0.0, 0.0, "finite and 0 <= min_std <= std"),
        (IndependentStart("learned", 2), 0.5, 0.6, "got 0.6 and 0.5"),
        (IndependentStart("learned", 2), math.inf, 0.0, "finite"),
        (ConsistentStart(0.9, scale="learned", action_dim=2), 0.3, 0.0, "use a smaller tau"),
    ],
)
def test_deviations_that_cannot_be_are_refused(start, std, min_std, message):
    with pytest.raises(ValueError, match=message):
        start.set_first_std(std, ReversibleSolver(), min_std)
