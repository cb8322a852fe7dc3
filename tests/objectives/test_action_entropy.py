"""The bonus on the entropy of the action: a lower bound by a fitted density of the memory."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP
from torchrl_genpo.config.compose import compose


@pytest.fixture
def actor():
    torch.manual_seed(0)
    scale = AddStateIndependentNormalScale(2, init_value=math.log(0.5))
    gaussian = torch.nn.Sequential(torch.nn.Linear(3, 2), scale)
    return ReversibleFlowActor(VelocityMLP(3, 2, (16,)), gaussian=gaussian).double()


def collect(actor, size=256):
    data = actor(TensorDict(observation=torch.randn(size, 3, dtype=torch.float64), batch_size=[size])).detach()
    return data.set("advantage", torch.zeros(size, 1, dtype=torch.float64))


def test_the_bound_is_the_entropy_of_the_action_once_the_density_is_fitted(actor):
    for parameter in actor.velocity.trunk[-1].parameters():
        torch.nn.init.zeros_(parameter)  # without a velocity the action is normal
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.5))
    loss = GenPOLoss(actor, None, critic_coeff=None, action_entropy_coeff=0.1)
    data = collect(actor, 1024)
    assert loss(data)["action_entropy"] < entropy - 0.3  # the first density is no good one
    optimizer = torch.optim.Adam(loss.memory_density.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss(data)["loss_action_entropy"].backward()
        optimizer.step()
    found = torch.stack([loss(data)["action_entropy"] for _ in range(8)]).mean().item()
    assert found == pytest.approx(entropy, abs=0.03)


def test_it_is_one_more_loss_whose_gradient_widens_the_policy_and_fits_the_density(actor):
    loss = GenPOLoss(actor, None, critic_coeff=None, action_entropy_coeff=0.1)
    out = loss(collect(actor))
    torch.testing.assert_close(out["loss_action_entropy"], -0.1 * out["action_entropy"])
    assert {"action_entropy", "loss_action_entropy"} <= set(loss.out_keys)
    out["loss_action_entropy"].backward()
    gradients = {name: parameter.grad for name, parameter in loss.named_parameters()}
    (scale,) = (gradient for name, gradient in gradients.items() if "state_independent_scale" in name)
    assert (scale < 0).all()  # a wider action has a larger entropy
    # the last layer is 0 at first, so that those before it have no gradient yet
    assert sum(gradient.abs().sum() > 0 for name, gradient in gradients.items() if "memory_density" in name) == 2


def test_there_is_no_bonus_and_no_density_unless_it_is_asked_for(actor):
    loss = GenPOLoss(actor, None, critic_coeff=None)
    assert loss.memory_density is None and not any("action_entropy" in key for key in loss(collect(actor)).keys())


def test_a_policy_without_a_memory_is_refused_with_the_option_that_it_has():
    with pytest.raises(ValueError, match=r"policy=gaussian has none, and loss\.entropy_coeff"):
        compose(["policy=gaussian", "loss.action_entropy_coeff=0.01"])


def test_a_velocity_that_does_not_say_the_size_of_its_observations_is_refused(actor):
    del actor.velocity.in_features
    with pytest.raises(TypeError, match="in_features, which VelocityMLP has not"):
        GenPOLoss(actor, None, critic_coeff=None, action_entropy_coeff=0.1)
