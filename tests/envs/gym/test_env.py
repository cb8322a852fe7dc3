"""Gymnasium environments: the task's own physics, units and limits, honest ends of episodes, exact states."""

from __future__ import annotations

from contextlib import nullcontext

import gymnasium
import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.envs import check_env_specs
from torchrl.modules import ValueOperator
from torchrl.objectives.value import GAE

from torchrl_genpo.envs import GYM_TASKS, make_env
from torchrl_genpo.envs.seeds import spawn_generator

RAW = {"normalize_observation": False, "scale_reward": False}


def rollout(env, actions):
    """Steps through ``actions [time, env, d]`` with resets; the stacked steps."""
    td, steps = env.reset(), []
    for action in actions:
        step, td = env.step_and_maybe_reset(td.set("action", action))
        steps.append(step.clone())
    return torch.stack(steps, 1)


@pytest.mark.parametrize("name", [*GYM_TASKS, "Pendulum-v1"])
def test_every_task_fulfils_torchrl_specs(name):
    env = make_env(name, num_envs=2, seed=0)
    check_env_specs(env)
    assert env.observation_spec["observation"].dtype == torch.float32
    env.close()


def test_physics_resets_and_seeds_are_those_of_gymnasium():
    # The pendulum falls at a different step in each environment, so the resets are partial.
    torch.manual_seed(0)
    actions = 6 * torch.rand(60, 3, 1) - 3
    env = make_env("pendulum", num_envs=3, seed=5)
    steps = rollout(env, actions)
    ends = steps["next", "done"].squeeze(-1).int().argmax(1)
    assert len(set(ends.tolist())) > 1, "the test wants episodes of different lengths"
    for i in range(3):
        reference = gymnasium.make("InvertedPendulum-v5")
        reference.reset(seed=0)
        reference.unwrapped.np_random = spawn_generator(5, 0, i)
        observation, _ = reference.reset()
        for t in range(60):
            expected = torch.as_tensor(observation, dtype=torch.float32)
            torch.testing.assert_close(steps[i, t]["observation"], expected, rtol=0, atol=1e-6)
            observation, reward, terminated, truncated, _ = reference.step(actions[t, i].numpy())
            after = steps[i, t]["next"]
            expected = torch.as_tensor(observation, dtype=torch.float32)
            torch.testing.assert_close(after["observation"], expected, rtol=0, atol=1e-6)  # terminal ones too
            assert after["reward"].item() == reward
            assert (after["terminated"].item(), after["truncated"].item()) == (terminated, truncated)
            if terminated:
                observation, _ = reference.reset()


@pytest.mark.parametrize("name", [*GYM_TASKS, "Pendulum-v1"])
def test_the_action_spec_has_the_bounds_of_the_task(name):
    env = make_env(name, num_envs=2)
    space = gymnasium.make(GYM_TASKS.get(name, name)).action_space
    for bound, expected in ((env.action_spec.space.low, space.low), (env.action_spec.space.high, space.high)):
        torch.testing.assert_close(bound, torch.as_tensor(expected).expand(2, -1))


def test_actions_beyond_the_bounds_are_clipped_inside_the_environment_and_stored_as_they_are():
    raw = gymnasium.make("Humanoid-v5")
    raw.reset(seed=0)
    raw.unwrapped.np_random = spawn_generator(0, 0, 0)
    raw.reset()
    expected, reward, *_ = raw.step(np.full(17, 0.4, np.float32))  # Humanoid's bound
    for value in (0.4, 7.0):
        env = make_env("humanoid", seed=0)
        step = env.step(env.reset().set("action", torch.full((1, 17), value)))
        torch.testing.assert_close(step["next", "observation"][0], torch.as_tensor(expected, dtype=torch.float32))
        assert step["next", "reward"].item() == pytest.approx(reward)
        assert (step["action"] == value).all(), "the stored action must stay what the policy scored"


def test_a_collector_neither_projects_nor_refuses_actions_beyond_the_bounds():
    env = make_env("half_cheetah", num_envs=2, seed=0)
    policy = TensorDictModule(lambda observation: 5 + observation[..., :6], ["observation"], ["action"])
    collector = Collector(env, policy, frames_per_batch=8, total_frames=8)
    (data,) = collector
    torch.testing.assert_close(data["action"], 5 + data["observation"][..., :6])


@pytest.mark.parametrize(("name", "length", "bootstraps"), [("Pendulum-v1", 200, True), ("pendulum", None, False)])
def test_truncation_bootstraps_and_termination_does_not(name, length, bootstraps):
    env = make_env(name, num_envs=2, seed=0)
    steps = rollout(env, torch.rand(201, 2, 1) * 2 - 1)
    done = steps["next", "done"].squeeze(-1)
    end = done[0].int().argmax().item()
    assert done.any(1).all() and (length is None or end == length - 1)
    assert steps["next", "truncated"][0, end].item() == bootstraps
    assert steps["next", "terminated"][0, end].item() != bootstraps

    value = 100.0
    critic = ValueOperator(torch.nn.Linear(steps["observation"].shape[-1], 1), in_keys=["observation"])
    torch.nn.init.zeros_(critic.module.weight)
    torch.nn.init.constant_(critic.module.bias, value)
    with torch.no_grad():
        GAE(gamma=0.9, lmbda=0.0, value_network=critic, average_gae=False)(steps)
    target = steps["next", "reward"] + 0.9 * value * (~steps["next", "terminated"])
    torch.testing.assert_close(steps["value_target"], target)


def test_episode_reward_is_the_raw_return_of_the_episode():
    env = make_env("pendulum", num_envs=2, seed=0)
    steps = rollout(env, torch.rand(80, 2, 1) * 2 - 1)
    done = steps["next", "done"].squeeze(-1)
    # one point for each step that the pendulum stays up
    upright = steps["next", "step_count"][done].float() - 1
    assert done.sum() > 2
    torch.testing.assert_close(steps["next", "episode_reward"][done], upright)


def test_observations_and_rewards_are_those_of_the_task_however_large():
    env = make_env("Pendulum-v1", num_envs=2, seed=0)
    steps = rollout(env, torch.zeros(50, 2, 1))
    angle = torch.atan2(steps["observation"][..., 1], steps["observation"][..., 0])
    cost = angle**2 + 0.1 * steps["observation"][..., 2] ** 2
    torch.testing.assert_close(steps["next", "reward"].squeeze(-1), -cost, rtol=1e-5, atol=1e-6)
    assert cost.max() > 10


def test_a_rollout_goes_on_until_every_episode_has_ended():
    torch.manual_seed(0)
    steps = make_env("pendulum", num_envs=4, seed=5).rollout(200, break_when_all_done=True)
    ends = steps["next", "done"].squeeze(-1).int().argmax(1)
    assert len(set(ends.tolist())) > 1, "the test wants episodes of different lengths"
    assert steps.shape == (4, ends.max() + 1)
    for i, end in enumerate(ends):
        assert (steps[i, end:]["next", "episode_reward"] == steps[i, end]["next", "episode_reward"]).all()


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ({"name": "half_cheeta"}, ["half_cheeta", "Did you mean half_cheetah"]),
        ({"name": "hopper", "num_envs": 0}, ["num_envs must be at least 1, got 0"]),
        ({"name": "CartPole-v1"}, ["CartPole-v1", "Discrete action space", "Box"]),
        ({"name": "my_modul:my/Task-v0"}, ["no module 'my_modul'", "PYTHONPATH"]),
        ({"name": "hopper", "max_episode_steps": 0}, ["max_episode_steps must be at least 1, got 0"]),
    ],
)
def test_mistakes_are_explained(arguments, messages):
    with pytest.raises((ValueError, ImportError)) as error:
        make_env(**arguments)
    assert all(message in str(error.value) for message in messages)


def test_a_limit_on_the_steps_truncates_the_episodes_of_a_task_without_one_and_with_another(register):
    for name, own in ((register(), None), ("Pendulum-v1", 200)):
        env = make_env(name, num_envs=2, seed=0, max_episode_steps=7)
        steps = rollout(env, torch.zeros(21, 2, env.action_spec.shape[-1]))
        assert steps["next", "truncated"][..., 0].nonzero()[:, 1].tolist() == [6, 13, 20] * 2
        assert not steps["next", "terminated"].any()
        with nullcontext() if own else pytest.warns(UserWarning, match="no time limit.* give it one by env.max_ep"):
            unlimited = make_env(name, num_envs=1, seed=0)
        default = rollout(unlimited, torch.zeros(201, 1, env.action_spec.shape[-1]))
        assert default["next", "truncated"].any() == (own is not None)


def test_an_entry_point_with_required_arguments_is_named_with_them(register):
    class Maze(gymnasium.Env):
        def __init__(self, size, walls, *, colour, lamp=None, **others):
            raise AssertionError("it must not be called")

    name = register(Maze)
    gymnasium.registry[name].kwargs = {"walls": 3}
    with pytest.raises(ValueError, match=rf"{name}: its entry point needs size, colour: .*kwargs="):
        make_env(name)
    with pytest.raises(ValueError, match=r"its entry point needs size"):
        make_env(register(lambda size: None))


@pytest.mark.parametrize("reward", [0, np.array([2.0])])
def test_ends_may_be_arrays_of_one_flag(register, reward):
    class Short(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (2,))
        action_space = gymnasium.spaces.Box(-1, 1, (2,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(2, np.float32), {}

        def step(self, action):
            return np.zeros(2, np.float32), reward, np.array([True]), np.array(False), {}

    step = make_env(register(Short), num_envs=2, seed=0).rollout(3)
    assert step.shape == (2, 1) and step["next", "terminated"].all() and not step["next", "truncated"].any()
