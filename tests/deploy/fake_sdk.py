# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A stand-in for the maker's SDK: the same names, and a simple hand behind them that can be made to fail."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from faults import HAND_FAULTS, Fault

from torchrl_genpo.envs.xhand import JOINTS

__all__ = ["ErrorStruct", "FakeHand", "FakeSDK", "HandCommand_t"]

CHANNELS = len(JOINTS)
POSITION_MODE = 3


@dataclass
class ErrorStruct:
    """The result of a call; 0 is success."""

    error_code: int = 0
    error_message: str = ""


@dataclass
class FingerCommand:
    """The command of one channel."""

    id: int = 0
    kp: int = 0
    ki: int = 0
    kd: int = 0
    position: float = 0.0
    tor_max: int = 0
    mode: int = 0


@dataclass
class HandCommand_t:  # the maker's name
    """The commands of all channels."""

    finger_command: list[FingerCommand] = field(default_factory=lambda: [FingerCommand() for _ in range(CHANNELS)])


@dataclass
class FingerState:
    """The state of one channel. (``jonitboard_err`` is how the maker spells it.)"""

    id: int = 0
    position: float = 0.0
    torque: float = 0.0
    temperature: int = 0
    commboard_err: int = 0
    jonitboard_err: int = 0
    tipboard_err: int = 0


@dataclass
class HandState_t:
    """The states of all channels."""

    finger_state: list[FingerState] = field(default_factory=lambda: [FingerState(i) for i in range(CHANNELS)])


class FakeHand:
    """Joints that follow their commands with a first-order lag and noise, and stay where they are without torque.

    Args:
        faults (sequence of Fault): of :data:`~faults.HAND_FAULTS`.

    Keyword Args:
        lag (float): time constant, s.
        noise (float): standard deviation of a reading, rad.
        seed (int): of the noise.
        clock (FastClock): another time than the real one.

    Attributes:
        first_command (float or None): when it was first commanded to move, by the clock.
        passive_at (float or None): when it became passive last, by the clock, after the first command.
    """

    def __init__(
        self,
        faults: Sequence[Fault] = (),
        *,
        lag: float = 0.08,
        noise: float = 0.002,
        seed: int = 0,
        clock: Any = time,
    ) -> None:
        self.faults, self._lag, self._noise, self._clock = list(faults), lag, noise, clock
        for fault in self.faults:
            if fault.kind not in HAND_FAULTS:
                raise ValueError(f"{fault.kind!r} is a fault of a policy, not of the hand.")
        self._random = np.random.default_rng(seed)
        self._commands = HandCommand_t()
        self._position = np.full(CHANNELS, 0.1)
        self._temperature = np.full(CHANNELS, 35.0)
        self._now = self._clock.monotonic()
        self.first_command: float | None = None
        self.passive_at: float | None = None

    @property
    def position(self) -> np.ndarray:
        """True joint angles ``[12]``, by channel, rad."""
        self._advance()
        return self._position.copy()

    @property
    def is_passive(self) -> bool:
        """Whether no joint has torque: mode 0 and ``tor_max`` 0 everywhere."""
        return all(finger.mode == 0 and finger.tor_max == 0 for finger in self._commands.finger_command)

    def fault(self, kind: str) -> Fault | None:
        """The fault of a kind that lasts now, if any."""
        seconds = 0.0 if self.first_command is None else self._clock.monotonic() - self.first_command
        return next((fault for fault in self.faults if fault.kind == kind and fault.is_on(seconds)), None)

    def receive(self, command: HandCommand_t) -> None:
        """Takes a command from now on."""
        self._advance()
        was_passive, self._commands = self.is_passive, copy.deepcopy(command)
        if self.is_passive and not was_passive:
            self.passive_at = self._clock.monotonic()
        if self.first_command is None and not self.is_passive:
            self.first_command = self._clock.monotonic()

    def measure(self) -> HandState_t:
        """Makes a reading of every channel."""
        self._advance()
        readings = self._position + self._noise * self._random.standard_normal(CHANNELS)
        if (fault := self.fault("nan_state")) is not None:
            readings[JOINTS.index(fault.joint)] = np.nan
        if self.fault("zero_state") is not None:
            readings[:] = 0.0
        state = HandState_t()
        for finger, reading, temperature in zip(state.finger_state, readings, self._temperature, strict=True):
            finger.position, finger.temperature = float(reading), int(temperature)
        if (fault := self.fault("board_error")) is not None:
            state.finger_state[JOINTS.index(fault.joint)].jonitboard_err = 1
        return state

    def _advance(self) -> None:
        now = self._clock.monotonic()
        elapsed, self._now = now - self._now, now
        share = 1.0 - np.exp(-elapsed / self._lag)
        stuck, hot = self.fault("stuck"), self.fault("overheat")
        for channel, command in enumerate(self._commands.finger_command):
            is_held = command.mode == POSITION_MODE and command.tor_max > 0
            if is_held and (stuck is None or JOINTS[channel] != stuck.joint):
                self._position[channel] += share * (command.position - self._position[channel])
            if hot is not None and JOINTS[channel] == hot.joint:
                self._temperature[channel] += 10.0 * elapsed


class FakeSDK:
    """What ``from xhand_controller import xhand_control`` gives, for :class:`~torchrl_genpo.deploy.XHandBackend`.

    Args:
        faults (sequence of Fault): see :class:`FakeHand`.

    Keyword Args:
        zero_readings (int): how many readings after opening are all zeros, as the real hand's can be.
        side (str): what ``get_hand_type`` says.
        **options: of :class:`FakeHand`.

    Attributes:
        hand (FakeHand): the hand behind it.

    Examples:
        >>> sdk = FakeSDK()
        >>> device = sdk.XHandControl()
        >>> device.open_serial("/dev/ttyUSB0", 3_000_000).error_code
        0
        >>> device.list_hands_id()
        [0]
    """

    ErrorStruct, HandCommand_t = ErrorStruct, HandCommand_t

    def __init__(
        self, faults: Sequence[Fault] = (), *, zero_readings: int = 2, side: str = "right", **options: Any
    ) -> None:
        self.hand = FakeHand(faults, **options)
        self.zero_readings, self.side = zero_readings, side

    def XHandControl(self) -> _FakeControl:
        """A connection to the hand, not opened yet."""
        return _FakeControl(self)


class _FakeControl:
    def __init__(self, sdk: FakeSDK) -> None:
        self._sdk, self._is_open, self._zero_readings = sdk, False, sdk.zero_readings
        self._is_broken = False

    def enumerate_devices(self, protocol: str) -> list[str]:
        return {"RS485": ["/dev/ttyUSB0"], "EtherCAT": ["eth0"]}.get(protocol, [])

    def open_serial(self, port: str, baud: int) -> ErrorStruct:
        is_known = port in self.enumerate_devices("RS485") and baud == 3_000_000
        return self._open(is_known, f"cannot open {port} at {baud} baud")

    def open_ethercat(self, interface: str) -> ErrorStruct:
        return self._open(interface in self.enumerate_devices("EtherCAT"), f"cannot open {interface}")

    def _open(self, is_known: bool, message: str) -> ErrorStruct:
        self._is_open = is_known and self._sdk.hand.fault("unplugged") is None
        self._is_broken &= not self._is_open
        return ErrorStruct() if self._is_open else ErrorStruct(1, message)

    def list_hands_id(self) -> list[int]:
        return [0] if self._is_open else []

    def get_hand_type(self, hand_id: int) -> str:
        return self._sdk.side

    def get_serial_number(self, hand_id: int) -> str:
        return "FAKE-0000"

    def send_command(self, hand_id: int, command: HandCommand_t) -> ErrorStruct:
        error = self._answer()
        if not error.error_code:
            self._sdk.hand.receive(command)
        return error

    def read_state(self, hand_id: int, force_update: bool) -> tuple[ErrorStruct, HandState_t]:
        error = self._answer()
        if self._sdk.hand.fault("error_code") is not None:
            error = ErrorStruct(1501070, "checksum error")
        if error.error_code:
            return error, HandState_t()
        if self._zero_readings > 0:
            self._zero_readings -= int(force_update)
            return error, HandState_t()
        return error, self._sdk.hand.measure()

    def close_device(self) -> None:
        self._is_open = False

    def _answer(self) -> ErrorStruct:
        hand = self._sdk.hand
        if hand.fault("hang") is not None:
            time.sleep(0.5)
        self._is_broken |= hand.fault("exception") is not None
        if self._is_broken:
            raise RuntimeError("Input/output error")
        self._is_open &= hand.fault("unplugged") is None  # and stays shut when it is plugged in again
        return ErrorStruct() if self._is_open else ErrorStruct(2, "no answer from the device")
