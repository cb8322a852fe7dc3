# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A training of the entry script in this process, for benchmarks that look into it: no evaluation, no checkpoints."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from torchrl_genpo.distributed import Ranks
from torchrl_genpo.runs import RunFolder
from torchrl_genpo.training.loop import Training

QUIET = ["eval.interval=1_000_000_000", "eval.num_envs=1", "checkpoint.interval=1_000_000_000"]


def configure(*options: str) -> DictConfig:
    """The entry script's configuration with these options."""
    with initialize_config_module("torchrl_genpo.config", version_base="1.3"):
        return compose("genpo", overrides=[*QUIET, *options])


def start_training(cfg: DictConfig, folder: Path) -> Training:
    """A training that writes to ``folder``."""
    return Training(cfg, RunFolder(folder), Ranks("cpu"))
