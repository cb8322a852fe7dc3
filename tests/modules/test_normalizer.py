"""The normaliser of a policy: its statistics are those of all data, exact, and stand still between updates."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictSequential
from torchrl.modules import MLP, ValueOperator

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP
from torchrl_genpo.modules import RunningNormalizer


def test_statistics_of_batches_are_those_of_all_rows_together():
    normalizer = RunningNormalizer(3)
    batches = [torch.randn(rows, 3, dtype=torch.float64) * 2 + 7 for rows in (1, 50, 2, 400)]
    for batch in batches:
        normalizer.update(batch)
    together = torch.cat(batches)
    torch.testing.assert_close(normalizer.mean, together.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(normalizer.deviation, together.std(0, correction=0), rtol=1e-12, atol=1e-12)
    assert normalizer.count == len(together)


def test_leading_dimensions_of_a_batch_do_not_matter():
    data = torch.randn(4, 5, 3)
    one, other = RunningNormalizer(3), RunningNormalizer(3)
    one.update(data)
    other.update(data.flatten(0, 1))
    assert torch.equal(one.mean, other.mean) and torch.equal(one.deviation, other.deviation)


@pytest.mark.parametrize("power", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_varies_by_one_about_a_large_mean_is_normalised_to_a_deviation_of_one(power, dtype):
    normalizer = RunningNormalizer(1)
    data = (10.0**power + torch.randn(20_000, 1, dtype=torch.float64)).to(dtype)
    for batch in data.split(500):
        normalizer.update(batch)
    normalized = normalizer.normalize(data)
    assert normalized.std().item() == pytest.approx(1, rel=0.02)
    assert normalized.abs().max() < 6


def test_a_number_that_never_changes_becomes_zero():
    normalizer = RunningNormalizer(2)
    data = torch.stack([torch.full((100,), 3e5), torch.randn(100)], -1)
    for batch in data.split(10):
        normalizer.update(batch)
    normalized = normalizer.normalize(data)
    assert torch.equal(normalized[:, 0], torch.zeros(100))
    assert normalized[:, 1].std().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_reach_neither_the_statistics_nor_the_action(bad):
    normalizer, clean = RunningNormalizer(2), RunningNormalizer(2)
    data = torch.randn(50, 2)
    clean.update(torch.cat([data[:7], data[8:]]))
    data[7, 1] = bad
    normalizer.update(data)
    torch.testing.assert_close(normalizer.mean, clean.mean)
    torch.testing.assert_close(normalizer.deviation, clean.deviation)
    assert normalizer.count == 49
    assert normalizer.normalize(data).isfinite().all() and normalizer.normalize(data).abs().max() <= 10


def test_a_batch_without_a_finite_row_changes_nothing():
    normalizer = RunningNormalizer(2)
    normalizer.update(torch.randn(5, 2))
    before = copy.deepcopy(normalizer.state_dict())
    normalizer.update(torch.full((3, 2), float("nan")))
    assert all(torch.equal(before[key], value) for key, value in normalizer.state_dict().items())


def test_before_the_first_update_the_observation_is_only_clipped():
    normalizer = RunningNormalizer(2, clip=5.0)
    assert normalizer.normalize(torch.tensor([1.5, -70.0])).tolist() == [1.5, -5.0]


def test_calling_it_does_not_move_the_statistics():
    normalizer = RunningNormalizer(3)
    normalizer.update(torch.randn(10, 3))
    before = copy.deepcopy(normalizer.state_dict())
    normalizer(TensorDict(observation=torch.randn(6, 3) + 100, batch_size=[6]))
    assert all(torch.equal(before[key], value) for key, value in normalizer.state_dict().items())


@pytest.mark.parametrize("cast", [lambda m: m.float(), lambda m: m.half(), lambda m: m.double()])
def test_casting_the_policy_does_not_round_the_statistics(cast):
    normalizer = RunningNormalizer(1)
    normalizer.update(torch.tensor([[1e6 + 1 / 3], [1e6 - 1 / 3]], dtype=torch.float64))
    before = normalizer.mean.clone(), normalizer.deviation.clone()
    cast(torch.nn.Sequential(normalizer))
    assert normalizer.mean.dtype == torch.float64
    assert torch.equal(normalizer.mean, before[0]) and torch.equal(normalizer.deviation, before[1])


def test_sums_over_processes_are_as_one_process():
    data = torch.randn(40, 3) * 3 - 2
    whole = RunningNormalizer(3)
    whole.update(data)
    parts = [data[:10], data[10:]]
    # what the other process contributes to each of the three sums, in the order in which they are taken
    mean = data.double().mean(0)
    other = iter([torch.tensor(30.0).double(), parts[1].double().sum(0), (parts[1].double() - mean).square().sum(0)])
    mine = RunningNormalizer(3)
    mine.update(parts[0], lambda value: value + next(other))
    torch.testing.assert_close(mine.mean, whole.mean)
    torch.testing.assert_close(mine.deviation, whole.deviation)
    assert mine.count == whole.count


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RunningNormalizer(0), "size must be at least 1"),
        (lambda: RunningNormalizer(2, clip=0), "clip must be positive"),
        (lambda: RunningNormalizer(2, out_key="observation"), "must be kept for training"),
        (lambda: RunningNormalizer(2).normalize(torch.zeros(3)), "of size 2, got 3"),
        (lambda: RunningNormalizer(2).update(torch.zeros(4, 3)), "of size 2, got 3"),
    ],
)
def test_what_cannot_be_is_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_nested_keys():
    normalizer = RunningNormalizer(2, in_key=("agent", "observation"), out_key=("agent", "seen"))
    td = TensorDict({("agent", "observation"): torch.ones(3, 2)}, batch_size=[3])
    assert torch.equal(normalizer(td)["agent", "seen"], torch.ones(3, 2))


def make_parts():
    normalizer = RunningNormalizer(4)
    key = normalizer.out_keys[0]
    policy = ProbabilisticTensorDictSequential(
        normalizer, ReversibleFlowActor(VelocityMLP(4, 2, (16, 16)), in_keys=[key])
    )
    critic = TensorDictSequential(normalizer, ValueOperator(MLP(in_features=4, out_features=1), in_keys=[key]))
    return normalizer, policy, critic


def test_policy_and_critic_share_one_normaliser_also_inside_the_loss():
    normalizer, policy, critic = make_parts()
    torch.nn.init.normal_(policy[1].velocity.trunk[-1].weight)
    loss = GenPOLoss(policy, critic)
    td = TensorDict(observation=torch.randn(64, 4) * 5 + 3, batch_size=[64])
    data = policy(td.clone()).detach()
    data["advantage"], data["value_target"] = torch.randn(2, 64, 1)
    before = loss(data)
    assert abs(before["max_ratio"] - 1) < 1e-4 and abs(before["kl_approx"]) < 1e-4
    normalizer.update(td["observation"])
    after = loss(data)
    assert after["kl_approx"] > 0.05, "the loss sees the moved statistics of the policy"
    assert not torch.equal(after["loss_critic"], before["loss_critic"]), "and so does the critic"
    assert (loss(policy(td.clone()).detach().update(data.select("advantage", "value_target")))["max_ratio"] - 1) < 1e-4


def test_the_state_dict_of_a_policy_holds_the_statistics():
    normalizer, policy, _ = make_parts()
    normalizer.update(torch.randn(30, 4))
    _, other, _ = make_parts()
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other[0].mean, normalizer.mean) and other[0].count == 30


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_policy_and_its_critic_can_be_cast_whole(dtype):
    normalizer = RunningNormalizer(4)
    actor = ReversibleFlowActor(VelocityMLP(4, 2, (16,)), in_keys=["normalized_observation"])
    policy = ProbabilisticTensorDictSequential(normalizer, actor).to(dtype)
    copied = copy.deepcopy(policy)
    for observation in (torch.randn(8, 4), torch.randn(8, 4).double(), torch.randint(9, (8, 4))):
        data = copied(TensorDict(observation=observation, batch_size=[8]))
        assert data["normalized_observation"].dtype == dtype
    data = policy.float()(TensorDict(observation=torch.randn(8, 4), batch_size=[8]))
    assert data["action"].dtype == torch.float32
