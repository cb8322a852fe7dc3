# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Flow policies with exact likelihood ratios for TorchRL: GenPO++ (arXiv 2606.06967)."""

from torchrl_genpo import _headless  # noqa: F401  before TorchRL imports MuJoCo
from torchrl_genpo.flow import (
    ConsistentStart,
    IndependentStart,
    ReversibleFlow,
    ReversibleSolver,
    SteeredStart,
    VelocityMLP,
    VelocityTransformer,
)
from torchrl_genpo.modules import ReversibleFlowActor
from torchrl_genpo.objectives import FlowMatchingLoss, GenPOLoss

__all__ = [
    "ConsistentStart",
    "FlowMatchingLoss",
    "GenPOLoss",
    "IndependentStart",
    "ReversibleFlow",
    "ReversibleFlowActor",
    "ReversibleSolver",
    "SteeredStart",
    "VelocityMLP",
    "VelocityTransformer",
]
__version__ = "0.1.0"
