"""One exported policy of the hand for all tests here, untrained."""

from __future__ import annotations

import pytest
import torch

from torchrl_genpo.deploy import PolicyExporter
from torchrl_genpo.envs import freeze_normalization, make_env
from torchrl_genpo.models import make_actor


@pytest.fixture(scope="session")
def hand_env():
    """Hands without any randomness, their statistics filled."""
    torch.manual_seed(0)
    env = make_env("xhand/nut_bolt", num_envs=2, seed=0, randomize=False, nuts=["hexagon"])
    env.rollout(30, break_when_any_done=False)
    return freeze_normalization(env)


@pytest.fixture(scope="session")
def hand_actor(hand_env):
    """A policy that moves: its last layer is not the small one of a fresh policy."""
    torch.manual_seed(1)
    actor = make_actor(hand_env, hidden_sizes=(32, 32))
    torch.nn.init.normal_(actor.velocity.trunk[-1].weight, std=0.2)
    return actor


@pytest.fixture(scope="session")
def policy_folder(hand_env, hand_actor, tmp_path_factory):
    """An exported policy."""
    return PolicyExporter(hand_actor, hand_env).save(tmp_path_factory.mktemp("policy"))
