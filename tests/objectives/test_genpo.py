"""What shows in the outputs of GenPOLoss when the data is not what the policy wrote."""

from __future__ import annotations

import torch

from torchrl_genpo import GenPOLoss, IndependentStart, SteeredStart

from .test_pair import gradients, make_data, make_models


def test_entropy_bonus_reaches_the_network_of_a_steered_start():
    actor, critic = make_models(SteeredStart(IndependentStart(), 2, 32))
    loss = GenPOLoss(actor, critic, entropy_bonus=True)
    grads = gradients(loss, make_data(actor), keys=("loss_entropy",))
    assert any("network" in name and g.abs().sum() > 0 for name, g in grads.items())


def test_steps_that_a_collector_padded_are_no_inversion_error():
    actor, critic = make_models()
    loss = GenPOLoss(actor, critic)
    td = make_data(actor)
    td["collector", "mask"] = torch.arange(8) < 5
    td["action"][5:] = 0
    assert loss(loss.before_updates(td))["inversion_error"] < 1e-4
    assert loss(td.exclude(("collector", "mask")))["inversion_error"] > 1e-2


def test_actions_that_were_changed_after_they_were_scored_show_in_the_inversion_error():
    actor, critic = make_models()
    loss = GenPOLoss(actor, critic)
    td = make_data(actor, (64,))
    assert loss(loss.before_updates(td.clone()))["inversion_error"] < 1e-4
    assert loss(loss.before_updates(td.set("action", td["action"].clamp(-0.5, 0.5))))["inversion_error"] > 1
