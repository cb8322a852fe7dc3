# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Controllers, which decide where the joints of a hand go next."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import numpy as np

from torchrl_genpo.deploy.policy import ExportedPolicy
from torchrl_genpo.envs.xhand import JOINTS, Scene

__all__ = ["HandController", "HandPolicy", "WaveMotion"]


@runtime_checkable
class HandController(Protocol):
    """The protocol of what :func:`~torchrl_genpo.deploy.run_policy` asks for the next targets.

    Attributes:
        dt (float): the time from one target to the next, s.
        start_pose (np.ndarray): the joint angles ``[12]`` where it wants to begin, rad.
    """

    dt: float
    start_pose: np.ndarray

    def reset(self) -> None:
        """Begins an episode."""

    def act(self, position: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decides on the next target.

        Args:
            position (np.ndarray): the measured angles ``[12]``, rad.
            target (np.ndarray): the present target ``[12]``, rad.

        Returns:
            An action, for the record, and the next target ``[12]``.
        """


class HandPolicy:
    """An exported policy of the XHand, whose actions move the targets as in training.

    The policy's observation is a history of measured angles and targets; this keeps it.

    Args:
        policy (ExportedPolicy): a policy of a ``xhand/...`` task.

    Attributes:
        side (str): the hand that it was trained for, ``right`` or ``left``.
        limits (np.ndarray): the lowest and highest targets ``[2, 12]`` of the training, rad.

    Raises:
        ValueError: if the policy is not of a hand.
    """

    def __init__(self, policy: ExportedPolicy) -> None:
        hand: dict[str, Any] | None = policy.metadata.get("hand")
        if hand is None or hand["joints"] != list(JOINTS):
            raise ValueError("The policy was not trained on a hand and cannot drive one; env=xhand/nut_bolt is needed.")
        if policy.dt is None:
            raise ValueError("The policy does not say its control period (dt in policy.json).")
        self._active = [JOINTS.index(name) for name in hand["active"]]
        self._scale, self._masked, self._num_frames = float(hand["scale"]), bool(hand["masked"]), int(hand["frames"])
        sizes = *policy.metadata["inputs"].get("observation", ()), *policy.metadata["action"]["shape"]
        expected = 2 * len(JOINTS) * self._num_frames, len(JOINTS if self._masked else self._active)
        if sizes != expected:
            raise ValueError(
                f"A hand with {self._num_frames} frames and these active joints has an observation and an action of "
                f"the sizes {expected}; the policy's are {sizes}."
            )
        self.policy, self.dt, self.side = policy, policy.dt, str(hand["side"])
        self.limits = np.array([hand["low"], hand["high"]])
        self._signs = np.ones(len(JOINTS))  # from the maker's URDF to the model that it was trained in
        self._signs[JOINTS.index("index_bend")] = hand["index_bend_sign"]
        self.start_pose = self._signs * np.array(hand["start_pose"])
        self._frames: np.ndarray | None = None

    def reset(self) -> None:
        """Begins an episode: the first observation fills the history."""
        self._frames = None
        self.policy.reset()

    def observe(self, position: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Adds the measured angles and the present targets, ``[12]`` each in the signs of the training, to the history.

        Returns:
            The observation ``[24 * frames]`` of the environment, the oldest frame first.
        """
        frame = np.concatenate([position, target]).astype(np.float32)
        if self._frames is None:
            self._frames = np.tile(frame, (self._num_frames, 1))
        else:
            self._frames = np.concatenate([self._frames[1:], frame[None]])
        return self._frames.ravel()

    def act(self, position: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The action, and the target that it makes of the present one."""
        position, target = self._signs * position, self._signs * target
        action = self.policy(self.observe(position, target))
        change = action[self._active] if self._masked else action
        target[self._active] += self._scale * change
        return action, self._signs * np.clip(target, *self.limits)


class WaveMotion:
    """A slow wave through the fingers, for a first look at a hand without a policy: no contact, half a radian at most.

    Args:
        dt (float, optional): the control period, s. Defaults to ``0.05``.
        period (float, optional): the period of the wave, s. Defaults to ``4``.
        amplitude (float, optional): the largest way of a joint from its start, rad. Defaults to ``0.25``.
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
