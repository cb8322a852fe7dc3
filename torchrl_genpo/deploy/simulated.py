# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A simulated hand and nut, in real time or on a clock that does not wait."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from torchrl_genpo.deploy.hand import HandState
from torchrl_genpo.envs.xhand import JOINTS, Scene, make_model

__all__ = ["FastClock", "SimulatedHand"]

ROOM_TEMPERATURE = 25.0
SLOWEST = 1.0  # s, the most that is simulated at a time, however long it was not used


class FastClock:
    """A clock on which waiting takes no real time, so that a simulation is as fast as the processor.

    It is used in place of the module ``time``.

    Examples:
        >>> clock = FastClock()
        >>> clock.sleep(3600.0)
        >>> clock.monotonic()
        3600.0
    """

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """The time slept so far, s."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Lets some seconds pass at once."""
        self.now += seconds


class SimulatedHand:
    """The XHand's MuJoCo model as a :class:`~torchrl_genpo.deploy.HandBackend`.

    Whenever it is used, it is first simulated up to the present time of its clock, which must be that of the loop, so
    that a late command has the effect of a late command.

    Args:
        scene (Scene, optional): the hand, the nut and the physics. Defaults to ``Scene()``.

    Keyword Args:
        pose (np.ndarray, optional): the first joint angles ``[12]``, rad. Defaults to a hand a little more open than
            the scene's start pose.
        noise (float, optional): the standard deviation of a measured angle, rad. Defaults to ``0``.
        seed (int, optional): the seed of the noise. Defaults to ``0``.
        clock (FastClock, optional): the clock that it follows. Defaults to the module ``time``.

    Examples:
        >>> hand = SimulatedHand(Scene(nut="round"))
        >>> hand.open()
        >>> hand.read().position.shape, hand.turns
        ((12,), 0.0)
    """

    def __init__(
        self,
        scene: Scene | None = None,
        *,
        pose: np.ndarray | None = None,
        noise: float = 0.0,
        seed: int = 0,
        clock: Any = time,
    ) -> None:
        import mujoco

        self._mujoco: Any = mujoco
        self.scene = Scene() if scene is None else scene
        self.model = make_model(self.scene)
        self.data = mujoco.MjData(self.model)
        if pose is None:
            pose = self.scene.start_pose()
            pose[[JOINTS.index(name) for name in ("thumb_rota1", "index_1", "mid_1")]] -= 0.25
        self._pose, self._noise, self._clock = pose, noise, clock
        self._random = np.random.default_rng(seed)
        self._gains = self.model.actuator_gainprm.copy(), self.model.actuator_biasprm.copy()
        self._torques = [self.model.sensor(f"{name}_torque").adr[0] for name in JOINTS]
        self._started = 0.0

    def open(self) -> None:
        """Puts the hand and the nut where they begin."""
        self._started = self._clock.monotonic()
        self._mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[: len(JOINTS)] = self._pose
        self.passive()
        self._mujoco.mj_forward(self.model, self.data)

    def read(self) -> HandState:
        """Reads the present state; its torques are in N m."""
        self._advance()
        position = self.data.qpos[: len(JOINTS)] + self._noise * self._random.standard_normal(len(JOINTS))
        return HandState(
            position=position,
            torque=self.data.sensordata[self._torques].copy(),
            temperature=np.full(len(JOINTS), ROOM_TEMPERATURE),
            errors=np.zeros(len(JOINTS), int),
        )

    def command(self, position: np.ndarray) -> None:
        """Moves the joints to the angles ``[12]``, rad, by position control."""
        self._advance()
        self.model.actuator_gainprm[:], self.model.actuator_biasprm[:] = self._gains
        self.data.ctrl[:] = position

    def passive(self) -> None:
        """Takes all torque from the joints."""
        self._advance()
        self.model.actuator_gainprm[:], self.model.actuator_biasprm[:] = 0.0, 0.0

    def close(self) -> None:
        """Does nothing: a simulation has no connection."""

    @property
    def is_passive(self) -> bool:
        """Whether no joint has torque."""
        return not self.model.actuator_gainprm.any()

    @property
    def turns(self) -> float:
        """The net turns of the nut since the hand was opened, in the direction that loosens it."""
        return float(self.data.joint("nut").qpos[0]) / (2 * math.pi)

    def _advance(self) -> None:
        """Simulates up to now."""
        behind = self._clock.monotonic() - self._started - self.data.time
        if behind > SLOWEST:
            self._started += behind - SLOWEST
            behind = SLOWEST
        for _ in range(int(behind / self.model.opt.timestep + 1e-6)):
            self._mujoco.mj_step(self.model, self.data)
