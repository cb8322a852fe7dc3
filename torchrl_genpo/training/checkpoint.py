# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One file for all that a run has to keep: tensors and plain values, written whole or not at all."""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import random
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.envs import EnvBase

from torchrl_genpo.config.compose import validate
from torchrl_genpo.config.nested import select_option, set_option
from torchrl_genpo.config.schema import PretrainOptions, TrainOptions
from torchrl_genpo.trained import trained_policies
from torchrl_genpo.training.build import build_env
from torchrl_genpo.training.metrics import read_metrics
from torchrl_genpo.training.policy import make_policy

__all__ = [
    "SHAPING",
    "RandomState",
    "best_checkpoint",
    "build_policy",
    "checkpoints_of",
    "find_checkpoint",
    "frames_of",
    "is_intact",
    "kind_of",
    "load_policy",
    "load_pretrained",
    "read_checkpoint",
    "read_config",
    "restore",
    "save_checkpoint",
    "saved_options",
    "write_atomically",
]

FORMAT = 1
SHAPING = (
    *("policy.hidden_sizes", "policy.head_sizes", "policy.activation", "policy.time_embedding_dim"),
    *("policy.transformer", "policy.encoder", "policy.encoder_sizes"),
    *("env.options.chunk_size", "env.options.observation_keys"),
)
"""Options that a policy keeps from its pre-training."""

BROKEN = (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError)


class RandomState:
    """The global random state of Python, NumPy and PyTorch, as a part of a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """The states as tensors and plain values."""
        kind, keys, *rest = np.random.get_state()
        return {
            "python": random.getstate(),
            "numpy": [kind, torch.from_numpy(np.array(keys, np.int64)), *rest],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores the states, those of GPUs only where there are as many as before."""
        random.setstate(state_dict["python"])
        kind, keys, *rest = state_dict["numpy"]
        np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
        torch.set_rng_state(state_dict["torch"].cpu())
        if state_dict["cuda"] and torch.cuda.device_count() == len(state_dict["cuda"]):
            torch.cuda.set_rng_state_all([state.cpu() for state in state_dict["cuda"]])


def _sync(path: Path) -> None:
    """Waits until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(temporary: Path, path: Path) -> None:
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that it is whole, old or new, whatever happens."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _publish(temporary, path)


def save_checkpoint(path: Path, frames: int, config: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Saves the state of some parts of a run.

    The file is on the disk before it takes its name: a crash leaves the old one or the new one.

    Args:
        path (Path): the file.
        frames (int): trained so far.
        config (mapping): the options of the run, plain values.
        parts (mapping): what to save, by name; each has a ``state_dict`` of tensors and plain values.
    """
    content = {"format": FORMAT, "frames": frames, "config": dict(config)}
    content |= {name: part.state_dict() for name, part in parts.items()}
    buffer = io.BytesIO()  # PyTorch writing to the disk itself would not say that the disk is full
    torch.save(content, buffer)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(buffer.getbuffer())
        _publish(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint; it can hold tensors and plain values alone, and no code.

    Raises:
        ValueError: if the file is no checkpoint of this library, cut short or damaged, or holds anything else.
    """
    try:
        if not is_intact(path):
            raise ValueError("it is missing, cut short or damaged")
        content = torch.load(path, map_location=device, weights_only=True)
        if content["format"] > FORMAT:
            raise ValueError(f"it has format {content['format']}, and this version reads up to {FORMAT}")
        if not isinstance(content["config"], dict) or not isinstance(content["frames"], int):
            raise ValueError("its configuration is none")
    except BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint: {reason}.") from error
    return content


def restore(checkpoint: Mapping[str, Any], parts: Mapping[str, Any], path: Path) -> None:
    """Puts every part back to its saved state.

    Raises:
        ValueError: if the checkpoint lacks a part, or was saved with another configuration.
    """
    for name, part in parts.items():
        try:
            part.load_state_dict(checkpoint[name])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = f"it has no {name!r}" if name not in checkpoint else str(error).replace("\n", " ")
            raise ValueError(f"Cannot load {name!r} from {path}: it is of another configuration ({reason}).") from error


def is_intact(path: Path) -> bool:
    """Whether a checkpoint is complete and every part of it has its checksum (CRC-32, which the archive keeps)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError):
        return False


def frames_of(path: Path) -> int:
    """The frames after which a checkpoint was saved, by its name."""
    return int(path.stem.rpartition("-")[2])


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoints of a run's folder, the oldest first."""
    return sorted((run / "checkpoints").glob("checkpoint-*.pt"), key=frames_of)


def best_checkpoint(run: Path, column: str | None) -> Path | None:
    """The checkpoint after which ``metrics.csv`` has the highest finite value of a column; ``None`` if none has one."""
    metrics_path = run / "metrics.csv"
    if column is None or not metrics_path.exists():
        return None
    metrics = read_metrics(metrics_path)
    values = dict(zip(metrics.get("frames", []), metrics.get(column, []), strict=False))
    scored = [(values.get(frames_of(path), float("nan")), path) for path in checkpoints_of(run)]
    known = [(value, path) for value, path in scored if math.isfinite(value) and is_intact(path)]
    return max(known, key=lambda pair: pair[0])[1] if known else None


def read_config(path: Path) -> dict[str, Any]:
    """The options in the ``config.yaml`` of a run.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no mapping of options.")
    return config


def find_checkpoint(path: Path) -> Path:
    """A checkpoint itself, the best one of a run's folder, or a policy that comes with the library, by its name.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the configuration of the run, which says what is the best, is damaged.
    """
    if (path / "checkpoints").is_dir():
        config_path = path / "config.yaml"
        config = read_config(config_path) if config_path.exists() else {}
        column = select_option(config, "checkpoint.keep_best")
        found = best_checkpoint(path, column) or next(filter(is_intact, reversed(checkpoints_of(path))), None)
        if found is None:
            raise FileNotFoundError(f"{path} has no readable checkpoint.")
        return found
    if path.is_dir():
        raise FileNotFoundError(f"{path} is neither a checkpoint nor the folder of a run, which has one 'checkpoints'.")
    if path.exists():
        return path
    trained, name = trained_policies(), path.as_posix()
    if name not in trained:
        raise FileNotFoundError(
            f"There is no checkpoint and no run {path}. Policies that come with the library: {', '.join(trained)}."
        )
    return trained[name]


def load_policy(
    path: Path | str,
    num_envs: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    overrides: Mapping[str, Any] | None = None,
) -> tuple[TensorDictSequential, EnvBase, TrainOptions | PretrainOptions]:
    """Rebuilds the policy of a checkpoint, of training or of pre-training, and its environment.

    Args:
        path (Path or str): a checkpoint, the folder of a run, of which it takes the best one, or the name of a policy
            that comes with the library.
        num_envs (int, optional): size of the environment; ``None`` for that of the run's evaluations.
        seed (int, optional): of the environment. Defaults to ``0``.
        device (str, optional): defaults to ``"cpu"``.
        overrides (mapping, optional): other values of its options, by dotted name.

    Returns:
        The policy, its environment and its options.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if the file is not a checkpoint, damaged or of another configuration, or lacks what is overridden.
    """
    path = find_checkpoint(Path(path))
    checkpoint = read_checkpoint(path, device)
    options = saved_options(checkpoint, {"device": device, **(overrides or {})})
    return *build_policy(checkpoint, options, path, num_envs, seed), options


def build_policy(
    checkpoint: Mapping[str, Any],
    options: TrainOptions | PretrainOptions,
    path: Path,
    num_envs: int | None = None,
    seed: int = 0,
) -> tuple[TensorDictSequential, EnvBase]:
    """The policy of a checkpoint that was read, with its options, and its environment; see :func:`load_policy`."""
    env = build_env(options, options.eval.num_envs if num_envs is None else num_envs, seed)
    policy = make_policy(options, env)
    _load_weights(policy, checkpoint, path, with_start="pretrain" not in checkpoint["config"])
    return policy, env


def _load_weights(policy: nn.Module, checkpoint: Mapping[str, Any], path: Path, with_start: bool) -> None:
    """Loads a policy; its start stays as it is if it is none of what was trained."""
    saved = checkpoint.get("policy", {})
    if not with_start:
        kept = (".start.", "._extra_state", ".width", ".memory_weight")  # the last two follow from start and solver
        own = {key: value for key, value in policy.state_dict().items() if any(part in key for part in kept)}
        saved = {key: value for key, value in saved.items() if not any(part in key for part in kept)} | own
    restore({"policy": saved}, {"policy": policy}, path)


def saved_options(
    checkpoint: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> TrainOptions | PretrainOptions:
    """The options that a checkpoint was saved with, some of them replaced by dotted name."""
    config = copy.deepcopy(checkpoint["config"])
    for name, value in (overrides or {}).items():
        set_option(config, name, value)
    return validate(config, kind_of(checkpoint))


def kind_of(checkpoint: Mapping[str, Any]) -> Any:
    """The schema of a checkpoint's options."""
    return PretrainOptions if "pretrain" in checkpoint["config"] else TrainOptions


def load_pretrained(options: TrainOptions, policy: TensorDictSequential) -> None:
    """Loads what pre-training shaped from ``policy.init``: the network and the ranges of its data, not the start.

    Raises:
        ValueError: if that was trained with another network, task or length of chunks.
    """
    path = find_checkpoint(Path(str(options.policy.init)))
    checkpoint = read_checkpoint(path, options.device)
    mine, theirs = (each.model_dump(mode="json") for each in (options, saved_options(checkpoint)))
    for name in ("env.name", *SHAPING):
        here, there = (select_option(config, name) for config in (mine, theirs))
        if here != there:
            raise ValueError(f"policy.init={path} was trained with {name}={there}; this run has {name}={here}.")
    _load_weights(policy, checkpoint, path, with_start=False)
