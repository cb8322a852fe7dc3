"""Hidden goals: nothing observed tells the goal, every goal can be found, and mixing them is what finds it soon."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_genpo.envs import make_env
from torchrl_genpo.envs.hidden_goals import ATTEMPTS, NUM_GOALS, HiddenPointEnv, HiddenReachEnv


@pytest.mark.parametrize("hidden", range(NUM_GOALS))
def test_an_attempt_at_the_hidden_goal_finds_it_and_at_another_costs_one(hidden):
    env = HiddenPointEnv()
    env.reset(seed=0)
    for goal in [*(goal for goal in range(NUM_GOALS) if goal != hidden), hidden]:
        env.state[0] = hidden
        observed, reward, terminated, truncated, _ = env.step(env.goals(env.state[1:])[goal])
        assert terminated == (goal == hidden) and reward == goal_reward(terminated) and not truncated
        assert observed["success"].tolist() == [float(terminated)]


def goal_reward(found):
    return 0.0 if found else -1.0


@pytest.mark.parametrize("make", [HiddenPointEnv, HiddenReachEnv])
def test_nothing_observed_tells_the_goal(make):
    def observations(hidden):
        env = make()
        env.reset(seed=0)
        env.state[0] = hidden
        steps = [env.step(np.zeros(env.action_space.shape)) for _ in range(5)]
        assert not any(terminated for _, _, terminated, *_ in steps), "an attempt at no goal"
        return np.stack([observed["observation"] for observed, *_ in steps])

    for hidden in range(1, NUM_GOALS):
        np.testing.assert_array_equal(observations(hidden), observations(0))


def test_a_mixture_of_the_goals_fails_three_times_and_one_goal_alone_most_often():
    rng = np.random.default_rng(1)  # not the stream that hides the goals
    env = HiddenPointEnv()

    def mean_return(draw, episodes=1000):
        total = 0.0
        env.reset(seed=0)
        for _ in range(episodes):
            env.reset()
            for _ in range(ATTEMPTS):
                _, reward, terminated, *_ = env.step(env.goals(env.state[1:])[draw()])
                total += reward
                if terminated:
                    break
        return total / episodes

    assert mean_return(lambda: rng.integers(NUM_GOALS)) == pytest.approx(-3.0, abs=0.4)  # 4 standard errors
    assert mean_return(lambda: 0) == pytest.approx(-15.0, abs=1.1)


def test_the_arm_can_reach_every_goal_and_feels_where_it_begins():
    rng = np.random.default_rng(0)
    env = HiddenReachEnv()
    actions = rng.uniform(-1, 1, (3000, 2))
    ends = np.stack([env.attempt(np.zeros(2), action) for action in actions])
    distances = np.linalg.norm(ends[:, None] - env.goals(np.zeros(2)), axis=-1)
    assert (distances.min(0) < env.THRESHOLD / 2).all()
    again = env.attempt(np.zeros(2), actions[0])
    np.testing.assert_array_equal(again, ends[0], "an attempt leaves nothing behind")
    assert np.linalg.norm(env.attempt(np.array([0.2, -0.2]), actions[0]) - again) > 0.001


@pytest.mark.parametrize("name", ["hidden_point", "hidden_reach"])
def test_an_episode_that_finds_nothing_is_truncated(name):
    env = make_env(name, num_envs=3, seed=0)
    td = env.rollout(2 * ATTEMPTS, lambda td: td.set("action", torch.zeros(3, 2)))
    assert td.shape[-1] == ATTEMPTS and td["next", "truncated"][:, -1].all() and not td["next", "terminated"].any()
    assert (td["next", "episode_reward"][:, -1] == -ATTEMPTS).all()
