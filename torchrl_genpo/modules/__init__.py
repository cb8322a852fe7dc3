# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""TensorDict modules."""

from torchrl_genpo.modules.actor import ReversibleFlowActor
from torchrl_genpo.modules.euler import EulerActor
from torchrl_genpo.modules.export import ExportablePolicy, ObservationPipeline

__all__ = ["EulerActor", "ExportablePolicy", "ObservationPipeline", "ReversibleFlowActor"]
