# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the entry scripts and the examples share: update, evaluation, checkpoints, and the loop over them (``loop``)."""

from torchrl_genpo.training.checkpoint import Progress, load_checkpoint, make_checkpoint
from torchrl_genpo.training.evaluation import compare_ratios, episode_log, evaluate, statistics_columns
from torchrl_genpo.training.numbers import DivergedError, LastGood, check_data, check_finite
from torchrl_genpo.training.trainer import GenPOTrainer
from torchrl_genpo.training.update import augment, batch_keys, make_update, prepare, update_metrics

__all__ = [
    "DivergedError",
    "GenPOTrainer",
    "LastGood",
    "Progress",
    "augment",
    "batch_keys",
    "check_data",
    "check_finite",
    "compare_ratios",
    "episode_log",
    "evaluate",
    "load_checkpoint",
    "make_checkpoint",
    "make_update",
    "prepare",
    "statistics_columns",
    "update_metrics",
]
