# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What decides where the joints of a hand should go next."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import numpy as np

from torchrl_genpo.deploy.policy import ExportedPolicy
from torchrl_genpo.envs.xhand import JOINTS, Scene

__all__ = ["HandController", "HandPolicy", "WaveMotion"]


@runtime_checkable
class HandController(Protocol):
    """What :func:`~torchrl_genpo.deploy.run_policy` asks for the next targets.

    Attributes:
        dt (float): s from one target to the next.
        start_pose (np.ndarray): joint angles ``[12]`` where it wants to begin, rad.
    """

    dt: float
    start_pose: np.ndarray

    def reset(self) -> None:
        """Begins an episode."""

    def act(self, position: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """An action, for the record, and the next target ``[12]`` from the measured angles and the present target."""


class HandPolicy:
    """An exported policy of the XHand: its actions move the targets, as in training.

    Args:
        policy (ExportedPolicy): of a ``xhand/...`` task.

    Raises:
        ValueError: if the policy is not of a hand.
    """

    def __init__(self, policy: ExportedPolicy) -> None:
        hand: dict[str, Any] | None = policy.metadata.get("hand")
        parts = list(policy.metadata["observation"]["parts"])
        if hand is None or parts != ["joint_position", "joint_target"] or hand["joints"] != list(JOINTS):
            raise ValueError(
                f"The policy reads {', '.join(parts)} and cannot drive a hand; one of env=xhand/nut_bolt is needed."
            )
        if policy.dt is None:
            raise ValueError("The policy does not say its control period (dt in policy.json).")
        self.policy, self.dt, self.side = policy, policy.dt, str(hand["side"])
        self.limits = np.array([hand["low"], hand["high"]])
        """Of its targets, ``[2, 12]``, rad."""
        self._active = [JOINTS.index(name) for name in hand["active"]]
        self._scale, self._masked = float(hand["scale"]), bool(hand["masked"])
        self._signs = np.ones(len(JOINTS))  # from the maker's URDF to the model that it was trained in
        self._signs[JOINTS.index("index_bend")] = hand["index_bend_sign"]
        self.start_pose = self._signs * np.array(hand["start_pose"])

    def reset(self) -> None:
        """Begins an episode: the first observation fills the history."""
        self.policy.reset()

    def act(self, position: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The action, and the target that it makes of the present one."""
        position, target = self._signs * position, self._signs * target
        action = self.policy(np.concatenate([position, target]))
        change = action[self._active] if self._masked else action
        target[self._active] += self._scale * change
        return action, self._signs * np.clip(target, *self.limits)


class WaveMotion:
    """A slow wave through the fingers, for a first look at a hand without a policy: no contact, half a radian at most.

    Args:
        dt (float, optional): s. Defaults to ``0.05``.
        period (float, optional): of the wave, s. Defaults to ``4``.
        amplitude (float, optional): rad. Defaults to ``0.25``.
    """

    def __init__(self, dt: float = 0.05, period: float = 4.0, amplitude: float = 0.25) -> None:
        self.dt, self._period, self._amplitude = dt, period, amplitude
        self._phases = {name: index for index, name in enumerate(n for n in JOINTS if n.endswith("_1"))}
        self.start_pose = Scene().start_pose()
        for name in self._phases:
            self.start_pose[JOINTS.index(name)] = 0.3
        self._time = 0.0

    def reset(self) -> None:
        """Begins at the start pose."""
        self._time = 0.0

    def act(self, position: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """No action to record, and the next point of the wave."""
        self._time += self.dt
        target = self.start_pose.copy()
        for name, phase in self._phases.items():
            angle = 2 * math.pi * (self._time / self._period - phase / 8)
            rise = min(1.0, self._time / self._period)  # from the start pose into the wave
            target[JOINTS.index(name)] += rise * self._amplitude * math.sin(angle)
        return np.empty(0), target
