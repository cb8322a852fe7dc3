"""Tasks of a user's own, registered for one test."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest


class Walk(gymnasium.Env):
    """Returns what it is told to, keeps what it was given, and holds more than a state.

    Args:
        observe (callable): makes an observation from a generator; the default is of the space.
        reward (any): of every step.
    """

    def __init__(self, observation_space=None, action_space=None, observe=None, reward=-1.0):  # no render_mode
        self.observation_space = observation_space or gymnasium.spaces.Box(-1, 1, (2,))
        self.action_space = action_space or gymnasium.spaces.Box(-1, 1, (2,))
        self.observe, self.reward, self.executed = observe, reward, []

    def _observe(self):
        if self.observe is not None:
            return self.observe(self.np_random)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.zeros(2)
        return self._observe(), {}

    def step(self, action):
        self.executed.append(action)
        return self._observe(), self.reward, False, False, {}


@pytest.fixture
def register():
    """Registers an entry point, a walk with these arguments if none is given, and returns its id."""
    names = []

    def registered(entry_point=None, max_episode_steps=None, **arguments):
        names.append(f"Walk{len(names)}-v0")
        entry_point = entry_point or partial(Walk, **arguments)
        gymnasium.register(names[-1], entry_point, max_episode_steps=max_episode_steps)
        return names[-1]

    yield registered
    for name in names:
        del gymnasium.registry[name]
