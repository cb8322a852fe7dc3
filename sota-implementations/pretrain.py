# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Pre-trains a policy on demonstrations: flows by flow matching, a Gaussian by maximum likelihood.

genpo-collect robomimic/can --episodes 100 --output can.hdf5
python sota-implementations/pretrain.py env=robomimic/can pretrain.dataset=can.hdf5
python sota-implementations/genpo.py env=robomimic/can policy.init=<the checkpoint that it names>
"""

from torchrl_genpo.commands.pretrain import main

if __name__ == "__main__":
    main()
