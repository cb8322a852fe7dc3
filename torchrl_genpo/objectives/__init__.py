# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Loss modules."""

from torchrl_genpo.objectives.flow_matching import FlowMatchingLoss, flow_matching_error
from torchrl_genpo.objectives.genpo import GenPOLoss
from torchrl_genpo.objectives.pair import PairLoss

__all__ = ["FlowMatchingLoss", "GenPOLoss", "PairLoss", "flow_matching_error"]
