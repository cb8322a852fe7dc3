"""Raw environments, and one exported policy of the hand for all tests here, untrained."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tensordict.nn import ProbabilisticTensorDictSequential

from torchrl_genpo import ReversibleFlowActor, VelocityMLP
from torchrl_genpo.deploy import PolicyExporter
from torchrl_genpo.envs import make_env
from torchrl_genpo.modules import RunningNormalizer

sys.path.append(str(Path(__file__).parent))  # fake_sdk and faults


def _raw_env(name, num_envs=1, **options):
    return make_env(name, num_envs, seed=0, **options)


@pytest.fixture(scope="session")
def raw_env():
    """Makes an environment that neither normalises nor scales."""
    return _raw_env


@pytest.fixture(scope="session")
def hand_env():
    """Hands without any randomness."""
    return _raw_env("xhand/nut_bolt", 2, randomize=False, nuts=["hexagon"])


@pytest.fixture(scope="session")
def hand_actor(hand_env):
    """A policy that moves: its last layer is not the small one of a fresh policy."""
    torch.manual_seed(1)
    normalizer = RunningNormalizer(72)
    normalizer.update(hand_env.rollout(30, break_when_any_done=False)["observation"])
    actor = ReversibleFlowActor(VelocityMLP(72, 8, num_cells=(32, 32)), in_keys=["normalized_observation"])
    torch.nn.init.normal_(actor.velocity.trunk[-1].weight, std=0.2)
    return ProbabilisticTensorDictSequential(normalizer, actor)


@pytest.fixture(scope="session")
def policy_folder(hand_env, hand_actor, tmp_path_factory):
    """An exported policy."""
    return PolicyExporter(hand_actor, hand_env).save(tmp_path_factory.mktemp("policy"))
