# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""TensorDict modules: the parts that a policy is put together from."""

from torchrl_genpo.modules.action_scale import ActionScale
from torchrl_genpo.modules.actor import ReversibleFlowActor
from torchrl_genpo.modules.euler import EulerActor
from torchrl_genpo.modules.export import ExportablePolicy
from torchrl_genpo.modules.normalizer import RunningNormalizer
from torchrl_genpo.modules.sequence import encode, flow_of, steps
from torchrl_genpo.modules.squash import Squash

__all__ = [
    "ActionScale",
    "EulerActor",
    "ExportablePolicy",
    "ReversibleFlowActor",
    "RunningNormalizer",
    "Squash",
    "encode",
    "flow_of",
    "steps",
]
