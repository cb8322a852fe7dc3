"""The real hand's backend, over the fake SDK: what is sent and read, channel by channel."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import yaml
from fake_sdk import FakeSDK
from faults import Fault

from torchrl_genpo.deploy import HandBackend, HandConfig, HandError, XHandBackend, load_config
from torchrl_genpo.envs.xhand import JOINTS, joint_limits


def opened(config=None, sdk=None, **options):
    sdk = FakeSDK(noise=0.0, **options) if sdk is None else sdk
    hand = XHandBackend(config or HandConfig(), sdk)
    hand.open()
    return hand, sdk


def test_it_is_a_backend():
    assert isinstance(XHandBackend(HandConfig(), FakeSDK()), HandBackend)


def test_a_command_reaches_every_channel_with_its_gains():
    hand, sdk = opened(HandConfig(kp=90, kd=2, tor_max=150))
    hand.command(np.arange(12) / 10)
    for channel, finger in enumerate(sdk.hand._commands.finger_command):
        assert (finger.id, finger.mode, finger.kp, finger.ki, finger.kd) == (channel, 3, 90, 0, 2)
        assert finger.tor_max == 150 and finger.position == pytest.approx(channel / 10)
    hand.passive()
    assert all((f.mode, f.tor_max, f.kp) == (0, 0, 0) for f in sdk.hand._commands.finger_command)
    assert sdk.hand.is_passive


def test_signs_and_order_are_those_of_the_hand():
    order = list(reversed(JOINTS))
    hand, sdk = opened(HandConfig(order=order, signs={"index_bend": -1}))
    np.testing.assert_allclose(hand.read().position, np.where(np.array(JOINTS) == "index_bend", -0.1, 0.1))
    hand.command(np.arange(12) / 10)
    sent = {JOINTS[11 - f.id]: f.position for f in sdk.hand._commands.finger_command}
    expected = dict(zip(JOINTS, np.arange(12) / 10, strict=True)) | {"index_bend": -0.3}
    assert sent == pytest.approx(expected)


def test_zero_readings_after_opening_are_waited_for():
    hand, _ = opened(zero_readings=7)
    assert np.allclose(hand.read().position, 0.1)
    with pytest.raises(HandError, match="zeros only"):
        opened(zero_readings=1000)


@pytest.mark.parametrize("protocol", ["RS485", "EtherCAT"])
def test_both_buses_are_opened(protocol):
    hand, _ = opened(HandConfig(protocol=protocol))
    assert "FAKE-0000" in hand.name


def test_temperature_is_the_low_byte_and_board_errors_are_seen():
    hand, sdk = opened(faults=[Fault("board_error", 0.0, joint="ring_2")])
    sdk.hand._temperature[4] = 0x0300 + 41
    state = hand.read()
    assert state.temperature[4] == 41
    assert np.flatnonzero(state.errors).tolist() == [JOINTS.index("ring_2")]


def test_an_error_code_is_an_error_that_names_call_and_code():
    hand, sdk = opened()
    sdk.hand.faults.append(Fault("error_code", 0.0))
    with pytest.raises(HandError, match=r"read_state failed: checksum error \(code 1501070\)"):
        hand.read()


def test_a_hand_that_was_unplugged_is_connected_anew_to_make_it_passive():
    hand, sdk = opened()
    hand.command(np.full(12, 0.2))
    sdk.hand.faults.append(Fault("unplugged", 0.0))
    with pytest.raises(HandError):
        hand.passive()
    sdk.hand.faults.clear()
    with pytest.raises(HandError, match="no answer"):
        hand.read()
    hand.passive()
    assert sdk.hand.is_passive


def test_a_hand_whose_sdk_raises_is_connected_anew_to_make_it_passive():
    hand, sdk = opened()
    hand.command(np.full(12, 0.2))
    sdk.hand.faults.append(Fault("exception", 0.0))
    with pytest.raises(RuntimeError, match="Input/output"):
        hand.read()
    sdk.hand.faults.clear()
    hand.passive()
    assert sdk.hand.is_passive


def test_the_hand_that_is_connected_anew_is_the_first_one(monkeypatch):
    hand, sdk = opened()
    hand.command(np.full(12, 0.2))
    control = type(sdk.XHandControl())
    monkeypatch.setattr(control, "enumerate_devices", lambda self, protocol: ["/dev/ttyUSB1", "/dev/ttyUSB0"])
    monkeypatch.setattr(control, "list_hands_id", lambda self: [1, 0])
    hand._device.close_device()  # a loose plug
    hand.passive()
    assert hand.name.endswith("on /dev/ttyUSB0") and hand._id == 0 and sdk.hand.is_passive


def test_a_hand_that_is_closed_cannot_be_said_to_be_passive():
    hand, _ = opened()
    hand.close()
    with pytest.raises(HandError, match="not open"):
        hand.passive()


def test_the_wrong_hand_or_none_is_refused():
    with pytest.raises(HandError, match=r"says it is 'left'.*says right"):
        opened(side="left")
    with pytest.raises(HandError, match="must name one of them"):
        opened(HandConfig(hand_id=3))
    with pytest.raises(HandError, match="open /dev/ttyS9"):
        opened(HandConfig(port="/dev/ttyS9"))


def test_without_the_sdk_the_error_says_where_it_comes_from(monkeypatch):
    monkeypatch.setitem(sys.modules, "xhand_controller", None)
    with pytest.raises(ImportError, match="RobotEra"):
        XHandBackend(HandConfig()).open()


def test_settings_come_from_a_file_and_wrong_ones_are_named(tmp_path):
    path = tmp_path / "hand.yaml"
    path.write_text("hand: {side: left, signs: {index_bend: -1}}\nsafety: {max_temperature: 60, low: {index_1: 0.2}}\n")
    config = load_config(path, {"hand.tor_max": 120})
    assert (config.hand.side, config.hand.tor_max, config.safety.max_temperature) == ("left", 120, 60)
    assert config.safety.low["index_1"] == 0.2 and config.safety.low["thumb_rota1"] == -1.05
    assert config.safety.low["thumb_rota2"] == joint_limits("left")[0][JOINTS.index("thumb_rota2")]
    assert load_config().safety.low["thumb_rota2"] != config.safety.low["thumb_rota2"], "the right hand's is another"
    for wrong, message in {
        "hand.sied=left": "sied",
        "hand.side=middle": "left",
        "hand.signs.index_bend=2": r"hand\.signs\.index_bend=2: Input should be -1 or 1",
        "hand.signs.index=-1": "'index', which is no joint",
        "safety.low.thumb=0": "each joint",
        "safety.low.index_1=3": "below",
        "hand.kp=strong": "strong",
        "hand.tor_max=true": "valid integer",
        "safety.max_speed=true": "valid number",
        "hand.kp=-1": "greater than or equal to 0",
        "safety.max_speed=.nan": r"safety\.max_speed=nan: .*finite",
        "safety.low.index_1=.nan": "finite",
        "hand=3": "hand must be a mapping",
        "speed=3": "speed=3: There is no such option",
    }.items():
        with pytest.raises(ValueError, match=message) as raised:
            name, _, value = wrong.partition("=")
            load_config(overrides={name: yaml.safe_load(value)})
        assert "\n" not in str(raised.value)
    for content in ("- a\n", "hand: 3\n", "hand: {kp: strong}\n", "hand: {\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"hand\.yaml"):
            load_config(path, {"safety.max_speed": 1.0})
    path.write_text("hand:\n")
    assert load_config(path) == load_config()
    assert load_config(path, {"hand.kp": 3}).hand.kp == 3
