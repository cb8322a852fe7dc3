# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The mathematics of reversible flows: tensors in, tensors out."""

from torchrl_genpo.flow.distribution import Pair, ReversibleFlow
from torchrl_genpo.flow.solver import ConditionedVelocity, ReversibleSolver
from torchrl_genpo.flow.start import IndependentStart, Start
from torchrl_genpo.flow.velocity import Mish, SinusoidalTimeEmbedding, Velocity, VelocityMLP

__all__ = [
    "ConditionedVelocity",
    "IndependentStart",
    "Mish",
    "Pair",
    "ReversibleFlow",
    "ReversibleSolver",
    "SinusoidalTimeEmbedding",
    "Start",
    "Velocity",
    "VelocityMLP",
]
