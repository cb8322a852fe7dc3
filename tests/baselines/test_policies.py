"""Every policy trains on an environment as a sequence of normaliser, actor and units, as its actor alone would."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import ExplorationType, GymEnv, set_exploration_type
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_genpo import FlowMatchingLoss, GenPOLoss, ReversibleFlowActor, VelocityMLP
from torchrl_genpo.baselines import (
    AlternatingCoupling,
    DummyActionLoss,
    FPOActor,
    FPOLoss,
    PolicyFlowActor,
    PolicyFlowLoss,
)
from torchrl_genpo.modules import ActionScale, EulerActor, RunningNormalizer, encode, flow_of

from .common import make_velocity, perturb

POLICIES = {
    "reversible_flow": (ReversibleFlowActor, {}, GenPOLoss),
    "genpo": (ReversibleFlowActor, {"solver": AlternatingCoupling()}, DummyActionLoss),
    "fpo": (FPOActor, {}, FPOLoss),
    "policyflow": (PolicyFlowActor, {}, PolicyFlowLoss),
}
KINDS = [ProbabilisticTensorDictSequential, TensorDictSequential]


def make_policy(name, kind=ProbabilisticTensorDictSequential, **keys):
    """A policy of pendulum; the normaliser and the critic that shares it; the class of its loss."""
    actor_class, options, loss_class = POLICIES[name]
    normalizer = RunningNormalizer(3)
    normalizer.update(1 + 2 * torch.randn(100, 3))
    actor = actor_class(
        make_velocity(1), in_keys=["normalized_observation"], action_key="raw_action", **copy.deepcopy(options), **keys
    )
    policy = kind(normalizer, actor, ActionScale(torch.tensor([0.0]), torch.tensor([2.0])))
    value = ValueOperator(MLP(in_features=3, out_features=1, num_cells=[8]), in_keys=["normalized_observation"])
    return policy, TensorDictSequential(normalizer, value), loss_class


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", POLICIES)
def test_one_iteration_on_an_environment(name, kind):
    """Collected data is all that the update needs, its first ratio is one, and evaluation is deterministic."""
    policy, critic, loss_class = make_policy(name, kind)
    loss = loss_class(policy, critic)
    env = GymEnv("Pendulum-v1")
    collector = Collector(env, policy, frames_per_batch=64, total_frames=64, auto_register_policy_transforms=False)
    (data,) = collector
    collector.shutdown()
    torch.testing.assert_close(data["action"], 2 * data["raw_action"].to(data["action"].dtype))
    policy[0].update(data["observation"] * 0 + 1)  # the statistics move between batches, and not while one is used
    with torch.no_grad():
        data = policy(data)  # collected again, with the statistics that the update sees
        GAE(gamma=0.99, lmbda=0.95, value_network=critic)(data)
    batch = loss.before_updates(data.reshape(-1))
    optimizer, outs = torch.optim.Adam(loss.parameters(), 1e-2), []
    for _ in range(2):
        out = loss(batch)
        optimizer.zero_grad()
        sum(out[key] for key in out.keys() if key.startswith("loss_")).backward()
        optimizer.step()
        outs.append(out)
    assert (outs[0]["max_ratio"] - 1).abs() < 1e-4 and (outs[0]["mean_ratio"] - 1).abs() < 1e-4
    assert outs[0]["kl_approx"].abs() < 1e-4 < (outs[1]["max_ratio"] - 1).abs()
    td = data[:8].select("observation")
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        assert torch.equal(policy(td.clone())["action"], policy(td.clone())["action"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", POLICIES)
def test_gradients_are_those_of_the_actor_given_what_the_encoder_writes(name, kind):
    policy, _, loss_class = make_policy(name)
    encoder = TensorDictModule(nn.Linear(3, 3), ["normalized_observation"], ["normalized_observation"])
    normalizer, actor, units = policy
    policy = kind(normalizer, encoder, actor, units)
    data = policy(TensorDict(observation=torch.randn(32, 3), batch_size=[32])).detach()
    data["advantage"] = torch.randn(32, 1)
    loss, bare = loss_class(policy, critic_network=None, critic_coeff=None), loss_class(actor, None, critic_coeff=None)
    data = loss.before_updates(data)
    bare.before_updates(encode(policy, data)[1].detach())
    perturb(actor)
    _, seen = encode(policy, data)
    parameters, results = [*actor.parameters(), *encoder.parameters()], []
    for each, batch in ((loss, data), (bare, seen)):
        torch.manual_seed(1)
        out = each(batch)
        total = sum(out[key] for key in out.keys() if key.startswith("loss_"))
        results.append((out, torch.autograd.grad(total, parameters)))
    for key in results[1][0].keys():
        torch.testing.assert_close(results[0][0][key], results[1][0][key])
    for ours, expected in zip(results[0][1], results[1][1], strict=True):
        assert expected.abs().sum() > 0
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("name", POLICIES)
def test_default_keys_are_those_of_the_actor(name):
    log_prob = {} if name == "fpo" else {"log_prob_key": ("flow", "log_prob")}
    policy, critic, loss_class = make_policy(name, **log_prob)
    loss = loss_class(policy, critic)
    assert loss.tensor_keys.action == "raw_action"
    assert name == "fpo" or loss.tensor_keys.sample_log_prob == ("flow", "log_prob")
    assert ("observation" in loss.in_keys) and not {"normalized_observation", "action"} & set(loss.in_keys)


@pytest.mark.parametrize("name", POLICIES)
def test_nested_keys(name):
    actor_class, options, loss_class = POLICIES[name]
    policy = ProbabilisticTensorDictSequential(
        RunningNormalizer(3, in_key=("agent", "observation"), out_key=("agent", "seen")),
        actor_class(
            make_velocity(1), in_keys=[("agent", "seen")], action_key=("agent", "raw"), **copy.deepcopy(options)
        ),
        ActionScale(torch.zeros(1), torch.ones(1), in_key=("agent", "raw"), out_key=("agent", "action")),
    )
    data = policy(TensorDict(agent=TensorDict(observation=torch.randn(8, 3), batch_size=[8]), batch_size=[8])).detach()
    loss = loss_class(policy, None, critic_coeff=None)
    data = loss.before_updates(data.set("advantage", torch.randn(8, 1)))
    assert (loss(data)["max_ratio"] - 1).abs() < 1e-4


def test_stock_ppo_trains_policyflow_no_more_than_it_can_score():
    """A sequence without a probabilistic module has no distribution, which TorchRL's loss says at the first batch."""
    policy, critic, _ = make_policy("policyflow")
    data = policy(TensorDict(observation=torch.randn(8, 3), batch_size=[8])).detach()
    with pytest.raises((NotImplementedError, RuntimeError)):
        ClipPPOLoss(policy, critic)(data.set("advantage", torch.randn(8, 1)))


@pytest.mark.parametrize("actor_class", [FPOActor, PolicyFlowActor])
def test_flow_matching_trains_their_velocity_as_it_does_that_of_a_reversible_flow(actor_class):
    velocity = make_velocity()
    data = TensorDict(observation=torch.randn(8, 3), action=torch.randn(8, 2), batch_size=[8])
    losses = []
    for actor in (ReversibleFlowActor(velocity), actor_class(velocity)):
        torch.manual_seed(0)
        losses.append(FlowMatchingLoss(actor)(data)["loss_flow_matching"])
    torch.testing.assert_close(*losses, rtol=0, atol=0)


def test_the_flow_of_every_policy_is_found():
    for name, (actor_class, _, _) in POLICIES.items():
        assert type(flow_of(make_policy(name)[0])) is actor_class


@pytest.mark.parametrize("make", [ReversibleFlowActor, EulerActor, FPOActor, PolicyFlowActor])
def test_one_key_may_be_a_string_and_is_named_where_it_is_missing(make):
    actor = make(VelocityMLP(4, 2, (32,)), in_keys="state")
    assert actor.in_keys == ["state"]
    assert actor(TensorDict(state=torch.randn(3, 4), batch_size=[3]))["action"].shape == (3, 2)
    outputs = actor(state=torch.randn(3, 4))
    assert (outputs if isinstance(outputs, torch.Tensor) else outputs[0]).shape == (3, 2)
    with pytest.raises(KeyError, match="state"):
        actor(TensorDict(observation=torch.randn(3, 4), batch_size=[3]))
