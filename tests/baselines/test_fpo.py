"""FPO++: its surrogate ratio, its trust region, and that it learns."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import PercentileValueNorm

from torchrl_genpo.baselines import FPOActor, FPOLoss, asymmetric_gain
from torchrl_genpo.objectives import flow_matching_error

from .common import check_gradients, collect, make_critic, make_velocity, perturb, train_bandit


def make_loss(**kwargs):
    actor = FPOActor(make_velocity())
    return actor, FPOLoss(actor, make_critic(), **kwargs)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.1, 2.0, 2.2),  # within the clip
        (1.5, 2.0, 2.4),  # clipped at 1.2
        (0.5, 2.0, 1.0),  # PPO does not clip what lowers the objective
        (1.0, -2.0, -2.0),
        (1.5, -2.0, -3.0 - 2.0 / 0.4 * 0.25),  # SPO: r A - |A| / (2 eps) (r - 1)^2
        (0.5, -2.0, -1.0 - 2.0 / 0.4 * 0.25),
    ],
)
def test_trust_region_on_hand_made_numbers(ratio, advantage, expected):
    gain = asymmetric_gain(torch.tensor(ratio).log(), torch.tensor(advantage), 0.2)
    torch.testing.assert_close(gain, torch.tensor(expected))


def test_a_negative_advantage_pulls_a_ratio_back_that_ppo_would_leave_alone():
    log_ratio = torch.tensor([0.5, 0.5], requires_grad=True)  # ratios of 1.65
    advantage = torch.tensor([1.0, -1.0])
    low = torch.tensor(0.3).log().expand(1).clone().requires_grad_()
    asymmetric_gain(log_ratio, advantage, 0.2).sum().backward()
    assert log_ratio.grad[0] == 0 and log_ratio.grad[1] < 0
    asymmetric_gain(low, torch.tensor([-1.0]), 0.2).sum().backward()
    assert low.grad > 0, "a ratio far below one is drawn up again, where PPO's clip has no gradient"


def test_ratio_is_one_before_the_first_step_with_the_stored_samples():
    actor, loss = make_loss(num_samples=5)
    data = loss.before_updates(collect(actor))
    assert data["flow_noise"].shape == (64, 5, 2)
    assert data["flow_time"].shape == data["flow_error"].shape == (64, 5)
    out = loss(data)
    assert out["max_ratio"] == out["mean_ratio"] == 1 and out["kl_approx"] == 0 and out["clip_fraction"] == 0
    torch.testing.assert_close(out["loss_objective"], -data["advantage"].mean())
    check_gradients(loss, data)


@pytest.mark.parametrize(("scale", "divisor"), [("sum", 1), ("mean", 2), ("sqrt", 2**0.5)])
def test_the_log_ratio_of_a_sample_is_the_difference_of_its_flow_matching_losses(scale, divisor):
    actor, loss = make_loss(num_samples=3, error_scale=scale, clip_epsilon=0.9)
    data = loss.before_updates(collect(actor))
    data["advantage"] = torch.ones(64, 1)

    def error():
        context = actor.velocity.condition(data["observation"]).unsqueeze(1)
        action = data["action"].unsqueeze(1)
        gap = flow_matching_error(actor.velocity, context, action, data["flow_noise"], data["flow_time"])
        return (gap.square().sum(-1).detach() / divisor).clamp(max=20.0)

    before = error()
    torch.testing.assert_close(data["flow_error"], before)
    perturb(actor.velocity, 0.02)
    ratio = (before - error()).exp()
    assert (ratio - 1).abs().max() > 0.05
    torch.testing.assert_close(loss(data)["loss_objective"], -ratio.clamp(max=1.9).mean(), rtol=1e-4, atol=1e-4)


def test_each_sample_is_clipped_by_itself():
    """Two samples of one action, one beyond the clip: its gradient is gone, the other's is not."""
    log_ratio = torch.tensor([[0.5, 0.0]], requires_grad=True)
    asymmetric_gain(log_ratio, torch.ones(1, 1).expand(1, 2), 0.2).mean().backward()
    assert log_ratio.grad[0, 0] == 0 and log_ratio.grad[0, 1] > 0


def test_outliers_are_bounded():
    actor, loss = make_loss(max_error=1.5)
    data = loss.before_updates(collect(actor))
    assert data["flow_error"].max() == 1.5
    data["flow_error"] += 1000
    assert loss(data)["max_ratio"] <= torch.tensor(10.0).exp() + 1


def test_zero_noise_is_neither_drawn_nor_perturbed():
    actor = FPOActor(make_velocity(), perturbation=0.1)
    td = TensorDict(observation=torch.randn(1, 3).expand(64, 3), batch_size=[64])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert actor(td.clone())["action"].std(0).max() < 1e-6
    torch.nn.init.zeros_(actor.velocity.trunk[-1].weight)
    torch.nn.init.zeros_(actor.velocity.trunk[-1].bias)
    actor.perturbation = 10.0
    assert actor(td.clone())["action"].std() > 5, "random actions are perturbed"


def test_learns_a_bandit():
    velocity = make_velocity()
    nn.init.zeros_(velocity.trunk[-1].weight)
    actor = FPOActor(velocity)
    before, after = train_bandit(actor, FPOLoss(actor, None, critic_coeff=None, clip_epsilon=0.2))
    assert after < 0.6 * before


def test_mistakes_are_explained():
    actor, loss = make_loss()
    with pytest.raises(KeyError, match=r"loss\.before_updates\(data\)"):
        loss(collect(actor))
    with pytest.raises(ValueError, match="no entropy of its flow"):
        FPOLoss(actor, None, critic_coeff=None, entropy_bonus=True)
    with pytest.raises(ValueError, match="'sum', 'mean' or 'sqrt', got 'max'"):
        FPOLoss(actor, None, critic_coeff=None, error_scale="max")


@pytest.mark.parametrize("option", [{"delay_actor": True}, {"max_importance_ratio": 2.0}, {"clip_epsilon": (0.1, 0.2)}])
def test_options_of_a_likelihood_ratio_are_refused(option):
    with pytest.raises(ValueError, match="FPO"):
        make_loss(**option)


@pytest.mark.parametrize("batch", [(16,), (4, 16)])
def test_an_advantage_fits_the_actions_and_never_the_samples(batch):
    """As many samples as actions: without a check they would be taken for each other."""
    actor = FPOActor(make_velocity())
    loss = FPOLoss(actor, None, critic_coeff=None, num_samples=16)
    data = loss.before_updates(actor(TensorDict(observation=torch.randn(*batch, 3), batch_size=batch)).detach())
    perturb(actor)
    with pytest.raises((ValueError, RuntimeError), match=r"trailing value dimension|must match the size"):
        loss(data.set("advantage", torch.randn(batch)))
    data.batch_size = batch[:1]
    team = torch.randn(*batch[:1], 1)  # one a group, as for several agents
    expected = loss(data.set("advantage", team.view(*batch[:1], *(1,) * len(batch)).expand(*batch, 1).clone()))
    torch.testing.assert_close(loss(data.set("advantage", team))["loss_objective"], expected["loss_objective"])


def test_without_a_reduction_every_loss_is_one_an_action():
    actor, loss = make_loss(reduction="none")
    out = loss(loss.before_updates(collect(actor)))
    assert out["loss_objective"].shape == out["loss_critic"].shape == (64,)


def test_the_context_of_a_velocity_may_be_anything():
    class Nested(type(make_velocity())):
        def condition(self, *observations):
            return {"context": super().condition(*observations)}

        def forward(self, x, t, context):
            return super().forward(x, t, context["context"])

    actor, loss = make_loss()
    data = loss.before_updates(collect(actor))
    actor.velocity.__class__ = Nested
    torch.testing.assert_close(loss(data)["max_ratio"], torch.tensor(1.0))


def test_it_trains_in_place_and_refuses_an_empty_batch():
    actor = FPOActor(make_velocity())
    loss = FPOLoss(actor, make_critic(), functional=False)
    data = loss.before_updates(collect(actor))
    loss(data)["loss_objective"].backward()
    assert all(parameter.grad is not None for parameter in actor.parameters())
    with pytest.raises(ValueError, match="empty batch"):
        loss(data[:0])


def with_rewards(actor, loss):
    """A batch with its next observations, rewards and advantages."""
    data = loss.before_updates(collect(actor))
    data["next"] = data.select("observation").update(
        {key: torch.zeros(64, 1, dtype=torch.bool) for key in ("done", "terminated")} | {"reward": torch.ones(64, 1)}
    )
    return loss.value_estimator(data)


def test_the_advantage_is_computed_where_it_is_missing_as_by_stock_ppo():
    actor, loss = make_loss()
    data = with_rewards(actor, loss)
    expected = loss(data)["loss_objective"]
    torch.testing.assert_close(loss(data.exclude("advantage"))["loss_objective"], expected)


def test_a_running_norm_follows_the_advantages_that_are_computed_in_the_loss_alone():
    norm = PercentileValueNorm(rate=1.0, min_scale=1e-6)
    actor, loss = make_loss(advantage_norm=norm)
    data = with_rewards(actor, loss)
    assert loss(data)["loss_objective"].isfinite() and norm.high == 0
    computed = loss(data.exclude("advantage"))["loss_objective"]
    assert norm.high != 0
    torch.testing.assert_close(loss(data)["loss_objective"], computed)
