# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Arguments of the loss are obeyed or refused, and its keys are its own."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import GymEnv
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import ValueEstimators

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP


def make_actor():
    torch.manual_seed(0)
    return ReversibleFlowActor(VelocityMLP(3, 1, (16,)))


@pytest.mark.parametrize("argument", [{"entropy_coeff": 0.01}, {"reference_coeff": 0.1}])
def test_an_argument_without_effect_is_refused(argument):
    with pytest.raises(ValueError, match=f"{next(iter(argument))}.* has no effect"):
        GenPOLoss(make_actor(), None, critic_coeff=None, **argument)


@pytest.mark.parametrize("name", ["reference_coef", "anchor_coef", "clip_eps", "normalise_advantage"])
def test_a_keyword_that_no_loss_has_is_refused(name):
    with pytest.raises(TypeError, match=f"GenPOLoss got an unexpected keyword argument '{name}'"):
        GenPOLoss(make_actor(), None, critic_coeff=None, **{name: 1.0})


def test_frames_of_a_random_policy_are_refused_by_the_loss_and_before_the_updates():
    actor = make_actor()
    loss = GenPOLoss(actor, None, critic_coeff=None)
    with pytest.warns(UserWarning, match="init_random_frames"):
        collector = Collector(GymEnv("Pendulum-v1"), actor, frames_per_batch=16, total_frames=32, init_random_frames=10)
    data = next(iter(collector))
    data["advantage"] = torch.randn(16, 1)
    for call in (loss, loss.before_updates):
        with pytest.raises(ValueError, match="init_random_frames=0"):
            call(data)
    collector.shutdown()


def test_a_memory_that_happens_to_be_zero_is_that_of_an_action_like_any_other():
    actor = make_actor()
    data = actor(TensorDict(observation=torch.randn(4, 3), batch_size=[4])).detach()
    data["action_memory"][0] = 0
    data["action_log_prob"] = actor.log_prob(data).detach()
    data["advantage"] = torch.randn(4, 1)
    loss = GenPOLoss(actor, None, critic_coeff=None)
    assert loss(loss.before_updates(data))["inversion_error"] < 1e-4


def test_keys_that_are_renamed_in_the_loss_alone_are_read_and_written():
    actor = make_actor().double()
    data = actor(TensorDict(observation=torch.randn(12, 3).double(), batch_size=[12])).detach()
    data["advantage"] = torch.randn(12, 1).double()
    renamed = data.copy().rename_key_("action", "a").rename_key_("action_memory", ("old", "m"))
    losses = []
    for batch, keys in ((data, {}), (renamed, {"action": "a", "action_memory": ("old", "m")})):
        loss = GenPOLoss(actor, None, critic_coeff=None)
        loss.set_keys(**keys)
        torch.manual_seed(1)
        out = loss(loss.before_updates(batch))
        assert (out["max_ratio"] - 1).abs() < 1e-6
        losses.append(out["loss_objective"])
    torch.testing.assert_close(*losses)


def test_vtrace_is_refused_for_it_does_not_score_the_stored_action():
    critic = ValueOperator(MLP(in_features=3, out_features=1, num_cells=[16]))
    with pytest.raises(NotImplementedError, match="VTrace"):
        GenPOLoss(make_actor(), critic).make_value_estimator(ValueEstimators.VTrace)
