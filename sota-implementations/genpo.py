# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Trains a policy on-policy with clipped PPO: GenPO++ (default), a Gaussian or a baseline, through one loop.

python sota-implementations/genpo.py env=hopper policy=gaussian seed=1
python sota-implementations/genpo.py resume=outputs/half_cheetah/...
python sota-implementations/genpo.py evaluate=outputs/.../checkpoints/checkpoint-000000501760.pt

The loop is torchrl_genpo/training/loop.py, the configuration torchrl_genpo/config/genpo.yaml.
"""

from torchrl_genpo.commands.train import main

if __name__ == "__main__":
    main()
