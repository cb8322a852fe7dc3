# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The one training loop, and the parts of it that scripts of their own may use."""

from torchrl_genpo.training.evaluation import compare_ratios, episode_log, evaluate, statistics_columns
from torchrl_genpo.training.finite import DivergedError, LastGood, check_data, check_finite
from torchrl_genpo.training.metrics import read_metrics
from torchrl_genpo.training.progress import Progress
from torchrl_genpo.training.update import augment, batch_keys, make_update, update_metrics

__all__ = [
    "DivergedError",
    "LastGood",
    "Progress",
    "augment",
    "batch_keys",
    "check_data",
    "check_finite",
    "compare_ratios",
    "episode_log",
    "evaluate",
    "make_update",
    "read_metrics",
    "statistics_columns",
    "update_metrics",
]
