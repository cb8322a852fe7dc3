"""FlowMatchingLoss is a TorchRL loss, and trains a velocity."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential
from torch import nn

from torchrl_genpo import ConsistentStart, FlowMatchingLoss, ReversibleFlowActor, VelocityMLP
from torchrl_genpo.modules import Squash

from ._objectives_common import LossModuleTestBase


def make_actor(**kwargs):
    return ReversibleFlowActor(VelocityMLP(4, 2, (32, 32)), **kwargs)


def make_data(n=8):
    return TensorDict(observation=torch.randn(n, 4), action=torch.randn(n, 2), batch_size=[n])


class TestFlowMatching(LossModuleTestBase):
    """What TorchRL asks of every loss."""

    def test_reset_parameters_recursive(self):
        self.reset_parameters_recursive_test(FlowMatchingLoss(make_actor(start=ConsistentStart(0.1, 2))))

    def test_tensordict_keys(self):
        defaults = {"action": "action", "action_is_pad": "action_is_pad"}
        self.tensordict_keys_test(FlowMatchingLoss(make_actor()), default_keys=defaults)


def test_value_is_the_mean_squared_error_of_the_velocity():
    actor = make_actor()
    nn.init.zeros_(actor.velocity.trunk[-1].weight)  # v = 0: the error is x_1 - x_0
    data = make_data(20_000)
    torch.manual_seed(0)
    value = FlowMatchingLoss(actor)(data)["loss_flow_matching"]
    assert abs(value.item() - 2) < 0.06  # variance of the difference of two standard normal numbers


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_reduction(reduction):
    actor, data = make_actor(), make_data()
    torch.manual_seed(1)
    each = FlowMatchingLoss(actor, reduction="none")(data)["loss_flow_matching"]
    assert each.shape == (8,)
    torch.manual_seed(1)
    out = FlowMatchingLoss(actor, reduction=reduction)(data)["loss_flow_matching"]
    torch.testing.assert_close(out, each if reduction == "none" else getattr(each, reduction)())


def test_keys_nested_keys_and_keyword_call():
    loss = FlowMatchingLoss(make_actor(in_keys=[("agent", "obs")], action_key=("agent", "act")))
    assert loss.in_keys == [("agent", "obs"), ("agent", "act")] and loss.out_keys == ["loss_flow_matching"]
    inner = TensorDict(obs=torch.randn(8, 4), act=torch.randn(8, 2), batch_size=[8])
    assert loss(TensorDict(agent=inner, batch_size=[8]))["loss_flow_matching"].shape == ()
    plain, data = FlowMatchingLoss(make_actor()), make_data()
    plain.set_keys(action="expert")
    data.rename_key_("action", "expert")
    torch.manual_seed(2)
    expected = plain(data)["loss_flow_matching"]
    torch.manual_seed(2)
    torch.testing.assert_close(plain(observation=data["observation"], expert=data["expert"]), expected)


def test_steps_that_a_collector_padded_do_not_count():
    loss, data = FlowMatchingLoss(make_actor(), reduction="sum"), make_data(8)
    data["collector", "mask"] = torch.arange(8) < 5
    torch.manual_seed(0)
    masked = loss(data)["loss_flow_matching"]
    torch.manual_seed(0)
    everything = FlowMatchingLoss(loss.actor_network, reduction="none")(data.exclude("collector"))
    torch.testing.assert_close(masked, everything["loss_flow_matching"][:5].sum())


def test_actions_may_be_doubles():
    data = make_data().apply(lambda value: value)
    data["action"] = data["action"].double()
    loss = FlowMatchingLoss(make_actor())(data)["loss_flow_matching"]
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_state_dict_round_trip():
    loss, other, data = FlowMatchingLoss(make_actor()), FlowMatchingLoss(make_actor()), make_data()
    other.load_state_dict(loss.state_dict())
    values = []
    for module in (loss, other):
        torch.manual_seed(3)
        values.append(module(data)["loss_flow_matching"])
    torch.testing.assert_close(*values)


def test_only_the_velocity_gets_a_gradient():
    actor = make_actor(start=ConsistentStart(0.1, 2))
    loss = FlowMatchingLoss(actor)
    loss(make_data())["loss_flow_matching"].backward()
    with_gradient = {name for name, p in loss.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("velocity" in name for name in with_gradient)
    assert not any("log_tau" in name for name in with_gradient)


def test_time_per_sample_is_the_same_function_as_time_per_batch():
    velocity = VelocityMLP(4, 2, (32, 32))
    nn.init.normal_(velocity.trunk[-1].weight)
    x, context = torch.randn(8, 2), velocity.condition(torch.randn(8, 4))
    for t in (0.0, 0.3):
        torch.testing.assert_close(velocity(x, torch.full((8,), t), context), velocity(x, t, context))


def test_trained_flow_carries_noise_to_the_data():
    torch.manual_seed(4)
    actor = make_actor(start=ConsistentStart(0.1))
    loss = FlowMatchingLoss(actor)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    observation = torch.randn(256, 4)
    for _ in range(300):
        action = observation[:, :2] + 0.1 * torch.randn(256, 2)
        optimizer.zero_grad()
        loss(observation=observation, action=action).backward()
        optimizer.step()
    with torch.no_grad():
        action = actor(TensorDict(observation=observation, batch_size=[256]))["action"]
    assert (action - observation[:, :2]).square().mean().sqrt() < 0.3


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="Linear has 0"):
        FlowMatchingLoss(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="reduction"):
        FlowMatchingLoss(make_actor(), reduction="median")


def test_demonstrations_in_the_units_of_the_task_are_asked_for_as_the_flow_sees_them():
    actor = ReversibleFlowActor(VelocityMLP(4, 2, (16,)), action_key="raw_action")
    squash = Squash(-torch.ones(2), torch.ones(2))
    loss = FlowMatchingLoss(ProbabilisticTensorDictSequential(actor, squash))
    data = TensorDict(observation=torch.randn(8, 4), action=torch.rand(8, 2), batch_size=[8])
    with pytest.raises(KeyError, match=r"raw_action.*Squash.*normalize\(action\)"):
        loss(data)
    data["raw_action"] = squash.normalize(data["action"])
    loss(data)["loss_flow_matching"].backward()


def test_shapes_that_would_be_spread_over_others_are_refused():
    loss, data = FlowMatchingLoss(make_actor()), make_data()
    with pytest.raises(ValueError, match=r"must have the shape of the action, \[8, 2\], got \[8, 1\]"):
        loss(data.clone().set("action_is_pad", torch.zeros(8, 1, dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"of the samples \[8, 1\], and the observations of others"):
        loss(data.clone().set("action", torch.randn(8, 1, 2)))
