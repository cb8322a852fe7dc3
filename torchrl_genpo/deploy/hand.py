# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What a hand is to the loop that drives it, and the settings that differ from hand to hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from torchrl_genpo.config.checks import did_you_mean
from torchrl_genpo.config.explain import explain
from torchrl_genpo.config.fields import Options, Positive, Texts
from torchrl_genpo.config.nested import set_option
from torchrl_genpo.envs.xhand import JOINTS, joint_limits

__all__ = [
    "DeployConfig",
    "HandBackend",
    "HandConfig",
    "HandError",
    "HandState",
    "SafetyConfig",
    "load_config",
]


class HandError(RuntimeError):
    """The hand did not answer, or answered with something that cannot be used; the next call may succeed."""


@dataclass(frozen=True)
class HandState:
    """One reading of a hand.

    Joints are in the order of :data:`~torchrl_genpo.envs.xhand.JOINTS`; their signs are those of the maker's URDF.

    Attributes:
        position (np.ndarray): the joint angles ``[12]``, rad.
        torque (np.ndarray): what the backend has for torques ``[12]``; the real hand reports a kind of current.
        temperature (np.ndarray): the temperatures of the motors ``[12]``, degrees Celsius.
        errors (np.ndarray): the error flags of the boards ``[12]``, 0 for none.
    """

    position: np.ndarray
    torque: np.ndarray
    temperature: np.ndarray
    errors: np.ndarray


@runtime_checkable
class HandBackend(Protocol):
    """A hand that can be driven. Every method but ``close`` may raise :class:`HandError`."""

    def open(self) -> None:
        """Connects to the hand and does not move it."""

    def read(self) -> HandState:
        """Reads the present state."""

    def command(self, position: np.ndarray) -> None:
        """Moves the joints to the angles ``[12]``, rad, by position control."""

    def passive(self) -> None:
        """Takes all torque from the joints, until the next command."""

    def close(self) -> None:
        """Disconnects. It does not make the hand passive, which whoever drives the hand has done."""


class HandConfig(Options):
    """The settings of one hand.

    Attributes:
        side (str): ``right`` or ``left``.
        protocol (str): the bus, ``RS485`` or ``EtherCAT``.
        port (str, optional): the serial device or network interface. Defaults to the first that the SDK finds.
        baud (int): the rate of an RS485 bus.
        hand_id (int, optional): the hand on the bus. Defaults to the only one.
        order (list of str): the joint on each of the SDK's channels 0 to 11.
        signs (dict of str to int): ``-1`` for each joint that turns the other way than in the maker's URDF; on some
            hands ``index_bend`` does.
        kp (int): the gain of the position control, in the SDK's units.
        ki (int): the integral gain.
        kd (int): the damping.
        tor_max (int): the largest torque, in the SDK's units.
    """

    side: Literal["right", "left"] = "right"
    protocol: Literal["RS485", "EtherCAT"] = "RS485"
    port: str | None = None
    baud: PositiveInt = 3_000_000
    hand_id: NonNegativeInt | None = None
    order: Texts = JOINTS
    signs: dict[str, Literal[-1, 1]] = Field(default_factory=dict)
    kp: NonNegativeInt = 100
    ki: NonNegativeInt = 0
    kd: NonNegativeInt = 1
    tor_max: NonNegativeInt = 250

    @model_validator(mode="after")
    def _check_joints(self) -> HandConfig:
        if sorted(self.order) != sorted(JOINTS):
            raise ValueError(f"order must name each joint once: {', '.join(JOINTS)}; got {', '.join(self.order)}.")
        unknown = sorted(set(self.signs) - set(JOINTS))
        if unknown:
            raise ValueError(f"signs names {unknown[0]!r}, which is no joint.{did_you_mean(unknown[0], JOINTS)}")
        return self


def _limits(row: int, side: str = "right") -> dict[str, float]:
    """The maker's lower (0) or upper (1) limits by joint."""
    return dict(zip(JOINTS, joint_limits(side)[row].tolist(), strict=True))


class SafetyConfig(Options):
    """The limits of what may be done to a hand; the default speed and temperature are those that others use.

    Attributes:
        low (dict of str to float): the lowest target of each joint, rad. Defaults to the maker's limits, which are
            those of the training; others stay above -40 degrees for ``thumb_rota1``, 0 for ``thumb_rota2`` and 5 for
            ``*_2``.
        high (dict of str to float): the highest target of each joint, rad. Defaults to the maker's; others stay below
            90 degrees for ``thumb_rota2``.
        max_speed (float): the largest speed of a target, rad/s.
        ramp_speed (float): the speed of the fastest joint on the way to the start pose, rad/s.
        max_temperature (float): the highest temperature of a motor, degrees Celsius.
        max_tracking_error (float): the largest distance of a joint from its target, rad.
        max_errors (int): the failed readings or commands in a row after which the run stops.
        watchdog (float): the time without a command after which the hand is made passive, s, at most 10.
        passive_timeout (float): the time for which making it passive is tried, s.
    """

    low: dict[str, float] = Field(default_factory=lambda: _limits(0))
    high: dict[str, float] = Field(default_factory=lambda: _limits(1))
    max_speed: Positive = math.pi
    ramp_speed: Positive = 0.5
    max_temperature: Positive = 70.0
    max_tracking_error: Positive = 0.6
    max_errors: PositiveInt = 3
    watchdog: Annotated[Positive, Field(le=10)] = 0.2
    passive_timeout: Positive = 2.0

    @model_validator(mode="after")
    def _check_limits(self) -> SafetyConfig:
        for name, limits in (("low", self.low), ("high", self.high)):
            if set(limits) != set(JOINTS):
                raise ValueError(f"{name} must have a limit for each joint, and no other: {', '.join(JOINTS)}.")
        for joint in JOINTS:
            if not self.low[joint] < self.high[joint]:
                raise ValueError(f"low.{joint}={self.low[joint]:g} must be below high.{joint}={self.high[joint]:g}.")
        return self

    def bounds(self) -> np.ndarray:
        """The lowest and highest targets ``[2, 12]``, rad."""
        return np.array([[limits[joint] for joint in JOINTS] for limits in (self.low, self.high)])


class DeployConfig(Options):
    """What a file for ``genpo-deploy --hand`` may set.

    Attributes:
        hand (HandConfig): the hand.
        safety (SafetyConfig): the limits.
    """

    hand: HandConfig = HandConfig()
    safety: SafetyConfig = SafetyConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_limits(cls, values: Any) -> Any:
        """Completes the limits of single joints with those of the hand's side, which differ a little."""
        if not isinstance(values, Mapping):
            return values
        hand, safety = values.get("hand") or {}, values.get("safety") or {}
        if not (isinstance(hand, Mapping) and isinstance(safety, Mapping)):
            return values
        side, filled = hand.get("side", "right"), {}
        for row, name in enumerate(("low", "high")):
            given = safety.get(name) or {}
            if side in ("right", "left") and isinstance(given, Mapping):
                filled[name] = _limits(row, side) | dict(given)
        return {**values, "hand": hand, "safety": {**safety, **filled}}


def load_config(path: Path | str | None = None, overrides: Mapping[str, Any] | None = None) -> DeployConfig:
    """Reads a YAML file with the sections ``hand`` and ``safety``; what it does not name keeps its default.

    Args:
        path (Path or str, optional): the file.
        overrides (mapping, optional): single settings by their dotted names.

    Raises:
        ValueError: for a name or a value that does not fit.
        FileNotFoundError: if there is no such file.

    Examples:
        >>> load_config(overrides={"hand.side": "left", "hand.signs.index_bend": -1}).hand.signs
        {'index_bend': -1}
    """
    try:
        values = {} if path is None else yaml.safe_load(Path(path).read_bytes()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if isinstance(values, dict):  # else the schema says what it has to be
        for name, value in (overrides or {}).items():
            set_option(values, name, value)
    try:
        return DeployConfig.model_validate(values)
    except ValidationError as error:
        where = "" if path is None else f"{path}: "
        raise ValueError(f"{where}{explain(error, DeployConfig, values)}") from error
