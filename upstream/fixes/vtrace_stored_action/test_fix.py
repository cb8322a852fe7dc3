# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The importance weights of V-trace are those of the stored actions."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.modules import IndependentNormal, ProbabilisticActor, ValueOperator
from torchrl.objectives.value import VTrace
from torchrl.objectives.value.functional import vtrace_advantage_estimate


def make_actor(interaction):
    net = TensorDictModule(nn.Sequential(nn.Linear(3, 4), NormalParamExtractor()), ["observation"], ["loc", "scale"])
    return ProbabilisticActor(
        net,
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        return_log_prob=True,
        default_interaction_type=interaction,
    )


@pytest.mark.parametrize("interaction", [InteractionType.RANDOM, InteractionType.DETERMINISTIC])
def test_the_weights_are_those_of_the_stored_actions_on_the_data_of_another_policy(interaction):
    torch.manual_seed(0)
    actor, critic = make_actor(interaction), ValueOperator(nn.Linear(3, 1))
    after = TensorDict(observation=torch.randn(2, 10, 3), reward=torch.randn(2, 10, 1), batch_size=[2, 10])
    after["done"] = after["terminated"] = (torch.arange(10) == 9).expand(2, 10).unsqueeze(-1).clone()
    with torch.no_grad():
        data = make_actor(InteractionType.RANDOM)(TensorDict(observation=torch.randn(2, 10, 3), batch_size=[2, 10]))
        log_pi = actor.log_prob(data.clone())
        log_mu = next(value for key, value in data.items() if key.endswith("log_prob"))
        data["next"] = after
        value, next_value = (critic(part.clone())["state_value"] for part in (data, after))
        _, expected = vtrace_advantage_estimate(
            0.9,
            log_pi.unsqueeze(-1),
            log_mu.unsqueeze(-1),
            value,
            next_value,
            after["reward"],
            after["done"],
            after["terminated"],
        )
        estimator = VTrace(gamma=0.9, actor_network=actor, value_network=critic)
        torch.testing.assert_close(estimator(data.clone())["value_target"], expected, rtol=1e-4, atol=1e-4)
