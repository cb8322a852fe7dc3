"""The density of the action alone agrees with quadrature over the memory, and is estimated without bias."""

from __future__ import annotations

import pytest
import torch

from torchrl_genpo import ConsistentStart, IndependentStart, ReversibleFlow, ReversibleSolver


def make_dist(d=1, solver=None, start=None, batch_shape=(), gain=2.0):
    field = lambda x, t: gain * torch.sin(2 * x + 3 * t)  # noqa: E731  # bends strongly, makes several modes
    return ReversibleFlow(
        field, d, solver or ReversibleSolver(), start or IndependentStart(), batch_shape, dtype=torch.float64
    )


def quadrature(dist, actions):
    """Log density of actions [n, 1] by a fine grid over the memory."""
    memories = torch.linspace(-15, 15, 60_001, dtype=torch.float64)
    rows = []
    for action in actions:
        pair = dist.log_prob(action.expand(len(memories), 1), memories.unsqueeze(-1))
        rows.append(pair.logsumexp(0) + (memories[1] - memories[0]).log())
    return torch.stack(rows)


@pytest.mark.parametrize("start", [IndependentStart(), ConsistentStart(0.3)])
@pytest.mark.parametrize("sigma", [0.5, 0.75, 1.0])
@pytest.mark.parametrize(("gain", "median", "most"), [(1.0, 0.01, 0.03), (2.0, 0.03, 0.3)])
def test_agrees_with_quadrature(gain, median, most, sigma, start):
    torch.manual_seed(0)
    dist = make_dist(solver=ReversibleSolver(5, sigma), start=start, gain=gain)
    actions = dist.sample((40,))[0]
    error = (dist.action_log_prob(actions, 4096).log_prob - quadrature(dist, actions)).abs()
    # at gain 2 the memory has modes of their own basin that a search may miss: the tail of the errors is longer
    assert error.median() < median and error.quantile(0.9) < most


def test_density_is_unbiased_even_with_few_samples():
    torch.manual_seed(1)
    dist = make_dist()
    actions = dist.sample((1,))[0].expand(4000, 1)
    density = dist.action_log_prob(actions, 4).log_prob.exp()
    standard_error = density.std() / len(density) ** 0.5
    assert (density.mean() - quadrature(dist, actions[:1]).exp()).abs() < 4 * standard_error


def test_density_of_the_action_integrates_to_one():
    torch.manual_seed(2)
    dist = make_dist()
    grid = torch.linspace(-6, 6, 1201, dtype=torch.float64).unsqueeze(-1)
    density = dist.action_log_prob(grid, 256).log_prob.exp()
    assert abs(density.sum() * 0.01 - 1) < 0.02


@pytest.mark.parametrize("solver", [ReversibleSolver(), ReversibleSolver(20, 0.75)])
@pytest.mark.parametrize(("d", "size"), [(1, 48), (6, 20), (12, 10)])  # what is lost in each dimension multiplies
def test_the_proposal_is_close_where_the_flow_is_smooth(d, size, solver):
    torch.manual_seed(3)
    dist = make_dist(d, solver, batch_shape=(32,), gain=0.5)
    (action, memory), _ = dist.rsample_and_log_prob()
    for beginning in (None, memory):
        assert dist.action_log_prob(action, 64, beginning).effective_sample_size.mean() > size


def test_the_estimate_has_a_gradient():
    torch.manual_seed(4)
    action = torch.tensor([[0.7]], dtype=torch.float64)
    location = torch.tensor([[0.2], [1.3]], dtype=torch.float64, requires_grad=True)
    loc, scale = location.unsqueeze(1)
    dist = ReversibleFlow(
        lambda x, t: 0 * x, 1, ReversibleSolver(), IndependentStart(), (1,), dtype=torch.float64, loc=loc, scale=scale
    )
    # without a velocity the action is normal
    deviation = scale * IndependentStart().width(ReversibleSolver())
    expected = torch.distributions.Normal(loc, deviation).log_prob(action).sum()
    estimate = dist.action_log_prob(action, 2048).log_prob.sum()
    torch.testing.assert_close(estimate, expected, atol=0.02, rtol=0)
    (ours,) = torch.autograd.grad(estimate, location)
    (exact,) = torch.autograd.grad(expected, location)
    torch.testing.assert_close(ours, exact, atol=0.05, rtol=0)


@pytest.mark.parametrize("num_samples", [0, -3, 2.5])
def test_a_number_of_samples_below_one_is_refused(num_samples):
    dist = make_dist()
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1"):
        dist.action_log_prob(torch.zeros(1, 1), num_samples)


def test_a_number_that_is_not_finite_takes_the_density_of_its_own_action_alone():
    dist = make_dist(2, batch_shape=(4,), gain=0.5)
    action = dist.sample()[0]
    action[1, 0] = float("nan")
    for memory in (None, torch.zeros_like(action)):
        log_prob = dist.action_log_prob(action, memory=memory).log_prob
        assert log_prob.isfinite().tolist() == [True, False, True, True]
