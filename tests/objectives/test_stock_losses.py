# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Which losses of TorchRL take a flow, as the table in docs/composing.md says."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import A2CLoss, BCLoss, ClipPPOLoss, IQLLoss, PPOLoss, ReinforceLoss
from torchrl.objectives.value import GAE

from torchrl_genpo import ReversibleFlowActor, VelocityMLP

OBS, D = 3, 2


def make_parts():
    torch.manual_seed(0)
    actor = ReversibleFlowActor(VelocityMLP(OBS, D, (16,)))
    critic = ValueOperator(MLP(in_features=OBS, out_features=1, num_cells=[16]))
    data = actor(TensorDict(observation=torch.randn(4, 8, OBS), batch_size=[4, 8])).detach()
    ends = torch.zeros(4, 8, 1, dtype=torch.bool)
    after = {"observation": torch.randn(4, 8, OBS), "reward": torch.randn(4, 8, 1), "done": ends, "terminated": ends}
    data["next"] = TensorDict(after, batch_size=[4, 8])
    return actor, critic, data


def q_network():
    return ValueOperator(MLP(in_features=OBS + D, out_features=1, num_cells=[16]), in_keys=["observation", "action"])


LOSSES = {
    "PPOLoss": lambda actor, critic: PPOLoss(actor, critic, entropy_bonus=False),
    "ClipPPOLoss": lambda actor, critic: ClipPPOLoss(actor, critic, entropy_bonus=False),
    "ReinforceLoss": ReinforceLoss,
    "BCLoss": lambda actor, _: BCLoss(actor),
    "IQLLoss": lambda actor, critic: IQLLoss(actor, q_network(), critic),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_scores_the_stored_pair_trains_the_flow(name):
    actor, critic, data = make_parts()
    GAE(gamma=0.9, lmbda=0.9, value_network=critic)(data)
    loss = LOSSES[name](actor, critic)
    out = loss(data)
    sum(value for key, value in out.items() if key.startswith("loss_")).backward()
    gradients = [p.grad for key, p in loss.named_parameters() if key.startswith("actor_network")]
    assert gradients and all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients)


def test_a_loss_that_drops_the_memory_says_that_it_is_missing():
    actor, critic, data = make_parts()
    GAE(gamma=0.9, lmbda=0.9, value_network=critic)(data)
    with pytest.raises(ValueError, match="memory"):
        A2CLoss(actor, critic, entropy_bonus=False)(data)
