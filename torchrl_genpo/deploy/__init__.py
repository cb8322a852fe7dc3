# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Trained policies away from training: their export, and a hand that they drive."""

from __future__ import annotations

from torchrl_genpo.deploy.controller import HandController, HandPolicy, WaveMotion
from torchrl_genpo.deploy.exporter import PolicyExporter
from torchrl_genpo.deploy.hand import HandBackend, HandConfig, HandError, HandState, SafetyConfig, load_config
from torchrl_genpo.deploy.loop import RunReport, run_policy
from torchrl_genpo.deploy.policy import ExportedPolicy
from torchrl_genpo.deploy.session import SessionLog, draw_session, read_session
from torchrl_genpo.deploy.simulated import FastClock, SimulatedHand
from torchrl_genpo.deploy.xhand import XHandBackend

__all__ = [
    "ExportedPolicy",
    "FastClock",
    "HandBackend",
    "HandConfig",
    "HandController",
    "HandError",
    "HandPolicy",
    "HandState",
    "PolicyExporter",
    "RunReport",
    "SafetyConfig",
    "SessionLog",
    "SimulatedHand",
    "WaveMotion",
    "XHandBackend",
    "draw_session",
    "load_config",
    "read_session",
    "run_policy",
]
