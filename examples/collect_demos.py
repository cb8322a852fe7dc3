# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Collects demonstrations of a scripted expert, in several processes, into a file of robomimic's format.

    python examples/collect_demos.py robomimic/can --episodes 100 --output can.hdf5    # about two minutes on two cores

It is the same as the command genpo-collect, and needs robosuite (the README says how to install it).
"""

from torchrl_genpo.commands.collect import main

if __name__ == "__main__":
    main(__doc__)
