"""A transformer over chunks is a velocity like any other."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from torchrl_genpo import (
    ConsistentStart,
    IndependentStart,
    ReversibleFlowActor,
    ReversibleSolver,
    SteeredStart,
    VelocityTransformer,
)


def make_velocity(**options):
    torch.manual_seed(0)
    velocity = VelocityTransformer(5, 12, chunk_size=4, width=16, num_layers=2, num_heads=2, **options)
    nn.init.normal_(velocity.output_layer.weight, std=0.3)  # so that it matters
    return velocity


@pytest.mark.parametrize("gradient", ["stored", "reversible"])
@pytest.mark.parametrize("start", [SteeredStart(IndependentStart(), 12, 16), ConsistentStart(0.1)])
def test_its_likelihood_is_exact(start, gradient):
    actor = ReversibleFlowActor(make_velocity(), start=start, solver=ReversibleSolver(5, gradient=gradient)).double()
    td = actor(TensorDict(observation=torch.randn(2, 3, 5).double(), batch_size=[2, 3])).detach()
    torch.testing.assert_close(actor.log_prob(td), td["action_log_prob"], atol=1e-9, rtol=0)
    stored = ReversibleFlowActor(actor.velocity, start=start).double()
    parameters = list(actor.velocity.parameters())
    gradients = [torch.autograd.grad(each.log_prob(td).sum(), parameters) for each in (actor, stored)]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-8, rtol=1e-8)
        assert expected.abs().max() > 0


def test_every_action_of_a_chunk_depends_on_every_other_and_on_observation_and_time():
    velocity = make_velocity().double()
    context, x = velocity.condition(torch.randn(5).double()), torch.randn(12).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: velocity(x, 0.3, context), x)
    blocks = jacobian.unflatten(0, (4, 3)).unflatten(-1, (4, 3)).abs().amax((1, 3))
    assert (blocks > 1e-6).all()
    assert (velocity(x, 0.3, context) - velocity(x, 0.4, context)).abs().min() > 1e-6
    assert (velocity(x, 0.3, context) - velocity(x, 0.3, context.flip(-1))).abs().min() > 1e-6


def test_times_may_differ_within_a_batch_and_samples_outnumber_observations():
    velocity = make_velocity().double()
    context = velocity.condition(torch.randn(7, 5).double())
    x, t = torch.randn(3, 7, 12).double(), torch.rand(7).double()
    together = velocity(x[0], t, context)
    for i in range(7):
        torch.testing.assert_close(together[i], velocity(x[0, i], t[i].item(), context[i]))
    torch.testing.assert_close(velocity(x, 0.3, context)[2], velocity(x[2], 0.3, context))


def test_reset_parameters_draws_every_weight_anew():
    velocity = make_velocity()
    before = {name: value.clone() for name, value in velocity.named_parameters()}
    velocity.reset_parameters()
    unchanged = [name for name, value in velocity.named_parameters() if torch.equal(value, before[name])]
    # biases of zero and layer norms start where they were
    assert all("bias" in name or "norm" in name for name in unchanged), unchanged
    assert (velocity(torch.randn(12), 0.3, torch.zeros(16))).abs().max() < 0.1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((5, 12, 5), "An action of size 12 is no chunk of 5 actions"),
        ((5, 12, 4, 15, 2, 4), "width=15 is not divisible by num_heads=4"),
        ((0, 12, 4), "in_features=0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        VelocityTransformer(*sizes)


def test_an_observation_of_another_size_is_named():
    with pytest.raises(ValueError, match="observations of size 5, got 6"):
        make_velocity().condition(torch.randn(6))


@pytest.mark.parametrize("is_training", [True, False])
def test_the_density_of_the_action_alone_needs_forward_mode_which_fused_kernels_lack(is_training):
    actor = ReversibleFlowActor(VelocityTransformer(4, 6, 3, width=16, num_layers=1, num_heads=2)).train(is_training)
    data = actor(TensorDict(observation=torch.randn(5, 4), batch_size=[5])).detach()
    estimate = actor.get_dist(data.select("observation")).action_log_prob(data["action"], 16)
    assert estimate.log_prob.isfinite().all() and (estimate.effective_sample_size > 4).all()
    assert torch.backends.mha.get_fastpath_enabled()
