# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""From a checkpoint to the policy that it holds, and its environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.checkpoint import Checkpoint
from torchrl.envs import ActionScaling, EnvBase, ObservationNorm

from torchrl_genpo.configuration import build_actor, build_env, build_models, make_adaptive_sigma
from torchrl_genpo.envs import freeze_normalization
from torchrl_genpo.limits import check_config, did_you_mean
from torchrl_genpo.models import pretrained_module
from torchrl_genpo.runs import SyncedCheckpoint, find_checkpoint, read_checkpoint_config
from torchrl_genpo.training.checkpoint import load_checkpoint, make_checkpoint

__all__ = ["DataRanges", "fill_in", "load_policy", "load_pretrained", "pretrained_checkpoint"]

SHAPING = (
    *("policy.hidden_sizes", "policy.activation", "policy.time_embedding_dim", "policy.transformer"),
    *("env.options.chunk_size", "env.options.observation_keys"),
)
"""Options that a policy keeps from its pre-training."""

GROUPS = ("env", "logger", "policy", "solver", "start")  # of the configuration, each with options of its own


def fill_in(saved: DictConfig, defaults: DictConfig) -> DictConfig:
    """Gives options that are newer than a saved configuration their default values; what is saved stays."""
    for key, value in defaults.items():
        if key not in saved:
            saved[key] = value
        elif isinstance(value, DictConfig) and key not in GROUPS:
            # a copy without Hydra's lock on names, for a section may have more of them where another choice was made
            saved[key] = OmegaConf.merge(OmegaConf.create(OmegaConf.to_container(value)), saved[key])
    return saved


def _option_names(cfg: DictConfig, prefix: str = "") -> list[str]:
    names = []
    for key, value in cfg.items():
        name = f"{prefix}{key!s}"
        names += _option_names(value, f"{name}.") if OmegaConf.is_dict(value) else [name]
    return names


def pretrained_checkpoint(actor: TensorDictModule, env: EnvBase) -> Checkpoint:
    """What pre-training shaped: the network, and the ranges of its observations and actions."""
    return SyncedCheckpoint(pretrained=pretrained_module(actor), normalization=DataRanges(env))


class DataRanges(nn.Module):
    """The shift and scale of observations and actions, which pre-training sets; nothing of what online training adds.

    Args:
        env (EnvBase): whose transforms they are.
    """

    def __init__(self, env: EnvBase) -> None:
        super().__init__()
        kinds = (ObservationNorm, ActionScaling)
        found = (transform for transform in env.transform if isinstance(transform, kinds))
        self.transforms: Any = nn.ModuleList(found)


def load_policy(
    path: Path,
    num_envs: int,
    seed: int,
    device: str = "cpu",
    overrides: Mapping[str, Any] | None = None,
    defaults: DictConfig | None = None,
) -> tuple[TensorDictModule, EnvBase, DictConfig]:
    """Rebuilds what a checkpoint of either entry script was saved from, with its normalisation frozen.

    Args:
        path (Path): of ``genpo.py`` or ``pretrain.py``.
        num_envs (int): size of the environment.
        seed (int): of the environment.
        device (str, optional): defaults to ``"cpu"``.
        overrides (mapping, optional): values of the configuration by dotted name.
        defaults (DictConfig, optional): of options that are newer than the checkpoint.

    Returns:
        The policy, its environment and the configuration.

    Raises:
        ValueError: if the file is not a checkpoint, damaged or of another configuration, or lacks what is overridden.
    """
    cfg = OmegaConf.create(read_checkpoint_config(path))
    if defaults is not None:
        fill_in(cfg, defaults)
    for key, value in {"device": device, **(overrides or {})}.items():
        parent, _, name = key.rpartition(".")
        known = OmegaConf.select(cfg, parent) if parent else cfg
        if not OmegaConf.is_dict(known) or name not in known:
            raise ValueError(f"{path} has no option {key}.{did_you_mean(key, _option_names(cfg))}")
        OmegaConf.update(cfg, key, value, merge=False)  # of a group: all of it
    check_config(cfg)
    env = build_env(cfg, num_envs, seed)
    if "pretrained" in Checkpoint.manifest(path)["components"]:
        actor = build_actor(cfg, env)
        checkpoint = pretrained_checkpoint(actor, env)
    else:
        actor, _, loss = build_models(cfg, env)
        checkpoint = make_checkpoint(loss=loss, env=env, adaptive_sigma=make_adaptive_sigma(cfg, actor))
    load_checkpoint(checkpoint, path, device)
    freeze_normalization(env)
    return actor, env, cfg


def load_pretrained(cfg: DictConfig, env: EnvBase, actor: TensorDictModule) -> None:
    """Loads what pre-training shaped from ``policy.init``.

    Raises:
        ValueError: if that was trained with another network, task or length of chunks.
    """
    path = find_checkpoint(Path(cfg.policy.init))
    saved = read_checkpoint_config(path)
    for key in ("env.name", *SHAPING):
        mine, theirs = (OmegaConf.select(config, key) for config in (cfg, OmegaConf.create(saved)))
        if mine != theirs:
            raise ValueError(f"policy.init={path} was trained with {key}={theirs}; this run has {key}={mine}.")
    load_checkpoint(pretrained_checkpoint(actor, env), path, cfg.device)
