# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""TorchRL's trainer for a flow policy; its Hydra configuration is ``torchrl_genpo.trainers.configs``."""

from torchrl_genpo.trainers.genpo import GenPOTrainer

__all__ = ["GenPOTrainer"]
