# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Faults on purpose, to see that a hand survives them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from torchrl_genpo.config.checks import did_you_mean
from torchrl_genpo.deploy.controller import HandController
from torchrl_genpo.envs.xhand import JOINTS

__all__ = ["HAND_FAULTS", "POLICY_FAULTS", "Fault", "FaultyController"]

HAND_FAULTS = {
    "stuck": "a joint that does not move",
    "overheat": "a motor that heats by 10 degrees a second",
    "error_code": "an error code of the SDK for every reading",
    "unplugged": "no answer to anything, until it is plugged in and opened again",
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
    """A fault with its time.

    Attributes:
        kind (str): of :data:`HAND_FAULTS` or :data:`POLICY_FAULTS`.
        start (float): s; of the hand from its first command on, of a controller from its first action on.
        duration (float): s.
        joint (str): where it concerns one.

    Examples:
        >>> Fault.parse("stuck:mid_1@2.5")
        Fault(kind='stuck', start=2.5, duration=inf, joint='mid_1')
    """

    kind: str
    start: float = 1.0
    duration: float = math.inf
    joint: str = "index_1"

    def __post_init__(self) -> None:
        known = HAND_FAULTS | POLICY_FAULTS
        if self.kind not in known:
            raise ValueError(
                f"Unknown fault {self.kind!r}.{did_you_mean(self.kind, known)} Faults: {', '.join(known)}."
            )
        if self.joint not in JOINTS:
            raise ValueError(f"Unknown joint {self.joint!r}.{did_you_mean(self.joint, JOINTS)}")

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Reads ``kind[:joint][@seconds]``."""
        name, _, start = text.partition("@")
        kind, _, joint = name.partition(":")
        try:
            return cls(kind, float(start) if start else cls.start, joint=joint or cls.joint)
        except ValueError as error:
            raise ValueError(f"{text!r} is not kind[:joint][@seconds]. {error}") from error

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
