"""What GenPOLoss adds to the loss of the pair: the ratio of the action alone."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from torchrl_genpo import GenPOLoss, IndependentStart, ReversibleFlowActor, SteeredStart, VelocityMLP

from .test_pair import gradients, make_data, make_models, perturb


def test_entropy_bonus_reaches_the_network_of_a_steered_start():
    actor, critic = make_models(SteeredStart(IndependentStart(), 2, 32))
    loss = GenPOLoss(actor, critic, entropy_bonus=True)
    grads = gradients(loss, make_data(actor), keys=("loss_entropy",))
    assert any("network" in name and g.abs().sum() > 0 for name, g in grads.items())


def test_action_ratio_is_one_before_the_first_step_and_one_set_of_memories_serves_all_epochs():
    actor, critic = make_models()
    td = actor.draw_memories(make_data(actor, (64,)), 4)
    loss = GenPOLoss(actor, critic, ratio="action")
    out = loss(td)
    assert (out["max_ratio"] - 1).abs() < 1e-4 and out["inversion_error"] < 1e-4
    assert {"memory_samples", "memory_log_proposal", "marginal_log_prob"} <= set(loss.in_keys)
    assert all(g.isfinite().all() for g in gradients(loss, td).values())


def test_action_ratio_is_that_of_the_densities_of_the_action():
    """Against quadrature over the memory, for one-dimensional actions."""
    actor = ReversibleFlowActor(VelocityMLP(4, 1, (32, 32))).double()
    nn.init.normal_(actor.velocity.trunk[-1].weight, std=0.3)
    td = actor(TensorDict(observation=torch.randn(32, 4, dtype=torch.float64), batch_size=[32])).detach()
    actor.draw_memories(td, 512)
    td["advantage"] = torch.ones(32, 1, dtype=torch.float64)
    memories = torch.linspace(-8, 8, 4001, dtype=torch.float64).view(-1, 1, 1).expand(-1, 32, 1)

    def log_density():
        return actor.get_dist(td).log_prob(td["action"].expand(4001, 32, 1), memories).logsumexp(0)

    before = log_density()
    perturb(actor.velocity, 0.05)
    ratio = (log_density() - before).exp()
    loss = GenPOLoss(actor, None, ratio="action", critic_coeff=None, reduction="none", clip_epsilon=0.999)
    ours = -loss(td)["loss_objective"].squeeze(-1)
    assert (ratio - 1).abs().max() > 0.05  # the policy did move
    torch.testing.assert_close(ours, ratio.clamp(max=1.999), atol=0.02, rtol=0.02)


def test_action_ratio_without_memories_says_how_to_draw_them():
    actor, critic = make_models()
    loss = GenPOLoss(actor, critic, ratio="action")
    with pytest.raises(KeyError, match="draw_memories"):
        loss(make_data(actor))


def test_unknown_ratio_is_refused():
    with pytest.raises(ValueError, match="'pair' or 'action', got 'both'"):
        GenPOLoss(*make_models(), ratio="both")


@pytest.mark.parametrize("ratio", ["pair", "action"])
def test_steps_that_a_collector_padded_are_no_inversion_error(ratio):
    actor, critic = make_models()
    loss = GenPOLoss(actor, critic, ratio=ratio, num_memories=2 if ratio == "action" else None)
    td = make_data(actor)
    td["collector", "mask"] = torch.arange(8) < 5
    td["action"][5:] = 0
    assert loss(loss.before_updates(td))["inversion_error"] < 1e-4
    assert loss(td.exclude(("collector", "mask")))["inversion_error"] > 1e-2


@pytest.mark.parametrize("ratio", ["pair", "action"])
def test_actions_that_were_changed_after_they_were_scored_show_in_the_inversion_error(ratio):
    actor, critic = make_models()
    loss = GenPOLoss(actor, critic, ratio=ratio, num_memories=4 if ratio == "action" else None)
    td = make_data(actor, (64,))
    assert loss(loss.before_updates(td.clone()))["inversion_error"] < 1e-4
    assert loss(loss.before_updates(td.set("action", td["action"].clamp(-0.5, 0.5))))["inversion_error"] > 1
