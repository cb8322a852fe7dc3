"""Seeds: no two streams are the same, whatever the seed, the process, the environment and the purpose."""

from __future__ import annotations

import importlib.util
import random
from itertools import product

import numpy as np
import pytest
import torch

from torchrl_genpo.data.robomimic import INSTALL
from torchrl_genpo.envs import Purpose, make_env, spawn_seed
from torchrl_genpo.envs.seeds import MAX_SEED, spawn_generator
from torchrl_genpo.training.loop import set_seeds

HAS_ROBOSUITE = importlib.util.find_spec("robosuite") is not None


def first_states(env):
    return [tuple(row.tolist()) for row in env.reset()["observation"].flatten(0, -2)]


def streams(env):
    return [task.unwrapped.np_random.bit_generator.state["state"]["state"] for task in env.base_env._env.envs]


def test_no_two_environments_of_neighbouring_seeds_share_a_first_state_or_a_stream():
    states, states_of_streams = [], []
    for seed in range(20):
        env = make_env("Pendulum-v1", num_envs=8, seed=seed)
        states_of_streams += streams(env)
        states += first_states(env)
    assert len(set(states)) == len(set(states_of_streams)) == len(states) == 160


@pytest.mark.parametrize("name", ["Pendulum-v1", "multi_goal", "xhand/nut_bolt"])
def test_one_seed_gives_one_result_and_another_seed_another(name):
    def data(seed):
        torch.manual_seed(0)
        env = make_env(name, num_envs=2, seed=seed)
        return env.rollout(5)["observation"]

    assert torch.equal(data(3), data(3)) and not torch.equal(data(3), data(4))


@pytest.mark.parametrize("name", ["Pendulum-v1", "xhand/nut_bolt"])
def test_seeding_again_begins_the_streams_anew(name):
    env = make_env(name, num_envs=2, seed=3)
    first = env.reset()["observation"].clone()
    other = env.reset()["observation"].clone()
    env.set_seed(3)
    assert torch.equal(env.reset()["observation"], first) and not torch.equal(first, other)


def test_the_streams_of_a_run_are_all_different():
    purposes, seeds, ranks, workers = list(Purpose), range(5), range(3), range(3)
    frames = (0, 1, 2048, 2**32, 2**32 + 1, 10**12)
    spawned = [spawn_seed(*key) for key in product(seeds, purposes, ranks, workers, frames)]
    spawned += [spawn_seed(*key) for key in product(seeds, purposes, ranks)]
    spawned += [spawn_seed(*key) for key in product(seeds, purposes)]
    assert len(set(spawned)) == len(spawned) and min(spawned) >= 0 and max(spawned) <= MAX_SEED
    again = [spawn_generator(seed, 0, index).random() for seed, index in product(range(20), range(50))]
    assert len(set(again)) == len(again)


def test_the_global_states_of_a_seed_are_those_of_it_alone():
    def drawn(seed):
        set_seeds(seed)
        return random.random(), np.random.rand(), torch.rand(()).item()

    assert drawn(7) == drawn(7)
    assert len({number for seed in range(10) for number in drawn(seed)}) == 30


def test_the_hand_and_the_policy_do_not_draw_from_one_stream():
    """Both draw by PyTorch's generator, and are given one seed in an evaluation."""
    env = make_env("xhand/nut_bolt", num_envs=2, seed=5)
    drawn = torch.rand(100, generator=env.base_env.generator.clone_state())
    assert not torch.equal(drawn, torch.rand(100, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**31, 2**32, 2**63 - 1, np.int64(5), np.uint32(2**32 - 1)])
@pytest.mark.parametrize("name", ["Pendulum-v1", "xhand/nut_bolt"])
def test_seeds_within_the_range_are_accepted(name, seed):
    env = make_env(name, num_envs=1, seed=seed)
    env.set_seed(seed)
    assert env.reset()["observation"].isfinite().all()


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30, 1.5, "1", True])
@pytest.mark.parametrize("name", ["Pendulum-v1", "xhand/nut_bolt", "isaaclab/ant", "robomimic/can"])
def test_other_seeds_are_refused_with_the_range(name, seed):
    with pytest.raises(ValueError, match=r"seed=.* integer from 0 to 2\*\*63 - 1"):
        make_env(name, num_envs=1, seed=seed)


@pytest.mark.skipif(not HAS_ROBOSUITE, reason=f"needs robosuite: {INSTALL}")
def test_no_two_workers_of_neighbouring_seeds_share_a_first_state():
    states = []
    env = make_env("robomimic/can", num_envs=4, num_workers=2)
    for seed in (0, 1, 2**62):
        env.set_seed(seed)
        states += first_states(env)
        env.set_seed(seed)
        assert first_states(env) == states[-4:]
    env.close()
    assert len(set(states)) == len(states) == 12


def test_a_task_with_a_generator_of_its_own_is_given_a_seed_that_any_generator_takes(monkeypatch):
    import gymnasium

    class Old(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (1,))
        action_space = gymnasium.spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            if seed is not None:
                self.random = np.random.RandomState(seed)
                np.int32(seed)
            return self.random.uniform(-1, 1, 1).astype(np.float32), {}

    monkeypatch.setitem(gymnasium.registry, "Old-v0", gymnasium.envs.registration.EnvSpec("Old-v0", entry_point=Old))
    states = [state for seed in range(20) for state in first_states(make_env("Old-v0", num_envs=4, seed=seed))]
    assert len(set(states)) == len(states)
