# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The one training loop, and the parts of it that scripts of their own may use."""

from torchrl_genpo.training.evaluation import evaluate
from torchrl_genpo.training.finite import DivergedError, check_finite
from torchrl_genpo.training.metrics import read_metrics
from torchrl_genpo.training.trainer import GenPOTrainer
from torchrl_genpo.training.update import make_update

__all__ = [
    "DivergedError",
    "GenPOTrainer",
    "check_finite",
    "evaluate",
    "make_update",
    "read_metrics",
]
