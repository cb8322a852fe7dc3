"""PolicyFlow: its approximate ratio, its regulariser, and that it learns."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.distributions import Independent, Normal
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_genpo.baselines import PolicyFlowActor, PolicyFlowLoss
from torchrl_genpo.flow import ConditionedVelocity, midpoint

from .common import check_gradients, collect, make_critic, make_velocity, perturb, train_bandit


def make_loss(**kwargs):
    actor = PolicyFlowActor(make_velocity(), initial_scale=0.5)
    return actor, PolicyFlowLoss(actor, make_critic(), **kwargs)


def test_the_action_is_the_end_of_the_flow_plus_a_normal_residual():
    actor = PolicyFlowActor(make_velocity(), num_steps=3, initial_scale=0.5)
    data = collect(actor, 4096)
    velocity = ConditionedVelocity(actor.velocity, actor.velocity.condition(data["observation"]))
    torch.testing.assert_close(data["flow_end"], midpoint(velocity, data["flow_start"], 3))
    residual = data["action"] - data["flow_end"]
    assert (residual.std(0) - 0.5).abs().max() < 0.03  # the standard error is 0.006
    expected = Independent(Normal(data["flow_end"], 0.5), 1).log_prob(data["action"])
    torch.testing.assert_close(data["action_log_prob"], expected)
    torch.testing.assert_close(actor.log_prob(data), expected)


def test_ratio_is_one_before_the_first_step_and_every_parameter_gets_a_gradient():
    actor, loss = make_loss()
    data = loss.before_updates(collect(actor))
    out = loss(data)
    torch.testing.assert_close(out["max_ratio"], torch.tensor(1.0), atol=1e-5, rtol=0)
    assert out["clip_fraction"] == 0 and "loss_brownian" in loss.out_keys
    check_gradients(loss, data)


def test_the_ratio_is_that_of_normal_laws_around_the_change_of_the_velocity(monkeypatch):
    actor, loss = make_loss(clip_epsilon=0.9)
    data = loss.before_updates(collect(actor, 256))
    data["advantage"] = torch.ones(256, 1)
    time = torch.rand(256)
    monkeypatch.setattr(torch, "rand_like", lambda _: time)
    along = torch.lerp(data["flow_start"], data["flow_end"], time.unsqueeze(-1))

    def velocity():
        return actor.velocity(along, time, actor.velocity.condition(data["observation"])).detach()

    before = velocity()
    perturb(actor, 0.02)
    change = velocity() - before
    new = Independent(Normal(data["flow_end"] + change, actor.log_scale.detach().exp()), 1)
    ratio = (new.log_prob(data["action"]) - data["action_log_prob"]).exp()
    assert (ratio - 1).abs().max() > 0.05
    torch.testing.assert_close(loss(data)["loss_objective"], -ratio.clamp(max=1.9).mean(), atol=1e-4, rtol=1e-4)


def test_before_updates_moves_the_old_velocity_to_the_present_one():
    actor, loss = make_loss()
    data = loss.before_updates(collect(actor))
    perturb(actor)
    assert loss(data)["kl_approx"].abs() > 1e-3
    data = loss.before_updates(collect(actor))
    assert loss(data)["kl_approx"].abs() < 1e-5


def test_the_regulariser_is_smallest_at_the_velocity_of_brownian_motion():
    """For a flow at rest, x_1 = x_0 and old velocity zero, that is x / (1 - t)."""
    actor, loss = make_loss(brownian_coeff=1.0)
    nn.init.zeros_(actor.velocity.trunk[-1].weight)
    nn.init.zeros_(actor.velocity.trunk[-1].bias)
    data = loss.before_updates(collect(actor, 4096))
    torch.testing.assert_close(data["flow_start"], data["flow_end"])
    torch.testing.assert_close(loss(data)["loss_brownian"], data["flow_start"].square().mean())

    networks = iter([loss._velocity, lambda tensordict, params, x, time: x / (1 - time.unsqueeze(-1))])
    loss._velocity = lambda *arguments: next(networks)(*arguments)  # the old one, at rest, and then the new one
    assert loss(data)["loss_brownian"] < 1e-10


def test_zero_noise_leaves_out_start_and_residual():
    actor = PolicyFlowActor(make_velocity())
    td = TensorDict(observation=torch.randn(1, 3).expand(8, 3), batch_size=[8])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        data = actor(td.clone())
    assert torch.equal(data["action"], data["flow_end"]) and (data["flow_start"] == 0).all()


def test_the_state_of_the_loss_has_no_copy_of_the_old_policy():
    _, loss = make_loss()
    assert not any("behaviour" in key for key in loss.state_dict())


def test_learns_a_bandit():
    velocity = make_velocity()
    nn.init.zeros_(velocity.trunk[-1].weight)
    actor = PolicyFlowActor(velocity, num_steps=3, initial_scale=0.5)
    before, after = train_bandit(actor, PolicyFlowLoss(actor, None, critic_coeff=None))
    assert after < 0.7 * before


def test_an_old_velocity_that_was_never_kept_is_asked_for():
    actor, loss = make_loss()
    with pytest.raises(KeyError, match="before_updates"):
        loss(collect(actor))


def test_an_old_velocity_of_another_dtype_is_kept_anew():
    actor, loss = make_loss()
    data = loss.before_updates(collect(actor)).double()
    loss.double()
    with pytest.raises(KeyError, match="before_updates"):
        loss(data)
    assert (loss(loss.before_updates(data))["max_ratio"] - 1).abs() < 1e-5


def test_a_proximal_policy_and_other_actors_are_refused():
    with pytest.raises(ValueError, match="delay_actor=False"):
        make_loss(delay_actor=True)
    with pytest.raises(ValueError, match="leave functional=False out"):
        make_loss(functional=False)
    with pytest.raises(TypeError, match="Linear has 0"):
        PolicyFlowLoss(nn.Linear(2, 2), None)
