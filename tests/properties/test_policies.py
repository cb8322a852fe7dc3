"""Actors, losses and baselines, for whatever keys, solvers, starts and batches they may be given."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictSequential
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import MLP, ValueOperator

from torchrl_genpo import FlowMatchingLoss, GenPOLoss
from torchrl_genpo.baselines import (
    DummyActionLoss,
    FPOActor,
    FPOLoss,
    PolicyFlowActor,
    PolicyFlowLoss,
    asymmetric_gain,
)
from torchrl_genpo.modules import ActionScale, EulerActor, RunningNormalizer, encode

from .strategies import (
    OBS_DIM,
    actors,
    batches,
    keys,
    observations,
    randomized,
    seeds,
    velocities,
)

flat_batches = st.integers(1, 5).map(lambda n: (n,))


def make_critic(actor) -> ValueOperator:
    return ValueOperator(MLP(in_features=OBS_DIM, out_features=1, num_cells=[4]), in_keys=actor.in_keys)


def collect(actor, batch) -> TensorDict:
    data = actor(observations(actor, batch)).detach()
    data["advantage"], data["value_target"] = torch.randn(2, *batch, 1)
    return data


def finite_gradients(loss, data) -> None:
    loss.zero_grad()
    out = loss(data)
    total = sum(out[key] for key in out.keys() if key.startswith("loss_"))
    assert total.isfinite().all()
    total.sum().backward()
    gradients = [p.grad for p in loss.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@given(actors(), batches)
def test_an_actor_writes_its_keys_and_scores_what_it_wrote(actor, batch):
    data = actor(observations(actor, batch))
    shape = (*batch, actor.velocity.action_dim)
    assert data[actor.action_key].shape == data[actor.memory_key].shape == shape
    stored = data[actor.log_prob_keys[0]]
    assert stored.shape == batch and stored.dtype == torch.float32
    size = max(1.0, stored.detach().abs().max().item())
    torch.testing.assert_close(actor.log_prob(data), stored, rtol=0, atol=2e-3 * size)


@given(actors(), batches, seeds)
def test_an_actor_is_deterministic_under_a_seed_and_without_noise(actor, batch, seed):
    data = observations(actor, batch)
    drawn, plain = [], []
    for _ in range(2):
        torch.manual_seed(seed)
        drawn.append(actor(data.clone())[actor.action_key])
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            plain.append(actor(data.clone())[actor.action_key])
    assert torch.equal(*drawn) and torch.equal(*plain)


@given(actors(), st.sampled_from([(0,), (0, 2), (2, 0)]))
def test_an_actor_takes_an_empty_batch(actor, batch):
    data = actor(observations(actor, batch))
    assert data[actor.action_key].shape == (*batch, actor.velocity.action_dim)
    assert actor.log_prob(data).shape == batch
    assert actor.action_log_prob(data, 2).shape == batch


@given(actors(), st.integers(2, 5))
def test_an_actor_treats_each_row_for_itself(actor, n):
    data = actor(observations(actor, (n,))).detach()
    whole, order = actor.log_prob(data), torch.randperm(n)
    size = max(1.0, whole.abs().max().item())
    torch.testing.assert_close(actor.log_prob(data[order]), whole[order], rtol=0, atol=1e-3 * size)
    torch.testing.assert_close(actor.log_prob(data[0]), whole[0], rtol=0, atol=1e-3 * size)


@given(actors(), batches)
def test_a_copy_with_the_same_state_dict_is_the_same_policy(actor, batch):
    other = randomized(copy.deepcopy(actor))
    other.load_state_dict(actor.state_dict())
    data = actor(observations(actor, batch))
    assert torch.equal(other.log_prob(data), actor.log_prob(data))


@given(actors(), batches)
def test_the_ppo_loss_has_ratio_one_and_finite_gradients_before_the_first_update(actor, batch):
    loss_class = DummyActionLoss if hasattr(actor.solver, "step_log_det") else GenPOLoss
    loss = loss_class(actor, make_critic(actor))
    data = loss.before_updates(collect(actor, batch))
    out = loss(data)
    assert out["inversion_error"] < 1e-2 and (out["max_ratio"] - 1).abs() < 1e-2
    finite_gradients(loss, data)


@given(actors(), flat_batches, seeds)
def test_a_policy_with_normaliser_and_units_has_ratio_one_under_every_key(actor, batch, seed):
    torch.manual_seed(seed)
    (observation,) = actor.in_keys
    normalizer = RunningNormalizer(OBS_DIM, in_key=("raw", "observation"), out_key=observation)
    normalizer.update(3 + 2 * torch.randn(50, OBS_DIM))
    d = actor.velocity.action_dim
    units = ActionScale(torch.randn(d), torch.rand(d) + 0.5, in_key=actor.action_key, out_key="units")
    policy = ProbabilisticTensorDictSequential(normalizer, actor, units)
    critic = TensorDictSequential(normalizer, make_critic(actor))
    loss_class = DummyActionLoss if hasattr(actor.solver, "step_log_det") else GenPOLoss
    loss = loss_class(policy, critic)
    data = loss.before_updates(collect(policy, batch))
    out = loss(data)
    assert out["inversion_error"] < 1e-2 and (out["max_ratio"] - 1).abs() < 1e-2
    finite_gradients(loss, data)
    _, seen = encode(policy, data)
    torch.testing.assert_close(actor.log_prob(seen), actor.log_prob(data))


@given(actors(bare=True), batches, st.booleans())
def test_flow_matching_has_finite_gradients_and_padding_does_not_count(actor, batch, has_padding):
    data = observations(actor, batch)
    action = torch.randn(*batch, actor.velocity.action_dim)
    data.set(actor.action_key, action)
    if has_padding:
        data["action_is_pad"] = torch.rand_like(action) < 0.5
    loss = FlowMatchingLoss(actor)
    finite_gradients(loss, data)
    if has_padding:
        torch.manual_seed(0)
        expected = loss(data)["loss_flow_matching"]
        changed = data.clone()
        torch.manual_seed(0)
        changed["action_is_pad"] = torch.ones_like(action, dtype=torch.bool)
        assert loss(changed)["loss_flow_matching"] == 0 and expected.isfinite()


@given(actors(bare=True), st.sampled_from(["ppo", "flow matching"]))
def test_the_mean_over_an_empty_batch_is_refused_by_name(actor, which):
    data = collect(actor, (0,))
    loss = GenPOLoss(actor, make_critic(actor)) if which == "ppo" else FlowMatchingLoss(actor)
    with pytest.raises(ValueError, match="empty batch"):
        loss(data)


@given(st.data(), seeds, flat_batches, keys)
def test_the_surrogate_baselines_have_ratio_one_and_finite_gradients_before_the_first_update(data, seed, batch, key):
    torch.manual_seed(seed)
    velocity = data.draw(velocities())
    for actor_class, loss_class in ((FPOActor, FPOLoss), (PolicyFlowActor, PolicyFlowLoss)):
        actor = actor_class(copy.deepcopy(velocity), data.draw(st.integers(1, 4)), in_keys=[key])
        loss = loss_class(actor, make_critic(actor))
        batch_data = loss.before_updates(collect(actor, batch))
        assert (loss(batch_data)["max_ratio"] - 1).abs() < 1e-4
        finite_gradients(loss, batch_data)


@given(st.floats(-30, 30, width=32), st.floats(-1e3, 1e3, width=32), st.floats(0.0625, 0.875, width=32))
def test_the_gain_of_fpo_never_exceeds_that_of_the_plain_ratio(log_ratio, advantage, epsilon):
    gain = asymmetric_gain(torch.tensor(log_ratio), torch.tensor(advantage), epsilon)
    plain = torch.tensor(log_ratio).exp() * advantage
    assert gain.isfinite() and gain <= plain + 1e-5 * plain.abs()


@given(actors(bare=True), st.integers(1, 4), batches)
def test_eulers_actor_uses_the_same_velocity_and_keys(actor, steps, batch):
    data = EulerActor.of(actor, steps)(observations(actor, batch))
    assert data[actor.action_key].shape == (*batch, actor.velocity.action_dim)


@given(st.integers(-3, 3), st.floats(), st.sampled_from(["sum", "mean", "sqrt", "max"]))
def test_options_of_the_baselines_are_accepted_or_refused_by_a_value_error_that_names_them(count, number, scale):
    from torchrl_genpo import VelocityMLP

    velocity = VelocityMLP(OBS_DIM, 2, (4,))
    for value, good, make in (
        (number, number >= 0, lambda: FPOActor(velocity, 1, number)),
        (count, count >= 1, lambda: FPOActor(velocity, count)),
        (count, count >= 1, lambda: PolicyFlowActor(velocity, count)),
        (number, number > 0, lambda: PolicyFlowActor(velocity, 1, number)),
        (count, count >= 1, lambda: FPOLoss(FPOActor(velocity), None, critic_coeff=None, num_samples=count)),
        (scale, scale != "max", lambda: FPOLoss(FPOActor(velocity), None, critic_coeff=None, error_scale=scale)),
    ):
        try:
            make()
        except ValueError as error:
            assert str(value) in str(error)
        else:
            assert good and value != float("inf")
