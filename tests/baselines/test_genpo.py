"""GenPO's coupling is inverted exactly, and its density is a density."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale
from torch import nn
from torch.distributions import Normal
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_genpo import IndependentStart, ReversibleFlow, ReversibleFlowActor
from torchrl_genpo.baselines import AlternatingCoupling, DummyActionLoss
from torchrl_genpo.flow import ConditionedVelocity

from .common import check_gradients, collect, make_critic, make_velocity, train_bandit

RULES = {
    "alternating": lambda n: AlternatingCoupling(n, 0.95),
    "alternating, much mixing": lambda n: AlternatingCoupling(n, 0.7),
    "alternating, no mixing": lambda n: AlternatingCoupling(n, 1.0),
}


def random_velocity(d: int):
    """A smooth nonlinear field in float64 that depends on the time."""
    weight_in, weight_out = torch.randn(16, d, dtype=torch.float64), torch.randn(d, 16, dtype=torch.float64) / 4
    return lambda x, t: torch.tanh(x @ weight_in.T + 3 * t) @ weight_out.T


@pytest.mark.parametrize("rule", RULES)
def test_invert_undoes_integrate_to_1e_10(rule):
    velocity, solver = random_velocity(7), RULES[rule](5)
    noise = torch.randn(2, 1000, 7, dtype=torch.float64)
    recovered = solver.invert(velocity, *solver.integrate(velocity, *noise))
    assert (torch.stack(recovered) - noise).abs().max() < 1e-10


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize("d", [1, 3])
def test_log_abs_det_equals_autograd_jacobian(d, num_steps, rule):
    velocity, solver = random_velocity(d), RULES[rule](num_steps)
    jacobian = torch.autograd.functional.jacobian(
        lambda z: torch.cat(solver.integrate(velocity, *z.split(d))), torch.randn(2 * d, dtype=torch.float64)
    )
    assert abs(torch.linalg.slogdet(jacobian).logabsdet.item() - solver.log_abs_det(d)) < 1e-10


@pytest.mark.parametrize("rule", RULES)
def test_density_of_the_pair_equals_that_of_its_noise_over_the_autograd_jacobian(rule):
    start = IndependentStart()
    dist = ReversibleFlow(random_velocity(2), 2, RULES[rule](4), start, dtype=torch.float64)

    def flat_map(z):
        noise = start.from_noise(dist.velocity, *z.split(2), solver=dist.solver)
        return torch.cat(dist.solver.integrate(dist.velocity, *noise))

    z = torch.randn(4, dtype=torch.float64)
    log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(flat_map, z)).logabsdet
    expected = Normal(0.0, 1.0).log_prob(z).sum() - log_det
    torch.testing.assert_close(dist.log_prob(*flat_map(z).split(2)), expected, atol=1e-10, rtol=0)


def test_alternating_coupling_is_genpos_rule():
    """One step, written out for a velocity that is linear in state and time."""
    solver, p = AlternatingCoupling(num_steps=1, mixing=0.9), 0.9
    x, y = torch.tensor([0.3]), torch.tensor([-0.7])
    x1 = x + 2 * y
    y1 = y + 2 * x1
    x2 = p * x1 + (1 - p) * y1
    y2 = p * y1 + (1 - p) * x2
    action, memory = solver.integrate(lambda x, t: 2 * x + t, x, y)
    torch.testing.assert_close(action, (x2 + y2) / 2)
    torch.testing.assert_close(memory, (x2 - y2) / 2)


def test_five_steps_cost_ten_evaluations_in_both_directions():
    calls = []

    def network(x, t, context):
        calls.append(t)
        return -x

    solver, pair = AlternatingCoupling(5), torch.randn(2, 4, 3)
    for way in (solver.integrate, solver.invert):
        calls.clear()
        way(ConditionedVelocity(network), *pair)
        assert len(calls) == 10


def make_gaussian():
    return nn.Sequential(nn.Linear(3, 2), AddStateIndependentNormalScale(2))


def test_ratio_is_one_before_the_first_step_and_every_parameter_gets_a_gradient():
    actor = ReversibleFlowActor(make_velocity(), solver=AlternatingCoupling(), gaussian=make_gaussian())
    data = collect(actor)
    assert (actor.log_prob(data) - data["action_log_prob"]).abs().max() < 1e-4
    loss = DummyActionLoss(actor, make_critic())
    out = loss(data)
    assert (out["max_ratio"] - 1).abs() < 1e-4 and out["inversion_error"] < 1e-4
    check_gradients(loss, data)


def test_zero_noise_is_deterministic():
    actor = ReversibleFlowActor(make_velocity(), solver=AlternatingCoupling())
    td = TensorDict(observation=torch.randn(8, 3), batch_size=[8])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        first, second = actor(td.clone()), actor(td.clone())
    assert torch.equal(first["action"], second["action"])
    torch.testing.assert_close(first["action_memory"], torch.zeros(8, 2), atol=0.2, rtol=0)  # both began at zero


def test_the_compression_loss_is_the_distance_of_fresh_actions_from_their_dummies_and_closes_it():
    actor = ReversibleFlowActor(make_velocity(), solver=AlternatingCoupling())
    loss = DummyActionLoss(actor, None, critic_coeff=None, compression_coeff=0.5)
    data = collect(actor, 4096)
    # |x - y| = 2 |memory|
    expected = 0.5 * (2 * data["action_memory"]).norm(dim=-1).mean()
    torch.testing.assert_close(loss(data)["loss_compression"], expected, rtol=0.1, atol=0)
    assert "loss_compression" in loss.out_keys
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        out = loss(data)
        out["loss_compression"].backward()
        optimizer.step()
    assert loss(data)["loss_compression"] < 0.8 * expected
    assert "loss_compression" not in DummyActionLoss(actor, None, critic_coeff=None, compression_coeff=0)(data).keys()


def test_learns_a_bandit():
    velocity = make_velocity()
    nn.init.zeros_(velocity.trunk[-1].weight)
    actor = ReversibleFlowActor(velocity, solver=AlternatingCoupling(), gaussian=make_gaussian())
    before, after = train_bandit(actor, DummyActionLoss(actor, None, critic_coeff=None))
    assert after < 0.6 * before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AlternatingCoupling(mixing=0.0), "mixing must lie in"),
        (lambda: AlternatingCoupling(num_steps=0), "num_steps must be an integer"),
        (lambda: AlternatingCoupling(num_steps=20, mixing=0.5), "cannot be inverted in float64"),
    ],
)
def test_mistakes_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_compression_needs_registers():
    with pytest.raises(TypeError, match="ReversibleSolver"):
        DummyActionLoss(ReversibleFlowActor(make_velocity()), None, critic_coeff=None)
