"""Gradients that reconstruct the states equal the stored ones, and use constant memory."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.modules import MLP, ValueOperator

from torchrl_genpo import (
    ConsistentStart,
    GenPOLoss,
    IndependentStart,
    ReversibleFlowActor,
    ReversibleSolver,
    SteeredStart,
    VelocityMLP,
)

SIGMAS = [0.75, 1.0, -0.7]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def make_actors(dtype, num_steps=5, start=None, sigma=0.75):
    """The same policy with stored and with reversible gradients."""
    torch.manual_seed(0)
    velocity = VelocityMLP(4, 3, (32, 32))
    nn.init.normal_(velocity.trunk[-1].weight, std=0.5)
    if start is None:
        start = SteeredStart(IndependentStart(), 3, 32)
        nn.init.normal_(start.network[-1].weight, std=0.1)  # every layer gets a gradient
    return [
        ReversibleFlowActor(velocity, solver=ReversibleSolver(num_steps, sigma, gradient=gradient), start=start).to(
            dtype
        )
        for gradient in ("stored", "reversible")
    ]


def relative_error(a, b):
    return ((a - b).norm() / a.norm()).item()


@pytest.mark.parametrize("start", [None, ConsistentStart(0.3, 3)])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_log_prob_gradients_equal_the_stored_ones(sigma, dtype, start):
    actors = make_actors(dtype, start=start, sigma=sigma)
    td = actors[0](TensorDict(observation=torch.randn(64, 4, dtype=dtype), batch_size=[64])).detach()
    gradients = []
    for actor in actors:
        inputs = td.clone()
        leaves = [inputs[key].requires_grad_() for key in ("observation", "action", "action_memory")]
        log_prob = actor.log_prob(inputs)
        gradients.append(torch.autograd.grad(log_prob.sin().sum(), [*actor.parameters(), *leaves]))
    for stored, reversible in zip(*gradients, strict=True):
        assert relative_error(stored, reversible) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_pathwise_gradients_of_samples_equal_the_stored_ones(sigma, dtype):
    gradients = []
    for actor in make_actors(dtype, sigma=sigma):
        td = TensorDict(observation=torch.linspace(-1, 1, 256, dtype=dtype).view(64, 4), batch_size=[64])
        torch.manual_seed(1)
        (action, memory), log_prob = actor.get_dist(td).rsample_and_log_prob()
        target = (action.sin().sum() + memory.square().sum() + log_prob.sum()).to(dtype)
        gradients.append(torch.autograd.grad(target, list(actor.parameters())))
    for stored, reversible in zip(*gradients, strict=True):
        assert relative_error(stored, reversible) < TOLERANCE[dtype]


def test_the_loss_trains_with_reversible_gradients():
    results = []
    for actor in make_actors(torch.float32, num_steps=12):
        torch.manual_seed(2)
        critic = ValueOperator(MLP(in_features=4, out_features=1, num_cells=[16]))
        loss = GenPOLoss(actor, critic, entropy_bonus=True)
        td = actor(TensorDict(observation=torch.randn(32, 4), batch_size=[32])).detach()
        td["advantage"], td["value_target"] = torch.randn(2, 32, 1)
        out = loss(td)
        (out["loss_objective"] + out["loss_entropy"]).backward()
        results.append({name: p.grad for name, p in loss.named_parameters() if p.grad is not None})
    stored, reversible = results
    assert stored.keys() == reversible.keys()
    for name in stored:
        assert relative_error(stored[name], reversible[name]) < 1e-4


def test_memory_does_not_grow_with_the_number_of_steps():
    """Bytes that autograd keeps for the backward pass, counted by its own hooks."""
    kept = {}
    for num_steps in (1, 20):
        for actor in make_actors(torch.float32, num_steps, IndependentStart()):
            td = actor(TensorDict(observation=torch.randn(64, 4), batch_size=[64])).detach()
            sizes = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.nbytes) or t, lambda t: t):
                actor.log_prob(td)
            kept[actor.solver.gradient, num_steps] = sum(sizes)
    # 20 steps carry the pair in float64, which is all that may grow
    assert kept["reversible", 20] < 1.3 * kept["reversible", 1]
    assert kept["stored", 20] > 8 * kept["stored", 1]


def test_it_works_beside_torch_compile_by_a_graph_break():
    _, actor = make_actors(torch.float32)
    td = actor(TensorDict(observation=torch.randn(8, 4), batch_size=[8])).detach()
    expected = torch.autograd.grad(actor.log_prob(td).sum(), list(actor.velocity.parameters()))
    compiled = torch.compile(actor.log_prob, backend="aot_eager")
    for a, b in zip(expected, torch.autograd.grad(compiled(td).sum(), list(actor.velocity.parameters())), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_velocity_that_hides_its_parameters_is_refused():
    solver = ReversibleSolver(gradient="reversible")
    with pytest.raises(TypeError, match="ConditionedVelocity"):
        solver.integrate(lambda x, t: x, torch.zeros(2, 3), torch.zeros(2, 3))


def test_a_frozen_velocity_passes_gradients_to_the_start():
    gradients = []
    for actor in make_actors(torch.float64):
        actor.velocity.requires_grad_(False)
        torch.manual_seed(1)
        data = actor(TensorDict(observation=torch.randn(8, 4, dtype=torch.float64), batch_size=[8]))
        gradients.append(torch.autograd.grad(data["action"].sin().sum(), list(actor.start.parameters())))
    for stored, reversible in zip(*gradients, strict=True):
        assert stored.abs().sum() > 0 and relative_error(stored, reversible) < TOLERANCE[torch.float64]
