"""A Gaussian that a flow bends: the density stays exact, and the pair tells no more of the mean than the action."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale, ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import MLP, ValueOperator

from torchrl_genpo import (
    ConsistentStart,
    FlowMatchingLoss,
    GenPOLoss,
    IndependentStart,
    ReversibleFlowActor,
    ReversibleSolver,
    SteeredStart,
    VelocityMLP,
)
from torchrl_genpo.modules import EulerActor, ExportablePolicy

OBS, D = 3, 2


def make_actor(num_steps=5, start=None, gradient="stored", bend=0.3):
    velocity = VelocityMLP(OBS, D, (16,))
    nn.init.normal_(velocity.trunk[-1].weight, std=bend)
    solver = ReversibleSolver(num_steps, gradient=gradient)
    return ReversibleFlowActor(velocity, solver=solver, start=start, gaussian=make_gaussian(OBS)).double()


def make_gaussian(n, std=0.4):
    return nn.Sequential(nn.Linear(n, D), AddStateIndependentNormalScale(D, init_value=math.log(std)))


def observe(*shape):
    return TensorDict(observation=torch.randn(*shape, OBS).double(), batch_size=shape)


def uneven_start():
    """As training leaves one: another tau for each number."""
    start = ConsistentStart(0.3, D)
    start.log_tau.data.copy_(torch.tensor([-3.0, 0.0]))
    return start


STARTS = {
    "unit": IndependentStart,
    "steered": lambda: SteeredStart(IndependentStart(), D, 16),
    "consistent": lambda: ConsistentStart(0.3, D),
    "uneven": uneven_start,
}


@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("start", STARTS)
def test_without_a_velocity_the_actions_are_those_of_the_gaussian(num_steps, start):
    torch.manual_seed(0)
    actor = make_actor(num_steps, STARTS[start](), bend=0.0)
    action = actor(observe(1).expand(50_000))["action"]
    _, scale = actor.gaussian(observe(1)["observation"])
    torch.testing.assert_close(action.std(0), scale[0], rtol=0.02, atol=0)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
@pytest.mark.parametrize("start", STARTS)
def test_the_density_is_that_of_a_brute_force_jacobian(num_steps, start):
    actor = make_actor(num_steps, STARTS[start]())
    td = actor(observe(1))
    dist = actor.get_dist(td.select("observation"))
    noise = torch.stack(dist.to_noise(td["action"], td["action_memory"])).flatten()

    def push(noise):
        x, memory = actor.start.from_noise(dist.velocity, *noise.view(2, 1, D), solver=actor.solver)
        x, memory = actor.solver.integrate(dist.velocity, x, memory)
        loc, scale = actor.gaussian(td["observation"])
        return torch.stack([scale / actor.width * x + loc, memory - actor.memory_weight * x]).flatten()

    torch.testing.assert_close(push(noise), torch.stack([td["action"], td["action_memory"]]).flatten())
    jacobian = torch.autograd.functional.jacobian(push, noise)
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum() - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(td["action_log_prob"].sum(), exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(actor.log_prob(td), td["action_log_prob"])


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("start", ["unit", "consistent"])
def test_another_width_of_a_straight_flow_changes_the_pair_no_more_than_the_action(num_steps, start):
    actor, other = (make_actor(num_steps, STARTS[start](), bend=0.0) for _ in range(2))
    other.load_state_dict(actor.state_dict())
    delta = 0.05
    other.gaussian[1].state_independent_scale.data += delta
    td = actor(observe(1000)).detach()
    loc, scale = actor.gaussian(td["observation"])
    before, after = (
        torch.distributions.Normal(loc, scale * math.exp(d)).log_prob(td["action"]).sum(-1) for d in (0, delta)
    )
    torch.testing.assert_close(td["action_log_prob"] - other.log_prob(td), before - after, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("start", ["unit", "consistent"])
def test_another_mean_of_a_straight_flow_changes_the_pair_no_more_than_the_action(num_steps, start):
    actor, other = (make_actor(num_steps, STARTS[start](), bend=0.0) for _ in range(2))
    other.load_state_dict(actor.state_dict())
    delta = torch.tensor([0.05, -0.1]).double()
    other.gaussian[0].bias.data += delta
    td = actor(observe(50_000)).detach()
    of_actions = 0.5 * (delta / (td["action"] - actor.gaussian(td["observation"])[0]).std(0)).square().sum()

    def of_pairs():  # the laws are normal, so half of the variance of a log ratio is its mean, more precisely
        return 0.5 * (td["action_log_prob"] - other.log_prob(td)).var()

    assert abs(of_pairs() / of_actions - 1) < 0.03
    other.memory_weight.zero_()
    td = other(td).detach()
    other.gaussian[0].bias.data -= delta
    assert of_pairs() > 1.05 * of_actions, "memories that stay where they are tell more"


def test_the_density_of_the_action_alone_is_that_of_a_quadrature_over_its_memory():
    torch.manual_seed(2)
    velocity = VelocityMLP(OBS, 1, (16,))
    nn.init.normal_(velocity.trunk[-1].weight, std=0.5)
    gaussian = nn.Sequential(nn.Linear(OBS, 1), AddStateIndependentNormalScale(1, init_value=-0.3))
    actor = ReversibleFlowActor(velocity, gaussian=gaussian).double()
    td = actor(observe(6)).detach()
    memories = torch.linspace(-9, 9, 6001).double().view(-1, 1, 1).expand(-1, 6, 1)
    dist = actor.get_dist(td.select("observation"))
    exact = dist.log_prob(td["action"].expand(6001, 6, 1), memories).logsumexp(0) + math.log(18 / 6000)
    for memory in (td["action_memory"], None):
        estimate = dist.action_log_prob(td["action"], 4000, memory)
        torch.testing.assert_close(estimate.log_prob, exact, atol=0.03, rtol=0)


@pytest.mark.parametrize("num_steps", [3, 5])
def test_recomputed_gradients_are_the_stored_ones(num_steps):
    gradients = []
    for gradient in ("stored", "reversible"):
        torch.manual_seed(0)
        actor = make_actor(num_steps, gradient=gradient)
        td = actor(observe(8)).detach()
        actor.log_prob(td).sum().backward()
        gradients.append([p.grad for p in actor.parameters()])
    torch.testing.assert_close(*gradients)


def test_zero_noise_and_its_export_add_the_mean():
    actor = make_actor(bend=0.0).float()
    td = observe(4).float()
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        torch.testing.assert_close(actor(td.clone())["action"], actor.gaussian(td["observation"])[0], atol=1e-6, rtol=0)
    actor = make_actor().float()
    noise = torch.randn(4, 2 * D)
    policy = ExportablePolicy(actor, td, noise_input=True)
    (action,) = policy(td["observation"], noise)
    dist = actor.get_dist(td)
    x, memory = actor.start.from_noise(dist.velocity, *noise.chunk(2, -1), solver=actor.solver)
    loc, scale = actor.gaussian(td["observation"])
    expected = actor.solver.integrate(dist.velocity, x, memory)[0] * scale / actor.width + loc
    torch.testing.assert_close(action, expected)


def test_behind_an_encoder_it_trains_and_compiles_as_one_policy():
    encoder = TensorDictModule(MLP(OBS, 8, num_cells=[16]), ["observation"], ["features"])
    actor = ReversibleFlowActor(VelocityMLP(8, D, (16,)), gaussian=make_gaussian(8), in_keys=["features"])
    policy = ProbabilisticTensorDictSequential(encoder, actor)
    loss = GenPOLoss(policy, ValueOperator(MLP(OBS, 1, num_cells=[8])), delay_actor=True)
    data = policy(observe(32).float()).detach()
    data["advantage"], data["value_target"] = torch.randn(2, 32, 1)
    out = loss(data)
    torch.testing.assert_close(out["max_ratio"], torch.tensor(1.0), atol=1e-4, rtol=0)
    sum(value for key, value in out.items() if key.startswith("loss_")).backward()
    assert all(p.grad is not None for p in policy.parameters())
    compiled = torch.compile(policy.log_prob if hasattr(policy, "log_prob") else actor.log_prob, backend="aot_eager")
    torch.testing.assert_close(compiled(data), policy.log_prob(data), atol=1e-4, rtol=0)


def test_weight_and_width_are_loaded_with_the_state():
    three, five = make_actor(3), make_actor(5)
    assert three.memory_weight != five.memory_weight
    assert {"memory_weight", "width"} <= three.state_dict().keys()
    consistent = [make_actor(3, ConsistentStart(tau, D)) for tau in (0.1, 0.9)]
    consistent[1].load_state_dict(consistent[0].state_dict())
    td = consistent[0](observe(4)).detach()
    torch.testing.assert_close(consistent[1].log_prob(td), td["action_log_prob"])


def test_a_gaussian_of_another_size_and_what_cannot_have_one_are_refused():
    narrow = nn.Sequential(nn.Linear(OBS, 1), AddStateIndependentNormalScale(1))
    actor = ReversibleFlowActor(VelocityMLP(OBS, D, (16,)), gaussian=narrow)
    with pytest.raises(ValueError, match="gaussian must return 2 numbers an action, got 1"):
        actor(observe(4).float())
    actor = ReversibleFlowActor(VelocityMLP(OBS, D, (16,)), gaussian=nn.Linear(OBS, D))
    with pytest.raises(TypeError, match=r"a loc and a scale, got Tensor: add .*\.AddStateIndependentNormalScale"):
        actor(observe(4).float())
    with pytest.raises(ValueError, match="leave that out"):
        FlowMatchingLoss(make_actor())
    with pytest.raises(ValueError, match="bends a gaussian"):
        EulerActor.of(make_actor())
