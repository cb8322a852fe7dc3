"""MultiGoal: equally good goals, and the entropy of those that a policy reaches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule

from torchrl_genpo.envs import make_env
from torchrl_genpo.envs.multi_goal import MultiGoalEnv
from torchrl_genpo.training.evaluation import evaluate


def go(env, direction):
    """Runs from the exact centre in one direction; the rewards and the last observation."""
    env.reset(seed=0)
    env.state = np.zeros(2)
    rewards = []
    for _ in range(30):
        observed, reward, terminated, truncated, _ = env.step(direction)
        rewards.append(reward)
        assert not truncated
        if terminated:
            break
    return rewards, observed


def test_reward_is_the_published_one():
    rewards, observed = go(MultiGoalEnv(), np.array([0.5, 0.0]))
    distances = 5 - 0.5 * np.arange(1, 10)
    expected = -30 * 0.25 - distances**2
    expected[-1] += 10
    np.testing.assert_allclose(rewards, expected, atol=1e-6)
    assert observed["reached_goal"].tolist() == [1, 0, 0, 0] and observed["success"].tolist() == [1]


@pytest.mark.parametrize("num_goals", [2, 4, 8])
def test_every_goal_is_as_good_as_any_other(num_goals):
    env = MultiGoalEnv(num_goals)
    returns = []
    for i, goal in enumerate(env.goals):
        rewards, observed = go(env, 0.09 * goal)
        returns.append(sum(rewards))
        assert observed["reached_goal"].argmax() == i
    np.testing.assert_allclose(returns, returns[0], atol=1e-5)


def test_an_episode_that_reaches_nothing_is_truncated_after_30_steps():
    env = make_env("multi_goal", num_envs=1, seed=0)
    td = env.rollout(40, lambda td: td.set("action", torch.zeros(1, 2)))
    assert td.shape[-1] == 30 and td["next", "truncated"][0, -1] and not td["next", "terminated"].any()
    assert td["next", "reached_goal"].sum() == 0


def towards(goals):
    """A policy by which environment ``i`` goes to goal ``goals[i]``."""
    actions = 0.5 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])[torch.tensor(goals)]
    return TensorDictModule(lambda observation: actions, in_keys=["observation"], out_keys=["action"])


@pytest.mark.parametrize(
    ("goals", "entropy"),
    [([0, 0, 0, 0], 0.0), ([0, 1, 2, 3], math.log(4)), ([0, 0, 1, 1], math.log(2)), ([0, 0, 0, 1], 0.5623)],
)
def test_evaluation_tells_the_entropy_of_the_reached_goals(goals, entropy):
    env = make_env("multi_goal", num_envs=4)
    results = evaluate(env, towards(goals), seed=0, rounds=2)
    assert results["eval/random_noise/goal_entropy"] == pytest.approx(entropy, abs=1e-4)
    assert results["eval/zero_noise/success"] == 1


def test_where_no_goal_is_reached_the_entropy_is_zero():
    policy = TensorDictModule(lambda observation: 0 * observation, in_keys=["observation"], out_keys=["action"])
    results = evaluate(make_env("multi_goal", num_envs=2), policy, seed=0)
    assert results["eval/random_noise/goal_entropy"] == 0 and results["eval/random_noise/success"] == 0


def test_pictures_show_point_and_goals():
    env = MultiGoalEnv(render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (200, 200, 3)
    assert (picture[100, 100] == 0).all(), "the point is in the centre"
    assert picture[100, 171].tolist() == [120, 200, 120], "a goal is to its right"


def test_too_few_goals_are_refused():
    with pytest.raises(ValueError, match="num_goals must be at least 2, got 1"):
        MultiGoalEnv(1)
