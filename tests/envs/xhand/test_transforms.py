"""Transforms of a hand, on an environment that tells what it was given."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Binary, Composite, Unbounded
from torchrl.envs import Compose, EnvBase, TransformedEnv, check_env_specs

from torchrl_genpo.envs.xhand import ActionDelay, DeltaTarget, History, Noise

START = 0.5


class Echo(EnvBase):
    """Three joints that are where their targets are."""

    def __init__(self, num_envs):
        super().__init__(batch_size=[num_envs])
        self.generator = torch.Generator().manual_seed(0)
        shape = (num_envs, 3)
        self.observation_spec = Composite(joint_position=Unbounded(shape), shape=[num_envs])
        self.action_spec = Unbounded(shape)
        self.reward_spec = Unbounded((num_envs, 1))
        self.full_done_spec = Composite(done=Binary(1, (num_envs, 1), dtype=torch.bool), shape=[num_envs])
        self.position = torch.full(shape, START)

    def _reset(self, tensordict=None, **kwargs):
        mask = None if tensordict is None else tensordict.get("_reset", None)
        self.position = (
            torch.full_like(self.position, START) if mask is None else self.position.masked_fill(mask, START)
        )
        done = torch.zeros(*self.batch_size, 1, dtype=torch.bool)
        return TensorDict({"joint_position": self.position, "done": done}, batch_size=self.batch_size)

    def _step(self, tensordict):
        self.position = tensordict["action"].clone()
        zero = torch.zeros(*self.batch_size, 1)
        return TensorDict(
            {"joint_position": self.position, "reward": zero, "done": zero.bool()}, batch_size=self.batch_size
        )

    def _set_seed(self, seed):
        self.generator.manual_seed(seed)


def walk(env, actions, td=None):
    """Steps without resets; the ``next`` tensordicts, stacked in time."""
    td, steps = env.reset() if td is None else td, []
    for action in actions:
        step, td = env.step_and_maybe_reset(td.set("action", action))
        assert torch.equal(step["action"], action), "the stored action must stay what the policy scored"
        steps.append(step["next"].clone())
    return torch.stack(steps)


LOW, HIGH = torch.zeros(3), torch.tensor([1.0, 0.6, 1.0])


@pytest.mark.parametrize("masked", [False, True])
def test_actions_move_the_targets_of_active_joints_within_limits(masked):
    torch.manual_seed(0)
    env = TransformedEnv(Echo(4), DeltaTarget(LOW, HIGH, scale=0.1, active=[0, 1], masked=masked))
    check_env_specs(env)
    actions = 3 * torch.randn(30, 4, 3 if masked else 2)
    steps = walk(env, actions)
    expected = torch.full((4, 3), START)
    for action, target, position in zip(actions, steps["joint_target"], steps["joint_position"], strict=True):
        for joint in (0, 1):
            expected[:, joint] += 0.1 * action[:, joint].clip(-1, 1)
        expected = expected.clip(LOW, HIGH)
        torch.testing.assert_close(target, expected)
        torch.testing.assert_close(position, expected)
    assert (steps["joint_target"] == HIGH).any() and (steps["joint_target"][..., 2] == START).all()


def test_each_row_gets_its_actions_as_late_as_was_drawn():
    env = TransformedEnv(Echo(40), ActionDelay(2))
    check_env_specs(env)
    actions = torch.arange(1, 9).float()[:, None, None].expand(8, 40, 3)
    td = env.reset()
    delays = td["action_delay"].long().flatten()
    assert torch.bincount(delays).min() > 5 and delays.max() == 2
    positions = walk(env, actions, td)["joint_position"][..., 0]
    for row, delay in enumerate(delays.tolist()):
        assert positions[:, row].tolist() == [START] * delay + list(range(1, 9 - delay))


def test_no_delay_changes_nothing():
    env = TransformedEnv(Echo(2), ActionDelay(0))
    check_env_specs(env)
    actions = torch.randn(3, 2, 3)
    steps = walk(env, actions)
    assert torch.equal(steps["joint_position"], actions) and (steps["action_delay"] == 0).all()


def test_a_reset_draws_the_delay_anew_and_forgets_what_is_on_its_way():
    env = TransformedEnv(Echo(40), ActionDelay(2))
    td = env.reset()
    before = td["action_delay"].clone()
    _, td = env.step_and_maybe_reset(td.set("action", torch.full((40, 3), 9.0)))
    mask = (torch.arange(40) < 20).unsqueeze(-1)
    td = env.reset(td.set("_reset", mask))
    assert (td["action_delay"][20:] == before[20:]).all() and (td["action_delay"][:20] != before[:20]).any()
    assert (td["action_queue"][:20] == START).all() and (td["action_queue"][20:, 0] == 9).all()


@pytest.mark.parametrize("key", ["joint_position", "action"])
def test_noise_is_an_offset_an_episode_and_white_noise_a_step(key):
    out = {} if key == "action" else {"out_key": "measured"}
    env = TransformedEnv(Echo(2000), Noise(0.3, 0.1, in_key=key, **out))
    check_env_specs(env)
    actions = torch.randn(4, 2000, 3)
    td = env.reset()
    bias = td[f"{key}_bias"].clone()
    assert bias.std() == pytest.approx(0.3, rel=0.05) and abs(bias.mean()) < 0.02
    steps = walk(env, actions, td)
    assert (steps[f"{key}_bias"] == bias).all()
    white = (steps["joint_position"] if key == "action" else steps["measured"]) - actions - bias
    assert white.std() == pytest.approx(0.1, rel=0.03)
    assert abs((white[0] * white[1]).mean()) < 0.001, "drawn anew at every step"
    if key != "action":
        assert torch.equal(steps["joint_position"], actions), "a critic may see the truth"


def test_noise_comes_from_the_generator_of_the_environment():
    env = TransformedEnv(Echo(3), Noise(0.3, 0.1, in_key="joint_position", out_key="measured"))
    draws = []
    for seed in (1, 1, 2):
        env.set_seed(seed)
        torch.manual_seed(len(draws))
        draws.append(env.reset()["measured"].clone())
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_history_holds_the_last_observations_oldest_first():
    env = TransformedEnv(Echo(2), History(3, in_key="joint_position", out_key="frames"))
    check_env_specs(env)
    actions = torch.arange(1, 6).float()[:, None, None].expand(5, 2, 3)
    td = env.reset()
    assert (td["frames"] == START).all()
    frames = walk(env, actions, td)["frames"][:, 0].unflatten(-1, (3, 3))[..., 0]
    assert frames.tolist() == [[START, START, 1], [START, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]
    assert not dict(env.state_dict()), "a checkpoint fits every batch size"


def test_the_policy_sees_its_targets_before_delay_and_noise():
    chain = Compose(Noise(0.0, 0.1, in_key="action"), ActionDelay(1), DeltaTarget(LOW, HIGH, scale=0.1))
    env = TransformedEnv(Echo(50), chain)
    td = env.reset()
    delay = td["action_delay"]
    step = env.step(td.set("action", torch.ones(50, 3)))["next"]
    torch.testing.assert_close(step["joint_target"], (START + 0.1 * torch.ones(50, 3)))
    sent = START + 0.1 * (1 - delay)
    assert 0.05 < (step["joint_position"] - sent).std() < 0.15


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeltaTarget(LOW, HIGH, scale=0.0), "scale must be positive and finite, got 0.0"),
        (lambda: ActionDelay(-1), "max_delay must not be negative, got -1"),
        (lambda: Noise(-1.0, 0.0, in_key="action"), "must be finite and not negative, got bias=-1.0"),
        (lambda: History(0, in_key="a", out_key="b"), "at least 1 observation, got 0"),
        (lambda: History(2, in_key="a", out_key="a"), "must differ, both are 'a'"),
    ],
)
def test_mistakes_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()
