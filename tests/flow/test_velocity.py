"""The split first layer is the concatenated one, computed once where it can be."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchrl_genpo import IndependentStart, ReversibleFlow, ReversibleSolver, VelocityMLP


def test_split_first_layer_equals_the_concatenated_layer():
    velocity = VelocityMLP(5, 3, (16, 8)).double()
    nn.init.normal_(velocity.observation_layer.bias)
    concatenated = nn.Linear(5 + 3 + velocity.time_embedding.out_features, 16).double()
    with torch.no_grad():
        layers = (velocity.observation_layer, velocity.state_layer)
        concatenated.weight.copy_(torch.cat([layer.weight for layer in layers], 1))
        concatenated.bias.copy_(velocity.observation_layer.bias)
    obs, x, t = torch.randn(7, 5).double(), torch.randn(7, 3).double(), 0.4
    embedding = velocity.time_embedding(t).expand(7, -1)
    expected = velocity.trunk(concatenated(torch.cat([obs, x, embedding], -1)))
    torch.testing.assert_close(velocity(x, t, velocity.condition(obs)), expected, atol=1e-12, rtol=0)


def test_first_layer_is_orthogonal_as_a_whole():
    velocity = VelocityMLP(5, 3, (16, 8))
    layers = (velocity.observation_layer, velocity.state_layer)
    weight = torch.cat([layer.weight for layer in layers], 1)
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(16), atol=1e-5, rtol=0)


def test_what_depends_on_the_observation_alone_is_not_repeated_per_sample_or_step():
    velocity = VelocityMLP(5, 3, (16, 8))
    rows: list[int] = []
    hook = lambda module, args, output: rows.append(math.prod(output.shape[:-1]))  # noqa: E731
    velocity.observation_layer.register_forward_hook(hook)
    context = velocity.condition(torch.randn(10, 5))
    dist = ReversibleFlow(lambda x, t: velocity(x, t, context), 3, ReversibleSolver(4), IndependentStart(), (10,))
    dist.sample((6,))
    assert rows == [10]


def test_several_observations_are_concatenated():
    velocity = VelocityMLP(5, 3, (16,))
    obs = torch.randn(4, 5)
    torch.testing.assert_close(velocity.condition(obs[:, :2], obs[:, 2:]), velocity.condition(obs))


def test_reset_parameters_changes_the_function():
    velocity = VelocityMLP(5, 3, (16,))
    before = velocity.observation_layer.weight.clone()
    velocity.reset_parameters()
    assert not torch.equal(before, velocity.observation_layer.weight)


@pytest.mark.parametrize("dim", [0, 2, 7])
def test_odd_or_tiny_time_embedding_is_refused(dim):
    with pytest.raises(ValueError, match=f"even number of at least 4, got {dim}"):
        VelocityMLP(5, 3, time_embedding_dim=dim)


@pytest.mark.parametrize("kwargs", [{"in_features": 0}, {"action_dim": 0}, {"num_cells": ()}, {"num_cells": (8, 0)}])
def test_empty_sizes_are_refused(kwargs):
    with pytest.raises(ValueError, match="at least"):
        VelocityMLP(**({"in_features": 5, "action_dim": 3} | kwargs))


def test_observation_of_another_size_is_refused():
    with pytest.raises(ValueError, match="size 5, got 6"):
        VelocityMLP(5, 3).condition(torch.randn(2, 6))


def test_gradients_reach_every_parameter():
    velocity = VelocityMLP(5, 3, (16, 8))
    F.mse_loss(velocity(torch.randn(7, 3), 0.4, velocity.condition(torch.randn(7, 5))), torch.ones(7, 3)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in velocity.parameters())
