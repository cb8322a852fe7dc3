"""Transforms that any task can use."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torchrl.envs import check_env_specs

from torchrl_genpo.envs import DiscountedReturn, make_env


def test_the_discounted_return_starts_anew_with_every_episode():
    env = make_env("Pendulum-v1", num_envs=4, seed=0).append_transform(DiscountedReturn(gamma=0.9))
    check_env_specs(env)
    steps = env.rollout(450, break_when_any_done=False)["next"]
    assert steps["done"].sum() == 8, "the test wants ends of episodes"
    expected = torch.zeros(4, 1)
    for t in range(450):
        expected = 0.9 * expected + steps["reward"][:, t]
        torch.testing.assert_close(steps["discounted_return"][:, t], expected)
        expected = expected * ~steps["done"][:, t]


def test_one_reward_that_is_not_finite_does_not_spoil_the_discounted_return_of_the_rest():
    transform = DiscountedReturn(gamma=0.5)
    td = TensorDict(discounted_return=torch.tensor([[4.0], [4.0]]))
    step = transform._step(td, TensorDict(reward=torch.tensor([[float("nan")], [1.0]])))
    assert step["discounted_return"].flatten().tolist() == [0.0, 3.0]
    assert step["reward"][0].isnan(), "the reward itself is for the learner to find"
