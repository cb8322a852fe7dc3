# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A policy of a Gymnasium task says how the robot makes what it reads of what the task observes."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn

from torchrl_genpo import ReversibleFlowActor, VelocityMLP
from torchrl_genpo.deploy import ExportedPolicy, PolicyExporter
from torchrl_genpo.envs import make_env

pytestmark = pytest.mark.extras("deploy")

VECTOR, PICTURE = Box(-1, 1, (2,), np.float32), Box(0, 255, (3, 4, 1), np.uint8)


class Task(gymnasium.Env):
    """Observes samples of a space."""

    action_space = Box(-1, 1, (2,), np.float32)

    def __init__(self, space):
        self.observation_space = space
        space.seed(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.fixture
def export(tmp_path):
    """Exports a policy of a task with this space, which reads one key of n numbers."""

    def exported(space, key, size):
        gymnasium.register("Exported-v0", lambda: Task(space), max_episode_steps=5)
        env = make_env("Exported-v0", 1, seed=0)
        torch.manual_seed(0)
        flat = TensorDictModule(nn.Flatten(-3) if key == "pixels" else nn.Identity(), [key], ["features"])
        actor = ReversibleFlowActor(VelocityMLP(size, 2, num_cells=(16,)), in_keys=["features"])
        PolicyExporter(ProbabilisticTensorDictSequential(flat, actor), env).save(tmp_path)
        return ExportedPolicy(tmp_path)

    yield exported
    del gymnasium.registry["Exported-v0"]


def test_a_vector_is_read_as_the_task_gives_it(export):
    policy = export(VECTOR, "observation", 2)
    assert policy.metadata["observation_transforms"] == []
    assert policy(VECTOR.sample()).shape == (2,)


@pytest.mark.parametrize(
    ("space", "key", "size", "made"),
    [
        (PICTURE, "pixels", 12, "pixels = observation [3, 4, 1] (uint8) / 255, as [1, 3, 4]"),
        (Box(-1, 1, (2, 3), np.float32), "observation", 6, "observation = observation [2, 3]"),
        (
            Dict(observation=VECTOR, achieved_goal=VECTOR, desired_goal=VECTOR, camera=PICTURE),
            "observation",
            6,
            "observation = observation [2] and achieved_goal [2] and desired_goal [2]",
        ),
    ],
)
def test_what_is_made_of_the_task_s_observation_is_listed_and_part_of_the_error(export, space, key, size, made):
    policy = export(space, key, size)
    (listed,) = policy.metadata["observation_transforms"]
    assert listed.startswith(made)
    with pytest.raises(ValueError) as refused:
        policy(space.sample())
    assert made in str(refused.value)
