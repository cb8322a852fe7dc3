# Copyright (c) Meta Platforms, Inc. and affiliates.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The Hydra configurations: every keyword of a class is a field with its default, and TorchRL's groups know them."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from tensordict import TensorDict
from torch import nn
from torchrl.modules import MLP, ReversibleFlowActor, ReversibleSolver, ValueOperator, VelocityMLP
from torchrl.objectives import ClipPPOLoss, GenPOLoss
from torchrl.trainers.algorithms import GenPOTrainer, PPOTrainer
from torchrl.trainers.algorithms.configs import MLPConfig, PPOTrainerConfig, ValueModelConfig
from torchrl.trainers.algorithms.configs import genpo as configs
from torchrl.trainers.algorithms.configs.common import ConfigBase

HYDRA = {"_target_", "_partial_"}
BUILT_BY_THE_FACTORY = {"create_env_fn", "actor_network", "critic_network", "hooks"}  # fields of every trainer's config


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def targets():
    """Name, configuration and class of every configuration that builds something."""
    for name in configs.__all__:
        config = getattr(configs, name)
        target = {f.name: f.default for f in dataclasses.fields(config)}.get("_target_")
        if target is None:
            continue
        module, _, attribute = target.rpartition(".")
        built = getattr(importlib.import_module(module), attribute)
        if not inspect.isclass(built):  # a factory says by its annotation what it builds
            built = typing.get_type_hints(built)["return"]
        yield pytest.param(config, built, id=name)


def keywords(built):
    """Names and defaults of what a class takes, those included that it hands on to the class that it extends."""
    found = {}
    extended = built.__mro__[: built.__mro__.index(ClipPPOLoss) + 1] if issubclass(built, ClipPPOLoss) else (built,)
    for cls in extended:
        for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, parameter.default)
    return found


def default(field):
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    return instantiate(value).func if isinstance(value, ConfigBase) else value


@pytest.mark.parametrize(("config", "built"), targets())
def test_fields_are_the_keywords_of_the_class_with_its_defaults(config, built):
    fields = {f.name: f for f in dataclasses.fields(config) if f.name not in HYDRA}
    expected = keywords(built)
    extra = BUILT_BY_THE_FACTORY if issubclass(built, PPOTrainer) else set()
    assert set(fields) == set(expected) | extra
    if issubclass(built, PPOTrainer):  # TorchRL's own configuration, whose defaults are not the class's everywhere
        assert issubclass(config, PPOTrainerConfig)
        return
    for name, value in expected.items():
        ours = default(fields[name])
        if value is inspect.Parameter.empty:
            assert ours == "???" or ours is None, name
        else:
            assert ours == value or ours == getattr(value, "name", None), name


@pytest.mark.parametrize("config", [getattr(configs, name) for name in configs.__all__], ids=lambda c: c.__name__)
def test_a_configuration_names_its_class_as_torchrls_do(config):
    assert issubclass(config, ConfigBase)
    fields = {f.name for f in dataclasses.fields(config)}
    if "_target_" in fields and config is not configs.GenPOTrainerConfig:
        assert "_partial_" in fields
        built = next(c.values[1] for c in targets() if c.values[0] is config)
        assert re.search(rf"Hydra configuration for :class:`~[\w.]+\.{built.__name__}`", config.__doc__)


def test_the_trainer_takes_what_ppos_takes():
    assert inspect.signature(GenPOTrainer) == inspect.signature(PPOTrainer)


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("loss", "flow_matching"),
        ("loss", "genpo"),
        ("model", "reversible_flow"),
        ("network", "velocity_mlp"),
        ("network", "velocity_transformer"),
        ("solver", "reversible"),
        ("start", "consistent"),
        ("start", "independent"),
        ("trainer", "genpo"),
    ],
)
def test_hydra_knows_them_by_group_and_name(group, name):
    assert f"{name}.yaml" in ConfigStore.instance().list(group)


def test_a_flow_composed_by_hydra_is_the_flow_built_by_hand(tmp_path):
    (tmp_path / "flow.yaml").write_text(
        """
defaults:
  - model@policy: reversible_flow
  - network@policy.velocity: velocity_mlp
  - solver@policy.solver: reversible
  - start@policy.start: consistent
  - _self_
policy:
  velocity: {in_features: 4, action_dim: 2, num_cells: [16, 16]}
  solver: {num_steps: 3, sigma: 0.7}
  start: {tau: 0.2, action_dim: 2}
  in_keys: [[agent, observation]]
  memory_key: [agent, memory]
"""
    )
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        torch.manual_seed(0)
        actor = instantiate(compose("flow", overrides=["policy.solver.sigma=0.8"]).policy)
    torch.manual_seed(0)
    assert isinstance(actor, ReversibleFlowActor) and actor.solver.sigma == 0.8
    assert actor.in_keys == [("agent", "observation")] and actor.memory_key == ("agent", "memory")
    assert isinstance(actor.velocity.trunk[0], nn.SiLU)
    for ours, theirs in zip(actor.velocity.parameters(), VelocityMLP(4, 2, (16, 16)).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    td = TensorDict({("agent", "observation"): torch.randn(5, 4)}, batch_size=[5])
    assert actor(td)["agent", "memory"].shape == (5, 2)


def make_loss(**kwargs):
    velocity = configs.VelocityMLPConfig(in_features=4, action_dim=2, num_cells=[16])
    scale = {"_target_": "tensordict.nn.AddStateIndependentNormalScale", "scale_shape": 2}
    mean = {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 2}
    actor = configs.ReversibleFlowActorConfig(
        velocity=velocity, gaussian={"_target_": "torch.nn.Sequential", "_args_": [mean, scale]}
    )
    critic = ValueModelConfig(network=MLPConfig(in_features=4, out_features=1, num_cells=[16]), in_keys=["observation"])
    return instantiate(configs.GenPOLossConfig(actor_network=actor, critic_network=critic, **kwargs))


def test_a_loss_from_its_configuration_is_the_loss_built_by_hand():
    loss = make_loss(
        clip_epsilon=[0.1, 0.3], entropy_bonus=True, entropy_coeff=0.02, gamma=0.9, normalize_advantage=True
    )
    assert isinstance(loss, GenPOLoss) and loss.value_estimator.gamma == 0.9
    other = GenPOLoss(
        loss.actor_network,
        loss.critic_network,
        clip_epsilon=(0.1, 0.3),
        entropy_bonus=True,
        entropy_coeff=0.02,
        normalize_advantage=True,
    )
    td = loss.actor_network(TensorDict(observation=torch.randn(32, 4), batch_size=[32])).detach()
    td["advantage"], td["value_target"] = torch.randn(2, 32, 1)
    nn.init.normal_(loss.actor_network.velocity.trunk[-1].weight, std=0.3)
    out, expected = loss(td), other(td)
    assert expected["clip_fraction"] > 0
    for key in expected.keys():
        torch.testing.assert_close(out[key], expected[key], atol=0, rtol=0)


def test_a_partial_loss_takes_its_networks_later():
    partial = instantiate(configs.GenPOLossConfig(_partial_=True, clip_epsilon=0.1))
    actor = ReversibleFlowActor(VelocityMLP(4, 2, (16,)), solver=ReversibleSolver(2))
    loss = partial(actor_network=actor, critic_network=ValueOperator(MLP(in_features=4, out_features=1, num_cells=[8])))
    assert loss.clip_epsilon == 0.1 and loss.actor_network.solver.num_steps == 2


if __name__ == "__main__":
    pytest.main([__file__, "--capture", "no", "--exitfirst"])
