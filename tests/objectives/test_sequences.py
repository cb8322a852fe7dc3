"""A policy that is a sequence of modules is trained as its actor alone would be, given what the other modules write."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    AddStateIndependentNormalScale,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn
from torchrl.modules import MLP, LSTMModule, OneHotCategorical, ValueOperator, set_recurrent_mode
from torchrl.objectives import ClipPPOLoss, SoftUpdate

from torchrl_genpo import FlowMatchingLoss, GenPOLoss, ReversibleFlowActor, VelocityMLP
from torchrl_genpo.modules import ActionScale, EulerActor, RunningNormalizer, encode

D = 2


def make_normalizer(size=4, **keys):
    normalizer = RunningNormalizer(size, **keys)
    normalizer.update(3 + 2 * torch.randn(100, size))
    return normalizer


def make_actor(obs_dim=4, in_key="normalized_observation", action_key="raw_action", **options):
    actor = ReversibleFlowActor(VelocityMLP(obs_dim, D, (16, 16)), in_keys=[in_key], action_key=action_key, **options)
    nn.init.normal_(actor.velocity.trunk[-1].weight, std=0.3)
    return actor


def make_policy(kind=ProbabilisticTensorDictSequential, **keys):
    """A normaliser, an encoder, the actor and the units of its action."""
    return kind(
        make_normalizer(),
        TensorDictModule(MLP(in_features=4, out_features=6, num_cells=[8]), ["normalized_observation"], ["features"]),
        make_actor(6, "features", **keys),
        ActionScale(torch.tensor([1.0, -1.0]), torch.tensor([3.0, 0.5])),
    )


def make_critic(policy):
    value = ValueOperator(MLP(in_features=4, out_features=1, num_cells=[8]), in_keys=["normalized_observation"])
    return TensorDictSequential(policy[0], value)


def collect(policy, n=32):
    data = policy(TensorDict(observation=3 + 2 * torch.randn(n, 4), batch_size=[n])).detach()
    data["advantage"], data["value_target"] = torch.randn(2, n, 1)
    return data


def perturb(module, std=0.02):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn_like(parameter))


def gradients(loss, data, keys, parameters):
    return torch.autograd.grad(sum(loss(data)[key] for key in keys), parameters)


@pytest.mark.parametrize("kind", [ProbabilisticTensorDictSequential, TensorDictSequential])
def test_ratio_is_one_on_fresh_data(kind):
    policy = make_policy(kind)
    loss = GenPOLoss(policy, make_critic(policy))
    data = collect(policy)
    torch.testing.assert_close(data["action"], policy[-1].denormalize(data["raw_action"]))
    out = loss(loss.before_updates(data))
    assert (out["max_ratio"] - 1).abs() < 1e-4 and (out["mean_ratio"] - 1).abs() < 1e-4
    assert out["inversion_error"] < 1e-4 and out["clip_fraction"] == 0


def test_default_keys_are_those_of_the_actor():
    policy = make_policy()
    keys = GenPOLoss(policy, make_critic(policy)).tensor_keys
    assert (keys.action, keys.action_memory, keys.sample_log_prob) == ("raw_action", "action_memory", "action_log_prob")
    assert FlowMatchingLoss(policy).tensor_keys.action == "raw_action"
    assert set(FlowMatchingLoss(policy).in_keys) == {"observation", "raw_action"}


def test_genpo_gradients_are_those_of_the_actor_given_what_the_encoder_writes():
    policy = make_policy(gaussian=torch.nn.Sequential(torch.nn.Linear(6, D), AddStateIndependentNormalScale(D)))
    encoder, actor = policy[1], policy[2]
    data = GenPOLoss(policy, critic_coeff=None).before_updates(collect(policy))
    perturb(policy)
    loss = GenPOLoss(policy, critic_coeff=None, entropy_bonus=True)
    bare = GenPOLoss(actor, critic_coeff=None, entropy_bonus=True)
    parameters, keys = [*actor.parameters(), *encoder.parameters()], ("loss_objective", "loss_entropy")
    _, seen = encode(policy, data)  # with the graph of the encoder
    assert "features" in seen.keys() and seen["features"].requires_grad
    ours, expected = gradients(loss, data, keys, parameters), gradients(bare, seen, keys, parameters)
    for a, b in zip(ours, expected, strict=True):
        assert b.abs().sum() > 0
        torch.testing.assert_close(a, b)
    assert loss(data)["max_ratio"] != 1
    for key in ("loss_objective", "kl_approx", "inversion_error", "ESS"):
        torch.testing.assert_close(loss(data)[key], bare(seen)[key])


@pytest.mark.parametrize("kind", [ProbabilisticTensorDictSequential, TensorDictSequential])
def test_flow_matching_gradients_are_those_of_the_actor_given_what_the_encoder_writes(kind):
    policy = make_policy(kind)
    encoder, actor = policy[1], policy[2]
    data = TensorDict(observation=torch.randn(8, 4), action=torch.randn(8, D), batch_size=[8])
    data["raw_action"] = policy[-1].normalize(data["action"])
    _, seen = encode(policy, data)
    results = []
    for loss, batch in ((FlowMatchingLoss(policy), data), (FlowMatchingLoss(actor), seen)):
        torch.manual_seed(1)
        parameters = [*actor.velocity.parameters(), *encoder.parameters()]
        results.append(gradients(loss, batch, ("loss_flow_matching",), parameters))
    for a, b in zip(*results, strict=True):
        assert b.abs().sum() > 0
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("nested", [False, True])
def test_stock_clip_ppo_with_default_keys_gives_the_same_numbers_where_the_actor_is_the_last_module(nested):
    head = TensorDictModule(nn.Linear(4, 4), ["normalized_observation"], ["features"])
    first = TensorDictSequential(make_normalizer(), head) if nested else make_normalizer()
    actor = make_actor(in_key="features" if nested else "normalized_observation", action_key="action")
    policy = ProbabilisticTensorDictSequential(first, actor)
    data = collect(policy)
    perturb(policy, 0.05)
    ours, stock = (kind(policy, critic_coeff=None, entropy_bonus=False) for kind in (GenPOLoss, ClipPPOLoss))
    out, expected = ours(data), stock(data)
    assert (expected["max_ratio"] - 1).abs() > 1e-3
    for key in expected.keys():
        torch.testing.assert_close(out[key], expected[key])


def test_nested_keys():
    policy = ProbabilisticTensorDictSequential(
        make_normalizer(in_key=("agent", "observation"), out_key=("agent", "seen")),
        make_actor(
            in_key=("agent", "seen"),
            action_key=("agent", "raw"),
            memory_key=("agent", "memory"),
            log_prob_key=("agent", "log_prob"),
        ),
        ActionScale(torch.zeros(D), torch.ones(D), in_key=("agent", "raw"), out_key=("agent", "action")),
    )
    obs = TensorDict(observation=torch.randn(8, 4), batch_size=[8])
    data = policy(TensorDict(agent=obs, batch_size=[8])).detach().set("advantage", torch.randn(8, 1))
    loss = GenPOLoss(policy, critic_coeff=None)
    assert (loss(loss.before_updates(data))["max_ratio"] - 1).abs() < 1e-4
    assert {("agent", "observation"), ("agent", "raw"), ("agent", "memory")} <= set(loss.in_keys)
    loss = FlowMatchingLoss(policy)
    assert loss.in_keys == [("agent", "observation"), ("agent", "raw")]
    loss(data)["loss_flow_matching"].backward()


def test_the_proximal_policy_sees_the_present_statistics():
    policy = make_policy()
    loss = GenPOLoss(policy, make_critic(policy), delay_actor=True)
    SoftUpdate(loss, eps=0.9)
    policy[0].update(10 + 5 * torch.randn(1000, 4))  # after the updater, which never moves a buffer again
    out = loss(loss.before_updates(collect(policy)))
    assert out["kl_approx"].abs() < 1e-5 and out["clip_fraction"] == 0 and (out["max_ratio"] - 1).abs() < 1e-4


def test_the_proximal_policy_keeps_its_own_parameters_and_follows_the_updater():
    policy = make_policy()
    loss = GenPOLoss(policy, make_critic(policy), delay_actor=True)
    updater = SoftUpdate(loss, eps=0.5)
    data = collect(policy)
    perturb(policy, 0.05)
    policy[0].update(10 + 5 * torch.randn(1000, 4))
    apart = loss(data)["kl_approx"].abs()
    for _ in range(40):
        updater.step()
    assert loss(data)["kl_approx"].abs() < 1e-5 < 1e-3 < apart


def test_statistics_that_move_after_the_loss_was_made_reach_it_and_its_critic():
    policy = make_policy()
    critic = make_critic(policy)
    loss = GenPOLoss(policy, critic)
    policy[0].update(10 + 5 * torch.randn(1000, 4))
    data = collect(policy)
    data["value_target"] = critic(data.clone())["state_value"].detach()
    out = loss(data)
    assert (out["max_ratio"] - 1).abs() < 1e-4 and out["loss_critic"] < 1e-10


def test_a_compiled_loss_equals_the_eager_one():
    policy = make_policy()
    loss = GenPOLoss(policy, make_critic(policy))
    data = collect(policy)
    perturb(policy)
    expected, out = loss(data), torch.compile(loss, backend="aot_eager")(data)
    for key in ("loss_objective", "loss_critic", "inversion_error"):
        torch.testing.assert_close(out[key], expected[key], atol=1e-4, rtol=1e-4)


def test_state_dict_carries_the_statistics_over():
    policies = [make_policy(), make_policy()]
    losses = [GenPOLoss(policy, make_critic(policy)) for policy in policies]
    losses[1].load_state_dict(losses[0].state_dict())
    data = collect(policies[0])
    torch.testing.assert_close(losses[1](data)["inversion_error"], losses[0](data)["inversion_error"])
    assert torch.equal(policies[1][0].mean, policies[0][0].mean)


def test_an_encoder_with_memory_trains():
    lstm = LSTMModule(input_size=4, hidden_size=5, in_key="normalized_observation", out_key="features", device="cpu")
    policy = ProbabilisticTensorDictSequential(make_normalizer(), lstm, make_actor(5, "features", action_key="action"))
    data = TensorDict(
        observation=torch.randn(3, 7, 4), is_init=torch.zeros(3, 7, 1, dtype=torch.bool), batch_size=[3, 7]
    )
    data["is_init"][:, 0] = True
    steps, states = [], ("recurrent_state_h", "recurrent_state_c")
    carry = TensorDict(dict.fromkeys(states, torch.zeros(3, 1, 5)), batch_size=[3])
    for t in range(7):
        step = policy(data[:, t].update(carry))
        carry = step["next"].select(*states)
        steps.append(step.detach())
    collected = torch.stack(steps, 1).contiguous()
    collected["advantage"] = torch.randn(3, 7, 1)
    loss = GenPOLoss(policy, critic_coeff=None)
    with set_recurrent_mode(True):
        out = loss(collected)
    assert (out["max_ratio"] - 1).abs() < 1e-4
    out["loss_objective"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lstm.lstm.parameters() if p.dim() > 1)


def test_a_policy_that_also_draws_something_else_is_refused():
    logits = TensorDictModule(nn.Linear(4, 3), ["observation"], ["logits"])
    gripper = ProbabilisticTensorDictModule(["logits"], ["gripper"], distribution_class=OneHotCategorical)
    policy = ProbabilisticTensorDictSequential(logits, gripper, make_actor(in_key="observation"))
    with pytest.raises(TypeError, match="also draws from a ProbabilisticTensorDictModule"):
        GenPOLoss(policy, critic_coeff=None)


def test_a_policy_without_a_flow_or_with_two_is_refused():
    for policy in (TensorDictSequential(make_normalizer()), TensorDictSequential(make_actor(), make_actor())):
        for loss in (FlowMatchingLoss, GenPOLoss):
            with pytest.raises(TypeError, match="A policy with one velocity is needed"):
                loss(policy)


@pytest.mark.parametrize("key", ["observation", "raw_action", "action_memory"])
def test_data_without_a_key_is_named(key):
    policy = make_policy()
    with pytest.raises(KeyError, match=key):
        GenPOLoss(policy, critic_coeff=None)(collect(policy).exclude(key))


def test_eulers_rule_takes_the_place_of_the_actor():
    policy = make_policy()
    data = TensorDict(observation=torch.randn(8, 4), batch_size=[8])
    torch.manual_seed(1)
    out = EulerActor.of(policy, 3)(data.clone())
    torch.manual_seed(1)
    _, seen = encode(policy, data)
    raw = EulerActor.of(policy[2], 3)(seen)["raw_action"]
    torch.testing.assert_close(out["action"], policy[-1].denormalize(raw))
