# Copyright (c) Meta Platforms, Inc. and affiliates.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Hydra configurations of a flow policy, registered beside the others of TorchRL.

Importing this module makes them known to Hydra in the groups ``network``, ``model``, ``loss`` and ``trainer``, and in
two groups of their own, ``solver`` and ``start``. Every keyword of a class is a field of its configuration, with the
same default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING
from torchrl.modules.tensordict_module.reversible_flow import ReversibleFlowActor
from torchrl.objectives.genpo import GenPOLoss
from torchrl.trainers.algorithms.configs.common import ConfigBase, _normalize_hydra_key, _normalize_hydra_keys
from torchrl.trainers.algorithms.configs.modules import ActivationConfig, NetworkConfig
from torchrl.trainers.algorithms.configs.objectives import LossConfig, _make_onpolicy_loss
from torchrl.trainers.algorithms.configs.trainers import PPOTrainerConfig, _make_onpolicy_trainer
from torchrl.trainers.algorithms.genpo import GenPOTrainer

__all__ = [
    "ConsistentStartConfig",
    "FlowMatchingLossConfig",
    "GenPOLossConfig",
    "GenPOTrainerConfig",
    "IndependentStartConfig",
    "ReversibleFlowActorConfig",
    "ReversibleSolverConfig",
    "StartConfig",
    "VelocityMLPConfig",
    "VelocityTransformerConfig",
]


@dataclass
class VelocityMLPConfig(NetworkConfig):
    """Hydra configuration for :class:`~torchrl.modules.VelocityMLP`.

    Examples:
        >>> from hydra.utils import instantiate
        >>> from torchrl.trainers.algorithms.configs.genpo import VelocityMLPConfig
        >>> instantiate(VelocityMLPConfig(in_features=4, action_dim=2, num_cells=[32, 32])).action_dim
        2
    """

    in_features: int = MISSING
    action_dim: int = MISSING
    num_cells: Any = (256, 256, 256)
    activation_class: Any = field(default_factory=partial(ActivationConfig, _target_="torch.nn.SiLU", _partial_=True))
    time_embedding_dim: int = 32
    _target_: str = "torchrl.modules.VelocityMLP"


@dataclass
class VelocityTransformerConfig(NetworkConfig):
    """Hydra configuration for :class:`~torchrl.modules.VelocityTransformer`."""

    in_features: int = MISSING
    action_dim: int = MISSING
    chunk_size: int = MISSING
    width: int = 128
    num_layers: int = 3
    num_heads: int = 4
    time_embedding_dim: int = 32
    _target_: str = "torchrl.modules.VelocityTransformer"


@dataclass
class ReversibleSolverConfig(ConfigBase):
    """Hydra configuration for :class:`~torchrl.modules.ReversibleSolver`.

    Examples:
        >>> from hydra.utils import instantiate
        >>> from torchrl.trainers.algorithms.configs.genpo import ReversibleSolverConfig
        >>> instantiate(ReversibleSolverConfig(num_steps=4, sigma=0.8)).sigma
        0.8
    """

    num_steps: int = 5
    sigma: float = 0.75
    gradient: str = "stored"
    _target_: str = "torchrl.modules.ReversibleSolver"
    _partial_: bool = False

    def __post_init__(self) -> None:
        """Post-initialization hook for solver configurations."""


@dataclass
class StartConfig(ConfigBase):
    """Base of the configurations of a start."""

    _partial_: bool = False

    def __post_init__(self) -> None:
        """Post-initialization hook for start configurations."""


@dataclass
class IndependentStartConfig(StartConfig):
    """Hydra configuration for :class:`~torchrl.modules.IndependentStart`."""

    _target_: str = "torchrl.modules.IndependentStart"


@dataclass
class ConsistentStartConfig(StartConfig):
    """Hydra configuration for :class:`~torchrl.modules.ConsistentStart`."""

    tau: float = 0.3
    action_dim: int | None = None
    _target_: str = "torchrl.modules.ConsistentStart"


@dataclass
class SteeredStartConfig(StartConfig):
    """Hydra configuration for :class:`~torchrl.modules.SteeredStart`."""

    base: Any = MISSING
    action_dim: int = MISSING
    context_dim: int = MISSING
    num_cells: Any = (64,)
    _target_: str = "torchrl.modules.SteeredStart"


@dataclass
class ReversibleFlowActorConfig(ConfigBase):
    """Hydra configuration for :class:`~torchrl.modules.ReversibleFlowActor`.

    A nested key is a list of its parts, as everywhere in TorchRL's configurations.

    Examples:
        >>> from hydra.utils import instantiate
        >>> from torchrl.trainers.algorithms.configs.genpo import ReversibleFlowActorConfig, VelocityMLPConfig
        >>> velocity = VelocityMLPConfig(in_features=4, action_dim=2, num_cells=[32, 32])
        >>> instantiate(ReversibleFlowActorConfig(velocity=velocity, action_key=["agent", "action"])).out_keys
        [('agent', 'action'), 'action_memory', 'action_log_prob']
    """

    velocity: Any = MISSING
    solver: Any = None
    start: Any = None
    gaussian: Any = None
    in_keys: Any = "observation"
    action_key: Any = "action"
    memory_key: Any = "action_memory"
    log_prob_key: Any = "action_log_prob"
    spec: Any = None
    safe: bool = False
    default_interaction_type: Any = "RANDOM"
    _target_: str = "torchrl.trainers.algorithms.configs.genpo._make_reversible_flow_actor"
    _partial_: bool = False

    def __post_init__(self) -> None:
        """Post-initialization hook for flow policy configurations."""


def _make_reversible_flow_actor(*args: Any, in_keys: Any, **kwargs: Any) -> ReversibleFlowActor:
    if isinstance(in_keys, str):
        in_keys = [in_keys]
    for key in ("action_key", "memory_key", "log_prob_key"):
        kwargs[key] = _normalize_hydra_key(kwargs[key])
    return ReversibleFlowActor(*args, in_keys=_normalize_hydra_keys(in_keys), **kwargs)


@dataclass
class GenPOLossConfig(LossConfig):
    """Hydra configuration for :class:`~torchrl.objectives.GenPOLoss`.

    The fields are its own keywords and those of :class:`~torchrl.objectives.ClipPPOLoss`; ``gamma`` builds the value
    estimator.
    """

    actor_network: Any = None
    critic_network: Any = None
    entropy_bonus: bool = False
    reference: Any = None
    reference_coeff: float | None = None
    anchor_coeff: float = 0.0
    # a float, or a pair of them for asymmetric clipping
    clip_epsilon: Any = 0.2
    samples_mc_entropy: int = 1
    entropy_coeff: Any = None
    critic_coeff: float | None = None
    loss_critic_type: str = "smooth_l1"
    normalize_advantage: bool = False
    normalize_advantage_exclude_dims: Any = ()
    advantage_norm: Any = None
    gamma: float | None = None
    separate_losses: bool = False
    reduction: str | None = None
    clip_value: Any = None
    delay_actor: bool = False
    max_importance_ratio: float | None = None
    device: Any = None
    _target_: str = "torchrl.trainers.algorithms.configs.genpo._make_genpo_loss"


def _make_genpo_loss(*args: Any, **kwargs: Any) -> GenPOLoss:
    # Hydra hands a pair over as a list, which the loss does not take for one
    if isinstance(kwargs.get("clip_epsilon"), Sequence):
        kwargs["clip_epsilon"] = tuple(kwargs["clip_epsilon"])
    return _make_onpolicy_loss(GenPOLoss, *args, **kwargs)


@dataclass
class FlowMatchingLossConfig(LossConfig):
    """Hydra configuration for :class:`~torchrl.objectives.FlowMatchingLoss`."""

    actor_network: Any = MISSING
    reduction: str = "mean"
    _target_: str = "torchrl.objectives.FlowMatchingLoss"


@dataclass
class GenPOTrainerConfig(PPOTrainerConfig):
    """Hydra configuration for :class:`~torchrl.trainers.algorithms.GenPOTrainer`.

    The fields are those of :class:`~torchrl.trainers.algorithms.configs.PPOTrainerConfig`.
    """

    _target_: str = "torchrl.trainers.algorithms.configs.genpo._make_genpo_trainer"


def _make_genpo_trainer(*args: Any, **kwargs: Any) -> GenPOTrainer:
    return _make_onpolicy_trainer(GenPOTrainer, *args, **kwargs)


def _register_configs() -> None:
    store = ConfigStore.instance().store
    store(group="network", name="velocity_mlp", node=VelocityMLPConfig)
    store(group="network", name="velocity_transformer", node=VelocityTransformerConfig)
    store(group="solver", name="reversible", node=ReversibleSolverConfig)
    store(group="start", name="consistent", node=ConsistentStartConfig)
    store(group="start", name="independent", node=IndependentStartConfig)
    store(group="start", name="steered", node=SteeredStartConfig)
    store(group="model", name="reversible_flow", node=ReversibleFlowActorConfig)
    store(group="loss", name="flow_matching", node=FlowMatchingLossConfig)
    store(group="loss", name="genpo", node=GenPOLossConfig)
    store(group="trainer", name="genpo", node=GenPOTrainerConfig)


_register_configs()
