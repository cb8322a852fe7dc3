# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What a hand is to the loop that drives it, and the settings that differ from hand to hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from torchrl_genpo.envs.xhand import JOINTS, joint_limits
from torchrl_genpo.untrusted import read_yaml

__all__ = ["DeployConfig", "HandBackend", "HandConfig", "HandError", "HandState", "SafetyConfig", "load_config"]


class HandError(RuntimeError):
    """The hand did not answer, or not with something that can be used; it may the next time."""


@dataclass(frozen=True)
class HandState:
    """One reading. Joints are in the order of :data:`~torchrl_genpo.envs.xhand.JOINTS`, signs as in the maker's URDF.

    Attributes:
        position (np.ndarray): joint angles ``[12]``, rad.
        torque (np.ndarray): what the backend has for torques ``[12]``; the real hand's are a kind of current.
        temperature (np.ndarray): of the motors ``[12]``, degrees Celsius.
        errors (np.ndarray): error flags of the boards ``[12]``, 0 for none.
    """

    position: np.ndarray
    torque: np.ndarray
    temperature: np.ndarray
    errors: np.ndarray


@runtime_checkable
class HandBackend(Protocol):
    """A hand that can be driven. Every method but ``close`` may raise :class:`HandError`."""

    def open(self) -> None:
        """Connects; does not move anything."""

    def read(self) -> HandState:
        """The present state."""

    def command(self, position: np.ndarray) -> None:
        """Position control towards joint angles ``[12]``, rad."""

    def passive(self) -> None:
        """Takes all torque from the joints, until the next command."""

    def close(self) -> None:
        """Disconnects. Does not make the hand passive: whoever drives it has done so."""


@dataclass
class HandConfig:
    """The settings of one hand.

    Attributes:
        side (str): ``right`` or ``left``.
        protocol (str): ``RS485`` or ``EtherCAT``.
        port (str, optional): serial device or network interface. Defaults to the first that the SDK finds.
        baud (int): of RS485.
        hand_id (int, optional): defaults to the only hand on the bus.
        order (list of str): the joint on each of the SDK's channels 0 to 11.
        signs (dict of str to int): ``-1`` for joints that turn the other way than in the maker's URDF; on some hands
            ``index_bend`` does.
        kp (int): gain of the position control, in the SDK's units.
        ki (int): integral gain.
        kd (int): damping.
        tor_max (int): largest torque, in the SDK's units.
    """

    side: str = "right"
    protocol: str = "RS485"
    port: str | None = None
    baud: int = 3_000_000
    hand_id: int | None = None
    order: list[str] = field(default_factory=lambda: list(JOINTS))
    signs: dict[str, int] = field(default_factory=dict)
    kp: int = 100
    ki: int = 0
    kd: int = 1
    tor_max: int = 250

    def __post_init__(self) -> None:
        if self.side not in ("left", "right"):
            raise ValueError(f"hand.side must be left or right, got {self.side!r}.")
        if self.protocol not in ("EtherCAT", "RS485"):
            raise ValueError(f"hand.protocol must be RS485 or EtherCAT, got {self.protocol!r}.")
        if sorted(self.order) != sorted(JOINTS):
            raise ValueError(f"hand.order must name each joint once: {', '.join(JOINTS)}.")
        for name, sign in self.signs.items():
            if name not in JOINTS or sign not in (-1, 1):
                raise ValueError(f"hand.signs: {name}: {sign} is not a joint and 1 or -1. Joints: {', '.join(JOINTS)}.")


def _limits(row: int, side: str = "right") -> dict[str, float]:
    """The maker's lower (0) or upper (1) limits by joint."""
    return dict(zip(JOINTS, joint_limits(side)[row].tolist(), strict=True))


@dataclass
class SafetyConfig:
    """Limits of what may be done to a hand; speed, temperature and gains are those that others drive the XHand with.

    Attributes:
        low (dict of str to float): lowest target of each joint, rad. Defaults to the maker's limits, which are those of
            the training; others stay above -40 degrees for ``thumb_rota1``, 0 for ``thumb_rota2`` and 5 for ``*_2``.
        high (dict of str to float): highest target of each joint, rad. Defaults to the maker's; others stay below 90
            degrees for ``thumb_rota2``.
        max_speed (float): of a target, rad/s.
        ramp_speed (float): of the fastest joint on the way to the start pose, rad/s.
        max_temperature (float): degrees Celsius.
        max_tracking_error (float): of a joint from its target, rad.
        max_errors (int): failed readings or commands in a row.
        watchdog (float): s without a command, after which the hand is made passive.
        passive_timeout (float): s for which making it passive is tried.
    """

    low: dict[str, float] = field(default_factory=lambda: _limits(0))
    high: dict[str, float] = field(default_factory=lambda: _limits(1))
    max_speed: float = math.pi
    ramp_speed: float = 0.5
    max_temperature: float = 70.0
    max_tracking_error: float = 0.6
    max_errors: int = 3
    watchdog: float = 0.2
    passive_timeout: float = 2.0

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if set(getattr(self, name)) != set(JOINTS):
                raise ValueError(f"safety.{name} must have a limit for each joint, and no other: {', '.join(JOINTS)}.")
        wrong = [joint for joint in JOINTS if not self.low[joint] < self.high[joint]]
        if wrong:
            raise ValueError(f"safety.low must be below safety.high, which is not so for {', '.join(wrong)}.")
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and not value > 0:  # nor NaN, by which no limit would ever be met
                raise ValueError(f"safety.{name} must be greater than 0, got {value}.")

    def bounds(self) -> np.ndarray:
        """Lowest and highest targets ``[2, 12]``, rad."""
        return np.array([[limits[joint] for joint in JOINTS] for limits in (self.low, self.high)])


@dataclass
class DeployConfig:
    """What a file for ``genpo-deploy --hand`` may set."""

    hand: HandConfig = field(default_factory=HandConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)


def load_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> DeployConfig:
    """Reads a YAML file with the sections ``hand`` and ``safety``; what it does not name keeps its default.

    Args:
        path (Path or str, optional): the file.
        overrides (sequence of str): such as ``safety.max_temperature=60``.

    Raises:
        ValueError: for a name or a value that does not fit.
        FileNotFoundError: if there is no such file.

    Examples:
        >>> load_config(overrides=["hand.side=left", "hand.signs.index_bend=-1"]).hand.signs
        {'index_bend': -1}
    """
    try:
        for override in overrides:
            if "=" not in override:
                raise ValueError(f"{override} has no value: give it as {override}=<value>.")
        config = OmegaConf.structured(DeployConfig)
        given = [*([] if path is None else [read_yaml(Path(path))]), OmegaConf.from_dotlist(list(overrides))]
        merged = OmegaConf.merge(config, *given)
        if merged.hand.side == "left":  # whose limits are not quite the right hand's
            config.safety.low, config.safety.high = _limits(0, "left"), _limits(1, "left")
            merged = OmegaConf.merge(config, *given)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError) as error:
        where = ", ".join(filter(None, [str(path or ""), *overrides]))
        raise ValueError(f"{where}: {str(error).splitlines()[0]}") from error
