# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What GenPO++ is compared with, each as a policy of the same loop (``docs/methods.md``)."""

from torchrl_genpo.baselines.coupling import CouplingSolver
from torchrl_genpo.baselines.dummy_flow import AlternatingCoupling, DummyFlowLoss, JacobianFlow, JacobianFlowActor
from torchrl_genpo.baselines.fpo import FPOActor, FPOLoss, asymmetric_gain
from torchrl_genpo.baselines.policyflow import PolicyFlowActor, PolicyFlowLoss
from torchrl_genpo.baselines.self_adjoint_flow import SelfAdjointCoupling

__all__ = [
    "AlternatingCoupling",
    "CouplingSolver",
    "DummyFlowLoss",
    "FPOActor",
    "FPOLoss",
    "JacobianFlow",
    "JacobianFlowActor",
    "PolicyFlowActor",
    "PolicyFlowLoss",
    "SelfAdjointCoupling",
    "asymmetric_gain",
]
