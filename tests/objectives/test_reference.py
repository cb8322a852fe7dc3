"""The divergence from a frozen policy in the loss."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale, ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn

from torchrl_genpo import ConsistentStart, GenPOLoss, ReversibleFlowActor, ReversibleSolver, VelocityMLP
from torchrl_genpo.baselines import FPOActor
from torchrl_genpo.config.compose import compose
from torchrl_genpo.modules import RunningNormalizer, encode


def make_actor(std=0.5, action_dim=2, seed=0, **kwargs):
    torch.manual_seed(seed)
    scale = AddStateIndependentNormalScale(action_dim, init_value=math.log(std))
    gaussian = torch.nn.Sequential(torch.nn.Linear(3, action_dim), scale)
    with torch.no_grad():
        gaussian[0].weight.zero_()
        gaussian[0].bias.zero_()
    return ReversibleFlowActor(VelocityMLP(3, action_dim, (16,)), gaussian=gaussian, **kwargs).double()


def collect(actor, size=256):
    data = actor(TensorDict(observation=torch.randn(size, 3, dtype=torch.float64), batch_size=[size])).detach()
    return data.set("advantage", torch.randn(size, 1, dtype=torch.float64))


def make_loss(actor, **kwargs):
    return GenPOLoss(actor, None, critic_coeff=None, **kwargs)


def test_it_is_zero_from_itself_and_then_a_closed_form_between_two_scales():
    actor, wider = make_actor(0.5), make_actor(1.0)
    for policy in (actor, wider):
        torch.nn.init.zeros_(policy.velocity.trunk[-1].weight)
    data = collect(actor, 20_000)
    same, other = (make_loss(actor, reference=reference, reference_coeff=0.5)(data) for reference in (actor, wider))
    assert same["kl_reference"] == pytest.approx(0, abs=1e-12)
    # without a velocity the pair tells no more of a scale than the action, of two numbers
    expected = 2 * (math.log(2) + 0.5 * (0.25 - 1))
    assert other["kl_reference"] == pytest.approx(expected, abs=0.03)
    torch.testing.assert_close(other["loss_reference"], 0.5 * other["kl_reference"])


def test_its_gradient_brings_the_policy_back_and_the_reference_stays():
    actor, reference = make_actor(0.5), make_actor(0.8, seed=1)
    torch.nn.init.normal_(reference.velocity.trunk[-1].weight, std=0.3)
    loss, data = make_loss(actor, reference=reference), collect(actor)
    before = {name: value.clone() for name, value in loss.reference.named_parameters()}
    first = loss(data)["kl_reference"]
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss(data)["loss_reference"].backward()
        optimizer.step()
    assert loss(data)["kl_reference"] < 0.2 * first
    for name, value in loss.reference.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_the_reference_is_the_policy_as_it_was_and_part_of_the_state():
    actor = make_actor()
    loss, data = make_loss(actor, reference=actor), collect(actor)
    for parameter in actor.parameters():
        parameter.data.add_(0.1)
    changed = loss(data)["kl_reference"]
    assert changed > 0.01
    other = make_loss(make_actor(seed=5), reference=make_actor(seed=6))
    other.load_state_dict(loss.state_dict())
    torch.manual_seed(0)
    expected = loss(data)["kl_reference"]
    torch.manual_seed(0)
    torch.testing.assert_close(other(data)["kl_reference"], expected)
    assert {"kl_reference", "loss_reference"} <= set(loss.out_keys)


def test_a_reference_with_another_solver_is_near_in_its_pairs():
    actor, other = make_actor(), make_actor(solver=ReversibleSolver(num_steps=3, sigma=0.9))
    assert make_loss(actor, reference=other)(collect(actor))["kl_reference"] > 0


@pytest.mark.parametrize("differs", ["solver", "activation", "module", "buffer", None])
def test_the_divergence_of_a_frozen_policy_is_in_closed_form_only_if_nothing_but_the_start_differs(differs):
    def make(start, is_other):
        torch.manual_seed(0)
        activation = nn.Tanh if is_other and differs == "activation" else nn.SiLU
        solver = ReversibleSolver(num_steps=3 if is_other and differs == "solver" else 5)
        actor = ReversibleFlowActor(VelocityMLP(3, 2, (16,), activation), solver=solver, start=start).double()
        nn.init.normal_(actor.velocity.trunk[-1].weight, std=0.5)
        before = nn.Tanh() if is_other and differs == "module" else nn.Sigmoid()
        normalizer = RunningNormalizer(3).double()
        if is_other and differs == "buffer":
            normalizer.mean += 1
        reads = TensorDictModule(before, in_keys=["normalized_observation"], out_keys=["observation"])
        return ProbabilisticTensorDictSequential(normalizer, reads, actor)

    policy, reference = make(ConsistentStart(0.2, 2), False), make(ConsistentStart(0.4, 2), True)
    policy.requires_grad_(False)
    policy.module[-1].start.requires_grad_(True)
    data = TensorDict(observation=torch.randn(2048, 3, dtype=torch.float64), batch_size=[2048])
    data = policy(data).detach().set("advantage", torch.randn(2048, 1, dtype=torch.float64))
    found = [make_loss(policy, reference=reference)(data)["kl_reference"] for _ in range(2)]
    assert (found[0] == found[1]) == (differs is None)  # else it is of new pairs
    other, seen = encode(reference, data)
    exact = (data["action_log_prob"] - other.log_prob(seen)).mean()
    torch.testing.assert_close(found[0], exact, rtol=0.15, atol=0)


@pytest.mark.parametrize(
    ("error", "message", "kwargs"),
    [
        (ValueError, "of size 3, the policy of size 2", lambda: {"reference": make_actor(action_dim=3)}),
        (TypeError, "needs a density of pairs", lambda: {"reference": FPOActor(VelocityMLP(3, 2, (16,)))}),
        (ValueError, "=-0.1 must not be negative", lambda: {"reference": make_actor(), "reference_coeff": -0.1}),
        (ValueError, "has no effect without a reference", lambda: {"reference_coeff": 0.1}),
        (ValueError, "anchor_coeff=nan must not be negative", lambda: {"anchor_coeff": math.nan}),
    ],
)
def test_what_cannot_be_a_reference_is_refused(error, message, kwargs):
    with pytest.raises(error, match=message):
        make_loss(make_actor(), **kwargs())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["loss.reference_coeff=0.1"], "policy.init=null"),
        (["loss.reference_coeff=0.1", "policy=gaussian", "policy.init=a"], "this is policy=gaussian"),
        (["loss.reference_target=0.1"], "set loss.reference_coeff"),
    ],
)
def test_options_without_a_reference_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compose(options)
