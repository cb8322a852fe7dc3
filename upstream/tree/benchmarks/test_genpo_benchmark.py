# Copyright (c) Meta Platforms, Inc. and affiliates.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.modules import MLP, ReversibleFlowActor, ValueOperator, VelocityMLP
from torchrl.objectives import GenPOLoss


def _make_loss(n_obs, n_act, batch):
    actor = ReversibleFlowActor(VelocityMLP(n_obs, n_act, (64, 64)))
    critic = ValueOperator(MLP(in_features=n_obs, out_features=1, num_cells=[64, 64]))
    td = actor(TensorDict(observation=torch.randn(batch, n_obs), batch_size=[batch]))
    td = td.detach()
    td["advantage"], td["value_target"] = torch.randn(2, batch, 1)
    return actor, GenPOLoss(actor, critic), td


def _compile(module, compile):
    if not compile:
        return module
    torch._dynamo.reset_code_caches()
    mode = compile if isinstance(compile, str) else None
    return torch.compile(module, mode=mode)


@pytest.mark.parametrize("compile", [False, True, "reduce-overhead"])
def test_reversible_flow_actor_speed(benchmark, compile, n_obs=8, n_act=4, batch=128):
    actor, _, td = _make_loss(n_obs, n_act, batch)
    td = td.select("observation")
    policy = _compile(actor, compile)
    with torch.no_grad():
        policy(td.clone())
        policy(td.clone())
        benchmark(lambda: policy(td.clone()))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("compile", [False, True, "reduce-overhead"])
def test_genpo_speed(benchmark, backward, compile, n_obs=8, n_act=4, batch=128):
    _, loss, td = _make_loss(n_obs, n_act, batch)
    loss = _compile(loss, compile)

    def call():
        losses = loss(td)
        if backward:
            sum(val for key, val in losses.items() if key.startswith("loss")).backward()

    call()
    call()
    benchmark(call)


if __name__ == "__main__":
    pytest.main([__file__, "--capture", "no", "--exitfirst"])
