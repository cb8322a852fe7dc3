"""States of Gymnasium's simulators: what is saved continues to the last bit, what may hold more is not called exact."""

from __future__ import annotations

import gymnasium
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.wrappers import (
    FlattenObservation,
    FrameStackObservation,
    NormalizeObservation,
    RescaleAction,
    StickyAction,
    TimeLimit,
    TransformReward,
)

from torchrl_genpo.envs import GYM_TASKS, GymState, make_env, simulator_state

OTHERS = ("HumanoidStandup-v5", "InvertedDoublePendulum-v5", "Pusher-v5", "Reacher-v5", "Swimmer-v5")


def assert_continues_exactly(name):
    torch.manual_seed(0)
    env = make_env(name, num_envs=2, seed=3)
    actions = torch.rand(40, 2, env.action_spec.shape[-1]) * 2 - 1
    td = env.reset()
    for action in actions[:20]:
        _, td = env.step_and_maybe_reset(td.set("action", action))
    assert GymState(env).exact
    state, carrier = GymState(env).state_dict(), td.clone()

    def continuation(env, td):
        steps = []
        for action in actions[20:]:
            step, td = env.step_and_maybe_reset(td.set("action", action))
            steps.append(step["next"].select("observation", "reward", "done").clone())
        return torch.stack(steps)

    expected = continuation(env, td)
    other = make_env(name, num_envs=2, seed=99)
    other.reset()
    GymState(other).load_state_dict(state)
    actual = continuation(other, carrier)
    assert (expected == actual).all()


@pytest.mark.parametrize("name", [*GYM_TASKS, *OTHERS, "Pendulum-v1", "MountainCarContinuous-v0"])
def test_a_restored_simulator_continues_to_the_last_bit(name):
    assert_continues_exactly(name)


@pytest.mark.parametrize(
    "wrap", [FlattenObservation, lambda env: RescaleAction(env, -1.0, 1.0), lambda env: TimeLimit(env, 25)]
)
def test_wrappers_that_are_known_to_be_whole_continue_to_the_last_bit(register, wrap):
    assert_continues_exactly(register(lambda: wrap(PendulumEnv())))


class MyPendulum(PendulumEnv):
    """May hold anything."""


class MyWrapper(gymnasium.Wrapper):
    """May hold anything."""


UNKNOWN = {
    "two time limits": lambda: TimeLimit(TimeLimit(PendulumEnv(), 20), 30),
    "a stack of frames": lambda: FrameStackObservation(PendulumEnv(), 3),
    "statistics": lambda: NormalizeObservation(PendulumEnv()),
    "sticky actions": lambda: StickyAction(PendulumEnv(), 0.5),
    "a function": lambda: TransformReward(PendulumEnv(), lambda reward: reward),
    "a wrapper of one's own": lambda: MyWrapper(PendulumEnv()),
    "a task of one's own": MyPendulum,
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_the_state_of_a_task_that_may_hold_more_is_not_called_exact(register, what):
    env = make_env(register(UNKNOWN[what]), num_envs=2, seed=0)
    env.reset()
    assert not GymState(env).exact and GymState(env).state_dict() == {}
    assert simulator_state(env) is None


def test_a_time_limit_around_one_of_the_task_is_not_called_exact(register):
    name = register(lambda: TimeLimit(PendulumEnv(), 20), max_episode_steps=30)
    assert not GymState(make_env(name, num_envs=1)).exact


def test_a_walk_of_ones_own_is_not_called_exact(register):
    assert not GymState(make_env(register(), num_envs=1)).exact
