# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Trained policies away from training: export, and a hand that they drive."""

from torchrl_genpo.deploy.exporter import PolicyExporter
from torchrl_genpo.deploy.policy import ExportedPolicy

__all__ = ["ExportedPolicy", "PolicyExporter"]
