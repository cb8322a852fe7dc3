"""Spaces of every kind: read whole as flat vectors and pictures, put back into the task's own shape, or refused."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from gymnasium.wrappers import DtypeObservation, FlattenObservation
from torchrl.envs import check_env_specs

from torchrl_genpo.envs import make_env
from torchrl_genpo.envs.gym import PolicySpaces

LARGEST = np.finfo(np.float32).max


def tasks(env):
    """The tasks themselves, below all wrappers."""
    return [task.unwrapped for task in env.base_env._env.envs]


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4, 3), (2, 1, 3)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_observations_of_any_shape_are_read_as_one_vector(register, shape, dtype):
    seen = np.random.default_rng(0).normal(size=shape).astype(dtype)
    env = make_env(register(observation_space=Box(-9, 9, shape, dtype), observe=lambda _: seen), num_envs=3, seed=0)
    check_env_specs(env)
    data = env.rollout(4)
    expected = torch.as_tensor(seen.astype(np.float32)).flatten().expand(3, 4, -1)
    for observation in (data["observation"], data["next", "observation"]):
        assert observation.dtype == torch.float32
        assert torch.equal(observation, expected)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 2)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_actions_of_any_shape_are_one_vector_and_are_put_back_and_clipped(register, shape, dtype):
    generator = np.random.default_rng(0)
    low, high = -generator.uniform(1, 2, shape), generator.uniform(1, 2, shape)
    space = Box(np.asarray(low, dtype), np.asarray(high, dtype), shape, dtype)
    env = make_env(register(action_space=space), num_envs=2, seed=0)
    check_env_specs(env)
    size = int(np.prod(shape))
    assert env.action_spec.shape == (2, size) and env.action_spec.dtype == torch.float32
    for bound, expected in ((env.action_spec.space.low, space.low), (env.action_spec.space.high, space.high)):
        torch.testing.assert_close(bound, torch.as_tensor(expected.astype(np.float32)).flatten().expand(2, size))
    for scale in (0.5, 7.0):
        action = scale * torch.rand(2, size, generator=torch.Generator().manual_seed(1))
        env.step(env.reset().set("action", action))
        for task, given in zip(tasks(env), action, strict=True):
            executed = task.executed[-1]
            assert executed.shape == shape and executed.dtype == dtype and space.contains(executed)
            expected = np.clip(given.numpy().reshape(shape), space.low, space.high)
            np.testing.assert_array_equal(executed, expected.astype(dtype))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_becomes_pixels_with_the_channels_first_and_values_up_to_one(register, channels):
    picture = np.random.default_rng(0).integers(0, 256, (5, 6, channels), np.uint8)
    space = Box(0, 255, picture.shape, np.uint8)
    expected = torch.as_tensor(picture).movedim(-1, 0) / 255
    alone = make_env(register(observation_space=space, observe=lambda _: picture), num_envs=2, seed=0)
    check_env_specs(alone)
    assert "observation" not in alone.observation_spec.keys()
    torch.testing.assert_close(alone.rollout(3)["pixels"], expected.expand(2, 3, channels, 5, 6))

    spaces = Dict(observation=Box(-1, 1, (2, 2)), camera=space)
    beside = make_env(
        register(
            observation_space=spaces, observe=lambda _: {"observation": np.eye(2, dtype=np.float32), "camera": picture}
        ),
        num_envs=2,
        seed=0,
    )
    check_env_specs(beside)
    data = beside.rollout(3)
    torch.testing.assert_close(data["pixels"], expected.expand(2, 3, channels, 5, 6))
    torch.testing.assert_close(data["observation"], torch.eye(2).flatten().expand(2, 3, 4))


def test_of_several_pictures_the_one_called_pixels_is_read(register):
    camera = Box(0, 255, (4, 4, 3), np.uint8)
    name = register(observation_space=Dict(pixels=camera, wrist=Box(0, 255, (8, 8, 1), np.uint8)))
    with pytest.warns(UserWarning, match="wrist"):
        env = make_env(name, num_envs=1, seed=0)
    assert env.observation_spec["pixels"].shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match="several pictures, left, right"):
        make_env(register(observation_space=Dict(left=camera, right=camera)))


def test_a_goal_is_read_after_the_observation(register):
    parts = {"observation": np.float32([[1, 2]]), "achieved_goal": np.float32([3]), "desired_goal": np.float64(4)}
    spaces = Dict({key: Box(-9, 9, value.shape, value.dtype) for key, value in parts.items()})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*left out")
        env = make_env(register(observation_space=spaces, observe=lambda _: dict(parts)), num_envs=2, seed=0)
    check_env_specs(env)
    assert set(env.observation_spec.keys()) == {"observation", "episode_reward", "step_count"}
    expected = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert torch.equal(env.rollout(2)["observation"], expected.expand(2, 2, 4))


COLLIDING = (
    *("reward", "done", "terminated", "truncated", "action", "next", "step_count", "episode_reward", "is_init"),
    *("log", "metrics", "discounted_return", "action_log_prob", "state_value", "advantage", "collector", "_reset"),
    *("goal", "a.b", "batch_size", "policy_version", "normalized_observation"),
)


def test_entries_that_nothing_reads_are_left_out_and_named(register):
    spaces = {key: Box(-1, 1, (2,)) for key in COLLIDING}
    spaces |= {"instruction": Text(5), "nested": Dict(a=Box(-1, 1, (2,))), "choice": Tuple([Discrete(2), Discrete(3)])}
    name = register(observation_space=Dict(spaces, observation=Box(-1, 1, (2, 2))), reward=2.0)
    with pytest.warns(UserWarning) as caught:
        env = make_env(name, num_envs=2, seed=0)
    (message,) = [str(warning.message) for warning in caught if "left out" in str(warning.message)]
    assert name in message and all(key in message for key in spaces)
    check_env_specs(env)
    assert set(env.observation_spec.keys()) == {"observation", "episode_reward", "step_count"}
    data = env.rollout(3)
    assert (data["next", "reward"] == 2).all() and (data["next", "episode_reward"][:, -1] == 6).all()


@pytest.mark.parametrize(
    "space", [Box(0, 1, (1,)), Box(0, 1, ()), Box(0, 1, (1,), np.int8), MultiBinary(1), Discrete(2)]
)
def test_success_may_be_declared_as_any_number(register, space):
    env = make_env(register(observation_space=Dict(observation=Box(-1, 1, (2,)), success=space)), num_envs=3, seed=0)
    check_env_specs(env)
    assert env.rollout(2)["next", "success"].shape == (3, 2, 1)


ACTIONS = [
    (Discrete(3), ["Discrete action space", "Box"]),
    (MultiBinary(3), ["MultiBinary action space", "Box"]),
    (Box(0, 10, (2,), np.int64), ["(2,)", "int64", "10", "floating numbers"]),
    (Box(0, 255, (2, 3), np.uint8), ["(2, 3)", "uint8", "255", "floating numbers"]),
    (Box(np.float32([-1, 0.5]), np.float32([1, 0.5])), ["component 1", "0.5", "leave it out"]),
    (Box(1e9, 1e9 + 1, (2,), np.float64), ["component 0", "one value as a float32"]),
    (Box(-LARGEST, LARGEST, (2,)), ["3.4028", "(2,)", "not finite"]),
    (Box(-1e300, 1e300, (2,), np.float64), ["1e+300", "not finite"]),
    (Box(2e38, 3e38, (2,)), ["not finite"]),
    (Box(-np.inf, np.inf, (2,)), ["actions without bounds", "low and a high"]),
    (Box(-1, np.inf, (2,)), ["actions without bounds"]),
    (Box(-1, 1, (0,)), ["(0,)", "at least one number"]),
]


@pytest.mark.parametrize(("space", "messages"), ACTIONS)
def test_actions_that_cannot_be_scaled_are_refused_with_their_bounds(register, space, messages):
    name = register(action_space=space)
    with pytest.raises(ValueError, match=name) as error:
        make_env(name, num_envs=1)
    assert all(message in str(error.value) for message in messages), error.value


OBSERVATIONS = [
    (Box(0, 255, (2,), np.uint8), "needs a Box of floating numbers.*DtypeObservation"),
    (Box(-5, 5, (2, 2), np.int64), "needs a Box of floating numbers.*DtypeObservation"),
    (MultiBinary(4), "needs a Box of floating numbers.*DtypeObservation"),
    (Discrete(3), "needs a Box of floating numbers.*FlattenObservation"),
    (MultiDiscrete([3, 4]), "needs a Box of floating numbers.*FlattenObservation"),
    (Tuple([Box(-1, 1, (2,)), Discrete(3)]), "needs a Box of floating numbers.*FlattenObservation"),
    (Dict(observation=Dict(a=Box(-1, 1, (2,)))), "needs a Box of floating numbers.*FlattenObservation"),
    (Dict(observation=Box(-1, 1, (2,)), desired_goal=Discrete(3)), "'desired_goal'.*needs a Box of floating numbers"),
    (Dict(position=Box(-1, 1, (2,))), "observes position, and nothing called 'observation'.*FlattenObservation"),
    (Dict(desired_goal=Box(-1, 1, (2,))), "observes desired_goal, and nothing called 'observation'"),
    (Box(0, 255, (3, 64, 64), np.uint8), "a picture is .height, width, channels."),
    (Box(-1, 1, (0,)), "no numbers"),
]


@pytest.mark.parametrize(("space", "message"), OBSERVATIONS)
def test_observations_that_a_policy_cannot_read_are_refused_with_a_remedy(register, space, message):
    name = register(observation_space=space)
    with pytest.raises(ValueError, match=rf"(?s){name}.*{message}"):
        make_env(name, num_envs=1)


@pytest.mark.parametrize("space", [space for space, message in OBSERVATIONS[:9]])
def test_the_remedies_of_refused_observations_work(space):
    class Task(gymnasium.Env):
        observation_space, action_space = space, Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

    wrapped = Task() if isinstance(space, (Box, MultiBinary)) else FlattenObservation(Task())
    env = PolicySpaces(DtypeObservation(wrapped, np.float32), "Task")
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)


@pytest.mark.parametrize("reward", [1, 1.0, True, np.float32(1), np.array(1.0), np.array([1.0]), torch.tensor([1.0])])
def test_rewards_of_one_number_are_accepted(register, reward):
    data = make_env(register(reward=reward), num_envs=2, seed=0).rollout(3)
    assert data["next", "reward"].shape == (2, 3, 1) and (data["next", "reward"] == 1).all()


@pytest.mark.parametrize("reward", [np.zeros(2), np.zeros((2, 1)), [], None, "1"])
def test_other_rewards_are_refused_with_their_shape(register, reward):
    env = make_env(register(reward=reward), num_envs=1, seed=0)
    with pytest.raises(ValueError, match=r"(?s)returned reward = .* of shape .*one number"):
        env.rollout(1)


def test_an_observation_of_another_shape_than_its_space_is_named(register):
    name = register(observation_space=Box(-1, 1, (4,)), observe=lambda _: np.zeros((2, 2), np.float32))
    with pytest.raises((ValueError, AssertionError), match=r"shape"):
        make_env(name, num_envs=1, seed=0)
