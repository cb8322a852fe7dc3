# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Faults on purpose, to test that a hand survives them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from torchrl_genpo.deploy.controller import HandController
from torchrl_genpo.envs.xhand import JOINTS

__all__ = ["HAND_FAULTS", "POLICY_FAULTS", "Fault", "FaultyController"]

HAND_FAULTS = {
    "stuck": "a joint that does not move",
    "overheat": "a motor that heats by 10 degrees a second",
    "error_code": "an error code of the SDK for every reading",
    "unplugged": "no answer to anything, until it is plugged in and opened again",
    "exception": "an exception for every call, until it is over and the hand was opened again",
    "board_error": "an error flag of a joint's board",
    "nan_state": "a position that is not finite",
    "zero_state": "positions that are all zero",
    "hang": "calls that take half a second",
}
"""What the fake SDK can be made to do."""

POLICY_FAULTS = {
    "nan_action": "an action that is not finite",
    "pause": "a policy that thinks for 300 ms, once",
    "crash": "a policy that raises an exception",
}
"""What a controller can be made to do."""


@dataclass(frozen=True)
class Fault:
    """A fault and the time that it lasts.

    Attributes:
        kind (str): one of :data:`HAND_FAULTS` or :data:`POLICY_FAULTS`.
        start (float): the time of its start, s: of the hand from its first command on, of a controller from its first
            action on.
        duration (float): the time that it lasts, s.
        joint (str): the joint, of a fault that concerns one.

    Examples:
        >>> Fault("stuck", start=2.5, joint="mid_1").is_on(3.0)
        True
    """

    kind: str
    start: float = 1.0
    duration: float = math.inf
    joint: str = "index_1"

    def __post_init__(self) -> None:
        if self.kind not in HAND_FAULTS | POLICY_FAULTS or self.joint not in JOINTS:
            raise ValueError(f"{self} is not a known fault of a known joint.")

    def is_on(self, seconds: float) -> bool:
        """Whether it lasts at a time."""
        return self.start <= seconds < self.start + self.duration


class FaultyController:
    """A controller with one of the :data:`POLICY_FAULTS`.

    Args:
        controller (HandController): the sane one.
        fault (Fault): what goes wrong, and when.

    Attributes:
        began_at (float or None): when it went wrong, as ``time.monotonic`` says.
    """

    def __init__(self, controller: HandController, fault: Fault) -> None:
        if fault.kind not in POLICY_FAULTS:
            raise ValueError(f"{fault.kind!r} is a fault of the hand, not of a policy.")
        self._controller, self._fault = controller, fault
        self._steps = 0
        self.began_at: float | None = None
        self.dt, self.start_pose = controller.dt, controller.start_pose

    def reset(self) -> None:
        """Begins an episode."""
        self._steps = 0
        self._controller.reset()

    def act(self, position: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sane controller's action, or what the fault makes of it."""
        action, target = self._controller.act(position, target)
        self._steps += 1
        if self._fault.is_on(self._steps * self.dt):
            self.began_at = self.began_at or time.monotonic()
            if self._fault.kind == "nan_action":
                target = np.where(np.array(JOINTS) == self._fault.joint, np.nan, target)
            elif self._fault.kind == "crash":
                raise RuntimeError("a fault on purpose")
            elif not self._fault.is_on((self._steps - 1) * self.dt):
                time.sleep(0.3)
        return action, target
