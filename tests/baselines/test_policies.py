"""The baselines by name: what models.make_actor and make_loss build, and one iteration of each on an environment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_genpo import FlowMatchingLoss, GenPOLoss, ReversibleFlowActor, ReversibleSolver, VelocityMLP
from torchrl_genpo.baselines import DummyActionLoss, FPOActor, FPOLoss, PolicyFlowActor, PolicyFlowLoss
from torchrl_genpo.envs import make_env
from torchrl_genpo.models import POLICIES, make_actor, make_critic, make_loss
from torchrl_genpo.modules import EulerActor
from torchrl_genpo.training import batch_keys, make_update, prepare

from .common import make_velocity

ROOT = Path(__file__).parents[2]
LOSSES = {
    "gaussian": ClipPPOLoss,
    "reversible_flow": GenPOLoss,
    "dummy_flow": DummyActionLoss,
    "dummy_flow_jacobian": DummyActionLoss,
    "self_adjoint_flow": DummyActionLoss,
    "fpo": FPOLoss,
    "policyflow": PolicyFlowLoss,
}


def test_every_policy_is_tested_configured_and_documented():
    assert set(LOSSES) == set(POLICIES)
    text = (ROOT / "docs" / "methods.md").read_text()
    for name in POLICIES:
        assert (ROOT / "torchrl_genpo" / "config" / "policy" / f"{name}.yaml").exists()
        assert f"`{name}`" in text
    for target in re.findall(r"\]\(((?!http)[^)#]+)", text):
        assert (ROOT / "docs" / target).exists(), target


@pytest.mark.parametrize("actor_class", [FPOActor, PolicyFlowActor])
def test_flow_matching_trains_their_velocity_as_it_does_that_of_a_reversible_flow(actor_class):
    velocity = make_velocity()
    data = TensorDict(observation=torch.randn(8, 3), action=torch.randn(8, 2), batch_size=[8])
    losses = []
    for actor in (ReversibleFlowActor(velocity), actor_class(velocity)):
        torch.manual_seed(0)
        losses.append(FlowMatchingLoss(actor)(data)["loss_flow_matching"])
    torch.testing.assert_close(*losses, rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_one_iteration_on_an_environment(name):
    """Collected data is all that the update needs, its first ratio is one, and evaluation is deterministic."""
    env = make_env("pendulum", num_envs=2, seed=0)
    actor, critic = make_actor(env, name, hidden_sizes=(8, 8)), make_critic(env, (8,))
    loss = make_loss(actor, critic, entropy_bonus=False)
    assert type(loss) is LOSSES[name]
    collector = Collector(env, actor, frames_per_batch=32, total_frames=32, auto_register_policy_transforms=False)
    (data,) = collector
    with torch.no_grad():
        GAE(gamma=0.99, lmbda=0.95, value_network=critic)(data)
    batch = prepare(loss, data.select(*batch_keys(loss, actor), strict=False).reshape(-1))
    update = make_update(loss, torch.optim.Adam(loss.parameters(), 1e-2), max_grad_norm=1.0)
    first, second = update(batch), update(batch)
    assert (first["max_ratio"] - 1).abs() < 1e-4 and (first["mean_ratio"] - 1).abs() < 1e-4
    assert first["kl_approx"].abs() < 1e-4 < (second["max_ratio"] - 1).abs()
    td = data[:, 0].select("observation")
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        assert torch.equal(actor(td.clone())["action"], actor(td.clone())["action"])


def test_a_solver_of_another_policy_is_refused():
    env = make_env("pendulum", num_envs=1)
    with pytest.raises(ValueError, match="policy=dummy_flow needs the solver AlternatingCoupling"):
        make_actor(env, "dummy_flow", solver=ReversibleSolver())
    for options, message in (
        ({"name": "gaussian", "solver": ReversibleSolver()}, "neither solver nor start"),
        ({"name": "fpo", "start": {"name": "independent"}}, "neither solver nor start"),
        ({"name": "reversible_flow", "options": {"num_steps": 3}}, "has no options"),
    ):
        with pytest.raises(ValueError, match=message):
            make_actor(env, **options)


@pytest.mark.parametrize("make", [ReversibleFlowActor, EulerActor, FPOActor, PolicyFlowActor])
def test_one_key_may_be_a_string_and_is_named_where_it_is_missing(make):
    actor = make(VelocityMLP(4, 2, (32,)), in_keys="state")
    assert actor.in_keys == ["state"]
    assert actor(TensorDict(state=torch.randn(3, 4), batch_size=[3]))["action"].shape == (3, 2)
    outputs = actor(state=torch.randn(3, 4))
    assert (outputs if isinstance(outputs, torch.Tensor) else outputs[0]).shape == (3, 2)
    with pytest.raises(KeyError, match="state"):
        actor(TensorDict(observation=torch.randn(3, 4), batch_size=[3]))
