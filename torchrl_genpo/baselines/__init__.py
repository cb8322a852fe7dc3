# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The methods that GenPO++ is compared with, each as a policy of the same loop (``docs/methods.md``)."""

from torchrl_genpo.baselines.fpo import FPOActor, FPOLoss, asymmetric_gain
from torchrl_genpo.baselines.genpo import AlternatingCoupling, DummyActionLoss
from torchrl_genpo.baselines.policyflow import PolicyFlowActor, PolicyFlowLoss

__all__ = [
    "AlternatingCoupling",
    "DummyActionLoss",
    "FPOActor",
    "FPOLoss",
    "PolicyFlowActor",
    "PolicyFlowLoss",
    "asymmetric_gain",
]
