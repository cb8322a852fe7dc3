# Copyright (c) Meta Platforms, Inc. and affiliates.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""GenPO++: a flow policy trained by PPO on exact likelihood ratios (https://arxiv.org/abs/2606.06967)."""

from __future__ import annotations

import hydra
from torchrl.trainers.algorithms.configs import GenPOTrainerConfig  # noqa: F401


@hydra.main(config_path="config", config_name="config", version_base="1.3")
def main(cfg):
    trainer = hydra.utils.instantiate(cfg.trainer)
    trainer.train()


if __name__ == "__main__":
    main()
