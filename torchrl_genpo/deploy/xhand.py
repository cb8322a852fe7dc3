# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The real hand, driven over the maker's SDK."""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np

from torchrl_genpo.deploy.hand import HandConfig, HandError, HandState
from torchrl_genpo.envs.xhand import JOINTS

__all__ = ["XHandBackend"]

PASSIVE_MODE, POSITION_MODE = 0, 3
ERRORS = ("commboard_err", "jonitboard_err", "jointboard_err", "tipboard_err")  # the second is the maker's spelling
GOOD_READINGS = 3  # in a row, before the hand counts as open: the first can be all zeros
OPENING_READINGS = 50


class XHandBackend:
    """An XHand on RS485 or EtherCAT as a :class:`~torchrl_genpo.deploy.HandBackend`.

    The SDK (``xhand_controller``, by RobotEra, Linux x86-64, closed source) is not shipped. It is imported when the
    hand is opened, unless it is given.

    Args:
        config (HandConfig): the settings of the hand.
        sdk (module, optional): what ``from xhand_controller import xhand_control`` gives, or another object with these
            names, such as a test's.

    Examples:
        >>> from torchrl_genpo.deploy import HandBackend, HandConfig, XHandBackend
        >>> hand = XHandBackend(HandConfig(port="/dev/ttyUSB0"))  # hand.open() would connect to it
        >>> isinstance(hand, HandBackend)
        True
    """

    def __init__(self, config: HandConfig, sdk: Any = None) -> None:
        self._config, self._sdk = config, sdk
        self._channels = np.array([config.order.index(joint) for joint in JOINTS])  # of each joint
        self._signs = np.array([config.signs.get(joint, 1) for joint in JOINTS])
        self._device: Any = None
        self._port, self._id = config.port, config.hand_id  # those of the first connection are kept
        self._command: Any = None
        self.name = ""

    def open(self) -> None:
        """Connects and waits for readings that are not all zeros.

        Raises:
            ImportError: without the SDK.
            HandError: if there is no hand, several, one of the other side, or no reading.
        """
        if self._sdk is None:
            try:
                self._sdk = importlib.import_module("xhand_controller.xhand_control")
            except ImportError as error:
                raise ImportError(
                    "The real hand needs the maker's SDK, the wheel xhand_controller (Linux x86-64), which RobotEra "
                    f"hands out with it: pip install xhand_controller-*.whl ({error}). Without a hand: --backend sim."
                ) from error
        self._device = self._sdk.XHandControl()
        try:
            self._connect()
            self._wait_for_readings()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        config, device = self._config, self._device
        if self._port is None:
            found = list(device.enumerate_devices(config.protocol))
            if not found:
                raise HandError(f"no {config.protocol} device found: is the hand plugged in and powered?")
            self._port = found[0]
        port = self._port
        is_serial = config.protocol == "RS485"
        self._check(device.open_serial(port, config.baud) if is_serial else device.open_ethercat(port), f"open {port}")
        ids = list(device.list_hands_id())
        if not ids or (self._id is None and len(ids) > 1) or self._id not in (None, *ids):
            raise HandError(f"hands on {port}: {ids or 'none'}; hand.hand_id={self._id} must name one of them")
        self._id = ids[0] if self._id is None else self._id
        kind = str(device.get_hand_type(self._id))
        other = "left" if config.side == "right" else "right"
        if other in kind.lower():
            raise HandError(f"the hand on {port} says it is {kind!r}, the configuration says {config.side}")
        self.name = f"{kind} {device.get_serial_number(self._id)} on {port}"
        self._command = self._sdk.HandCommand_t()

    def _wait_for_readings(self) -> None:
        good, last = 0, None
        for _ in range(OPENING_READINGS):
            try:
                self.read()
                good += 1
            except HandError as error:
                good, last = 0, error
            if good == GOOD_READINGS:
                return
            time.sleep(0.02)  # the period of the bus
        raise HandError(f"no usable reading in {OPENING_READINGS}: {last}")

    def read(self) -> HandState:
        """Reads the present state.

        Raises:
            HandError: for an error code, or positions that are all exactly zero, which no real hand's are.
        """
        error, state = self._device.read_state(self._id, True)
        self._check(error, "read_state")
        fingers = [state.finger_state[int(channel)] for channel in self._channels]
        position = np.array([float(finger.position) for finger in fingers])
        if not position.any():
            raise HandError("read_state gave zeros only")
        return HandState(
            position=self._signs * position,
            torque=self._signs * np.array([float(finger.torque) for finger in fingers]),
            temperature=np.array([float(int(finger.temperature) & 0xFF) for finger in fingers]),  # its low byte
            errors=np.array([max(int(getattr(finger, name, 0)) for name in ERRORS) for finger in fingers]),
        )

    def command(self, position: np.ndarray) -> None:
        """Moves the joints to the angles ``[12]``, rad, by position control.

        Raises:
            HandError: for an error code.
        """
        config = self._config
        self._send(self._signs * position, POSITION_MODE, config.kp, config.ki, config.kd, config.tor_max)

    def passive(self) -> None:
        """Sets mode 0 without torque; connects anew if the hand does not answer, as after a loose plug.

        Raises:
            HandError: for an error code, or if the hand is not open.
        """
        if self._device is None:
            raise HandError("the hand is not open: nothing can be sent to it")
        relaxed = (np.zeros(len(JOINTS)), PASSIVE_MODE, 0, 0, 0, 0)
        try:
            self._send(*relaxed)
        except Exception:  # whatever an SDK raises without its device
            self._device.close_device()
            self._connect()
            self._send(*relaxed)

    def close(self) -> None:
        """Disconnects from the hand."""
        if self._device is not None:
            self._device.close_device()
            self._device = self._command = None

    def _send(self, position: np.ndarray, mode: int, kp: int, ki: int, kd: int, tor_max: int) -> None:
        for channel, angle in zip(self._channels, position, strict=True):
            finger = self._command.finger_command[int(channel)]
            finger.id, finger.mode, finger.position = int(channel), mode, float(angle)
            finger.kp, finger.ki, finger.kd, finger.tor_max = kp, ki, kd, tor_max
        self._check(self._device.send_command(self._id, self._command), "send_command")

    @staticmethod
    def _check(error: Any, call: str) -> None:
        if error.error_code != 0:
            raise HandError(f"{call} failed: {error.error_message} (code {error.error_code})")
