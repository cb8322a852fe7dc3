"""Transforms and buffers, for whatever sizes, delays and lengths they may be given."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_genpo.data import data_range, make_chunk_buffer
from torchrl_genpo.envs.xhand import ActionDelay, DeltaTarget, History, Noise

from .strategies import dims, seeds


class Joints(EnvBase):
    """Joints that are at once where they are told to be."""

    def __init__(self, num_envs: int, joints: int) -> None:
        super().__init__(batch_size=[num_envs])
        self.generator = torch.Generator().manual_seed(0)
        shape = (num_envs, joints)
        self.observation_spec = Composite(joint_position=Unbounded(shape), shape=[num_envs])
        self.action_spec = Bounded(-10, 10, shape=shape)
        self.reward_spec = Unbounded((num_envs, 1))

    def _reset(self, tensordict):
        drawn = torch.rand(self.observation_spec["joint_position"].shape, generator=self.generator)
        return TensorDict({"joint_position": 4 * drawn - 2, **self._ends()}, self.batch_size)

    def _step(self, tensordict):
        reward = torch.zeros(*self.batch_size, 1)
        position = tensordict["action"].clone()
        return TensorDict({"joint_position": position, "reward": reward, **self._ends()}, self.batch_size)

    def _ends(self):
        done = torch.zeros(*self.batch_size, 1, dtype=torch.bool)
        return {"done": done, "terminated": done.clone()}

    def _set_seed(self, seed):
        self.generator.manual_seed(seed)


@st.composite
def demonstrations(draw: st.DrawFn) -> list[TensorDict]:
    """Of different lengths, with sizes that all of them share."""
    torch.manual_seed(draw(seeds))
    n, d = draw(dims), draw(dims)
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    return [
        TensorDict(observation=torch.randn(length, n), action=torch.randn(length, d), batch_size=[length])
        for length in lengths
    ]


@given(demonstrations(), st.integers(1, 8), st.integers(1, 5))
def test_every_chunk_holds_the_actions_that_follow_and_says_where_it_made_them_up(steps, chunk_size, batch_size):
    buffer = make_chunk_buffer(steps, chunk_size, batch_size)
    data = buffer[:]
    d = steps[0]["action"].shape[-1]
    assert len(data) == sum(map(len, steps)) and len(buffer.sample()) == batch_size
    row = 0
    for demonstration in steps:
        for t in range(len(demonstration)):
            chunk, is_pad = (data[row][key].view(chunk_size, d) for key in ("action", "action_is_pad"))
            index = torch.arange(t, t + chunk_size)
            assert torch.equal(is_pad, (index >= len(demonstration)).unsqueeze(-1).expand(-1, d))
            assert torch.equal(chunk, demonstration["action"][index.clamp(max=len(demonstration) - 1)])
            row += 1


@given(demonstrations(), st.sampled_from(["observation", "action"]))
def test_the_range_of_data_maps_all_of_it_onto_minus_one_to_one(steps, key):
    loc, scale = data_range(steps, key)
    scaled = torch.cat([(step[key] - loc) / scale for step in steps])
    assert (scale > 0).all() and scaled.abs().max() < 1 + 1e-4


@given(demonstrations(), st.integers(-2, 0), st.sampled_from(["chunk_size", "batch_size"]))
def test_sizes_of_a_chunk_buffer_below_one_are_refused_by_name(steps, size, which):
    with pytest.raises(ValueError, match=rf"{which} .*{size}"):
        make_chunk_buffer(steps, **({"chunk_size": 2, "batch_size": 2} | {which: size}))


def test_a_chunk_buffer_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no demonstration"):
        make_chunk_buffer([], 2, 2)
    with pytest.raises(ValueError, match="no demonstration"):
        data_range([], "action")


@given(st.integers(1, 3), st.integers(1, 5), st.floats(0.01, 2), st.booleans(), st.data())
def test_targets_move_by_at_most_the_scale_and_stay_within_the_limits(num_envs, joints, scale, masked, data):
    active = data.draw(st.lists(st.integers(0, joints - 1), min_size=1, unique=True))
    low, high = -torch.ones(joints), torch.ones(joints)
    delta = DeltaTarget(low, high, scale=scale, active=active, masked=masked)
    env = TransformedEnv(Joints(num_envs, joints), delta)
    rollout = env.rollout(4, policy=lambda td: td.set("action", 3 * torch.randn(*env.action_spec.shape)))
    assert env.action_spec.shape[-1] == (joints if masked else len(active))
    before, after = rollout["joint_target"], rollout["next", "joint_target"]
    assert (after.abs() <= 1).all() and ((after - before).abs() <= scale + 1e-6).all()
    still = [joint for joint in range(joints) if joint not in active]
    assert torch.equal(before[..., still], after[..., still])
    assert torch.equal(rollout["next", "joint_position"], after)


@given(st.integers(0, 4), st.integers(1, 3), st.integers(1, 3), seeds)
def test_a_delayed_action_arrives_after_the_number_of_steps_that_was_drawn(max_delay, num_envs, joints, seed):
    env = TransformedEnv(Joints(num_envs, joints), ActionDelay(max_delay))
    env.set_seed(seed)
    td = env.reset()
    delay, initial = td["action_delay"].squeeze(-1).long(), td["joint_position"]
    assert (delay >= 0).all() and (delay <= max_delay).all()
    actions = torch.randn(6, num_envs, joints)
    for step in range(6):
        td = env.step(td.set("action", actions[step]))["next"].exclude("reward")
        for row in range(num_envs):
            due = step - delay[row]
            assert torch.equal(td["joint_position"][row], actions[due, row] if due >= 0 else initial[row])


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
def test_a_history_is_the_last_observations_the_oldest_first(length, num_envs, joints):
    env = TransformedEnv(Joints(num_envs, joints), History(length, in_key="joint_position", out_key="history"))
    td = env.reset()
    seen = [td["joint_position"]] * length
    for _ in range(4):
        assert torch.equal(td["history"], torch.cat(seen, -1))
        td = env.step(td.set("action", torch.randn(num_envs, joints)))["next"].exclude("reward")
        seen = [*seen[1:], td["joint_position"]]


@given(st.floats(0, 2), st.floats(0, 2), seeds)
def test_noise_is_the_same_for_a_seed_and_none_where_its_deviations_are_zero(bias, white, seed):
    env = TransformedEnv(Joints(2, 3), Noise(bias, white, in_key="joint_position", out_key="measured"))
    drawn = []
    for _ in range(2):
        env.set_seed(seed)
        torch.manual_seed(seed)
        drawn.append(env.rollout(3))
    assert torch.equal(drawn[0]["next", "measured"], drawn[1]["next", "measured"])
    error = drawn[0]["next", "measured"] - drawn[0]["next", "joint_position"]
    assert error.abs().max() == 0 if bias == white == 0 else error.isfinite().all()


@given(st.floats(), st.integers(-3, 3))
def test_settings_of_the_transforms_are_accepted_or_refused_by_a_value_error_that_names_them(number, count):
    bounds = -torch.ones(2), torch.ones(2)
    for value, good, make in (
        (number, number > 0, lambda: DeltaTarget(*bounds, scale=number)),
        (count, 0 <= count < 2, lambda: DeltaTarget(*bounds, scale=0.1, active=[count])),
        (count, count >= 0, lambda: ActionDelay(count)),
        (count, count >= 1, lambda: History(count, in_key="a", out_key="b")),
        (number, number >= 0, lambda: Noise(number, 0.1, in_key="a")),
        (number, number >= 0, lambda: Noise(0.1, number, in_key="a")),
    ):
        try:
            make()
        except ValueError as error:
            assert str(value) in str(error)
        else:
            assert good and value != float("inf")
