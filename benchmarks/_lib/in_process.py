# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Builds, trains and evaluates policies in this process, for benchmarks that look into them.

It is the one module of the benchmarks that turns options and checkpoints into parts of the library.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchrl_genpo.config.compose import compose
from torchrl_genpo.envs import Purpose, spawn_seed
from torchrl_genpo.training import evaluate
from torchrl_genpo.training.build import build_env, build_models, normalizers
from torchrl_genpo.training.checkpoint import find_checkpoint, load_policy, read_checkpoint
from torchrl_genpo.training.loop import Training
from torchrl_genpo.training.ranks import Ranks
from torchrl_genpo.training.run_folder import RunFolder

__all__ = [
    "build_env",
    "build_models",
    "configure",
    "describe_checkpoint",
    "evaluate_checkpoint",
    "find_checkpoint",
    "latest_checkpoint",
    "load_policy",
    "normalizers",
    "prepare",
    "start_training",
]

QUIET = ["eval.interval=1_000_000_000", "eval.num_envs=1", "checkpoint.interval=1_000_000_000"]
"""Options that leave out evaluations and checkpoints."""


def configure(*options: str) -> Any:
    """Composes the entry script's options with these, without evaluations and checkpoints."""
    return compose([*QUIET, *options])


def start_training(options: Any, folder: Path) -> Training:
    """Returns a training that writes to ``folder``."""
    return Training(options, RunFolder(folder), Ranks("cpu"))


def prepare(loss: Any, data: Any) -> Any:
    """Returns a batch with what the loss computes of it once, before the updates."""
    return loss.before_updates(data) if hasattr(loss, "before_updates") else data


def latest_checkpoint(folder: Path) -> Path:
    """Returns the newest checkpoint of a run.

    Raises:
        FileNotFoundError: if the run has none.
    """
    checkpoint = RunFolder(folder, read_only=True).latest()
    if checkpoint is None:
        raise FileNotFoundError(f"{folder} has no checkpoint.")
    return checkpoint


def describe_checkpoint(path: Path) -> tuple[dict[str, Any], int]:
    """Returns the options that a checkpoint was trained with, and for how many frames."""
    content = read_checkpoint(path)
    return content["config"], content["frames"]


def evaluate_checkpoint(
    checkpoint: Path,
    num_envs: int,
    rounds: int = 1,
    overrides: dict[str, Any] | None = None,
    device: str = "cpu",
    change: Callable[[Any], Any] = lambda policy: policy,
) -> dict[str, float]:
    """Returns the metrics of a saved policy by the evaluation seed of its run.

    Args:
        checkpoint (Path): the file.
        num_envs (int): the episodes of a round.
        rounds (int): the rounds of each noise.
        overrides (dict): options that differ from the checkpoint's, by dotted name.
        device (str): the device of policy and environment.
        change (callable): returns the policy to evaluate in place of the one that was saved.
    """
    policy, env, options = load_policy(checkpoint, num_envs, 0, device, overrides)
    found = evaluate(env, change(policy), spawn_seed(options.seed, Purpose.EVALUATION), rounds)
    env.close()
    return found
