# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The mathematics of reversible flows, from tensors to tensors; it imports torch alone."""

from torchrl_genpo.flow.consistent import ConsistentStart
from torchrl_genpo.flow.distribution import Pair, ReversibleFlow
from torchrl_genpo.flow.explicit import euler, midpoint
from torchrl_genpo.flow.marginal import MarginalEstimate, marginal_log_prob, propose_memory
from torchrl_genpo.flow.solver import PairSolver, ReversibleSolver, VelocityField
from torchrl_genpo.flow.start import IndependentStart, Start
from torchrl_genpo.flow.steering import SteeredStart
from torchrl_genpo.flow.transformer import VelocityTransformer
from torchrl_genpo.flow.velocity import (
    ConditionedVelocity,
    TimeEmbedding,
    Velocity,
    VelocityMLP,
    check_velocity,
)

__all__ = [
    "ConditionedVelocity",
    "ConsistentStart",
    "IndependentStart",
    "MarginalEstimate",
    "Pair",
    "PairSolver",
    "ReversibleFlow",
    "ReversibleSolver",
    "Start",
    "SteeredStart",
    "TimeEmbedding",
    "Velocity",
    "VelocityField",
    "VelocityMLP",
    "VelocityTransformer",
    "check_velocity",
    "euler",
    "marginal_log_prob",
    "midpoint",
    "propose_memory",
]
