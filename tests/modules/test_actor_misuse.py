# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What an actor is given wrongly is named where it happens, and what is given unusually is obeyed."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical, OneHot

from torchrl_genpo import (
    ConsistentStart,
    FlowMatchingLoss,
    GenPOLoss,
    ReversibleFlowActor,
    ReversibleSolver,
    VelocityMLP,
)
from torchrl_genpo.modules import EulerActor

OBS, D = 4, 3


def make_actor(**options):
    return ReversibleFlowActor(VelocityMLP(OBS, D, (16,)), **options)


def observe(*shape):
    return TensorDict(observation=torch.randn(*shape, OBS), batch_size=shape)


class OneNumber(VelocityMLP):
    """A velocity that forgot the size of the action."""

    def forward(self, x, t, context):
        return super().forward(x, t, context)[..., :1]


@pytest.mark.parametrize("gradient", ["stored", "reversible"])
def test_a_velocity_of_one_number_is_refused_by_actor_loss_and_flow_matching(gradient):
    actor = ReversibleFlowActor(OneNumber(OBS, D, (16,)), solver=ReversibleSolver(gradient=gradient))
    data = observe(8).update({"action": torch.randn(8, D), "action_memory": torch.randn(8, D)})
    data["action_log_prob"], data["advantage"] = torch.zeros(8), torch.randn(8, 1)
    for call in (actor, actor.log_prob, GenPOLoss(actor, None, critic_coeff=None), FlowMatchingLoss(actor)):
        with pytest.raises(ValueError, match=r"must have its shape, but the network returned \[8, 1\]"):
            call(data.copy())


class Images(nn.Module):
    """A velocity of images that does not say that an image has three dimensions."""

    action_dim = D

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Conv2d(3, 2, 4), nn.Linear(2 + D, D)

    def condition(self, pixels):
        return self.encoder(pixels).flatten(-3)

    def forward(self, x, t, context):
        return self.head(torch.cat([x, context.expand(*x.shape[:-1], -1)], -1))


def test_an_image_is_refused_by_naming_where_its_encoder_belongs():
    td = TensorDict(pixels=torch.randn(5, 3, 4, 4), batch_size=[5])
    with pytest.raises(ValueError, match="put an encoder of images before the actor"):
        ReversibleFlowActor(Images(), in_keys="pixels")(td)


def test_a_tuple_is_one_nested_key_as_in_torchrl():
    td = TensorDict({("robot", "proprio"): torch.randn(6, OBS)}, batch_size=[6])
    for module in (
        make_actor(in_keys=("robot", "proprio")),
        EulerActor(VelocityMLP(OBS, D), in_keys=("robot", "proprio")),
    ):
        assert module.in_keys == [("robot", "proprio")]
        assert module(td.copy())["action"].shape == (6, D)


def test_a_sample_of_the_distribution_is_scored_as_it_was_drawn():
    dist = make_actor().get_dist(observe(7))
    pair = dist.sample()
    torch.testing.assert_close(dist.log_prob(pair), dist.log_prob(*pair))


@pytest.mark.parametrize("spec", [OneHot(D), Categorical(D)])
def test_a_spec_of_discrete_actions_is_refused(spec):
    with pytest.raises(ValueError, match="continuous"):
        make_actor(spec=spec)


@pytest.mark.parametrize("activation", [nn.Tanh(), "tanh"])
def test_an_activation_that_is_no_class_is_named(activation):
    with pytest.raises(TypeError, match="activation_class must be a class"):
        VelocityMLP(OBS, D, activation_class=activation)


def test_the_representation_shows_velocity_solver_and_start():
    text = repr(make_actor(solver=ReversibleSolver(3, 0.9), start=ConsistentStart(0.3, D)))
    for part in ("VelocityMLP", "num_steps=3", "sigma=0.9", f"tau=0.3, action_dim={D}", "action_memory"):
        assert part in text


OTHERS = {
    "num_steps": {"solver": ReversibleSolver(3)},
    "sigma": {"solver": ReversibleSolver(sigma=0.8)},
    "tau": {"start": ConsistentStart(0.2)},
    "activation_class": {"activation_class": nn.Tanh},
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_state_of_another_density_is_refused_by_name(name):
    options = dict(OTHERS[name])
    activation = options.pop("activation_class", nn.ReLU)
    mine = {"start": ConsistentStart(0.1)} if name == "tau" else {}
    saved = ReversibleFlowActor(VelocityMLP(OBS, D, (16,), activation), **(mine | options))
    own = ReversibleFlowActor(VelocityMLP(OBS, D, (16,), nn.ReLU), **mine)
    for get in (lambda actor: actor, lambda actor: GenPOLoss(actor, None, critic_coeff=None)):
        with pytest.raises(ValueError, match=f"another density: its .* has {name}="):
            get(own).load_state_dict(get(saved).state_dict())
    own.load_state_dict(copy.deepcopy(own).state_dict())


def test_the_gradient_of_a_solver_is_no_part_of_the_density():
    stored, reversible = (make_actor(solver=ReversibleSolver(gradient=kind)) for kind in ("stored", "reversible"))
    stored.load_state_dict(reversible.state_dict())
