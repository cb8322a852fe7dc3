"""Euler's rule: the flow that the actor's solver integrates, and its exploration types."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_genpo import ConsistentStart, ReversibleFlowActor, ReversibleSolver, VelocityMLP
from torchrl_genpo.modules import EulerActor


def make_actor(num_steps):
    return ReversibleFlowActor(
        VelocityMLP(in_features=3, action_dim=2, num_cells=(16,)),
        solver=ReversibleSolver(num_steps, sigma=1.0),
        start=ConsistentStart(tau=0.1),
    )


def test_both_rules_approach_the_same_flow():
    actor = make_actor(400)
    data = TensorDict(observation=torch.randn(6, 3), batch_size=[6])
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        expected = actor(data.clone())["action"]
        errors = [(EulerActor.of(actor, n)(data.clone())["action"] - expected).abs().max() for n in (10, 100, 400)]
    assert errors[0] > 3 * errors[1] > 6 * errors[2], "the error must fall with the step"
    assert errors[2] < 5e-3


def test_zero_noise_is_deterministic_and_random_noise_is_not():
    actor = EulerActor.of(make_actor(5))
    assert actor.num_steps == 5
    data = TensorDict(observation=torch.randn(1, 3).expand(4, 3), batch_size=[4])
    with torch.no_grad():
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            zero = actor(data.clone())["action"]
        with set_exploration_type(ExplorationType.RANDOM):
            noisy = actor(data.clone())["action"]
    assert torch.equal(zero, zero[:1].expand_as(zero))
    assert (noisy - noisy[:1])[1:].abs().min() > 1e-4
