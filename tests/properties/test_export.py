"""Exported policies act as the policies that they are made of, whatever those are."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import IndependentNormal, NormalParamExtractor

from torchrl_genpo.modules import ActionScale, ExportablePolicy, RunningNormalizer

from .strategies import OBS_DIM, actors, randomized, seeds


def gaussian(action_key: str) -> list[nn.Module]:
    network = nn.Sequential(randomized(nn.Linear(OBS_DIM, 4)), NormalParamExtractor())
    sampler = ProbabilisticTensorDictModule(["loc", "scale"], [action_key], distribution_class=IndependentNormal)
    return [TensorDictModule(network, ["normalized_observation"], ["loc", "scale"]), sampler]


@given(st.data(), seeds, st.booleans(), st.booleans(), st.booleans())
def test_an_exportable_policy_acts_as_its_policy_does(data, seed, is_flow, noise_input, has_units):
    torch.manual_seed(seed)
    actor = data.draw(actors(nested=False))
    d = actor.velocity.action_dim if is_flow else 2
    action_key = "raw_action" if has_units else "action"
    if is_flow:
        actor = type(actor)(
            actor.velocity,
            solver=actor.solver,
            start=actor.start,
            in_keys=["normalized_observation"],
            action_key=action_key,
        )
    normalizer = RunningNormalizer(OBS_DIM)
    normalizer.update(3 + 2 * torch.randn(50, OBS_DIM))
    units = [ActionScale(torch.randn(d), torch.rand(d) + 0.5)] if has_units else []
    policy = ProbabilisticTensorDictSequential(normalizer, *([actor] if is_flow else gaussian(action_key)), *units)
    rows = data.draw(st.integers(1, 4))
    read = TensorDict(observation=3 + 2 * torch.randn(rows, OBS_DIM), batch_size=[rows])
    exportable = ExportablePolicy(policy, read, noise_input=noise_input)
    inputs = [read["observation"]]
    if noise_input:
        inputs += [torch.zeros(rows, 2 * d if is_flow else d)]
    (action,) = exportable(*inputs)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        expected = policy(read)["action"]
    torch.testing.assert_close(action, expected.float(), rtol=1e-4, atol=1e-5)
