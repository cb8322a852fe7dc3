"""The simulated hand: real time, and the same physics as the environment that policies are trained in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_genpo.deploy import (
    ExportedPolicy,
    FastClock,
    HandBackend,
    HandPolicy,
    SimulatedHand,
    WaveMotion,
    run_policy,
)
from torchrl_genpo.envs.xhand import JOINTS, Scene

pytestmark = pytest.mark.extras("deploy")


def test_it_goes_on_until_now_and_no_longer():
    clock = FastClock()
    clock.sleep(100.0)  # before it was opened
    hand = SimulatedHand(clock=clock)
    assert isinstance(hand, HandBackend)
    hand.open()
    for now, expected in ((0.05, 0.05), (0.052, 0.05), (0.06, 0.06), (30.06, 1.06)):  # at most a second at a time
        clock.now = 100.0 + now
        hand.read()
        assert np.isclose(hand.data.time, expected)
    clock.now += 0.05
    hand.read()
    assert np.isclose(hand.data.time, 1.11)


def test_commands_move_it_and_passive_joints_have_no_torque():
    clock = FastClock()
    hand = SimulatedHand(clock=clock)
    hand.open()
    assert hand.is_passive
    target = hand.scene.start_pose()
    hand.command(target)
    clock.now += 0.5
    state = hand.read()
    assert not hand.is_passive and np.abs(state.position - target).max() < 0.03
    hand.command(target + 0.1)
    clock.now += 0.01
    assert np.abs(hand.read().torque).max() > 0.1
    hand.passive()
    clock.now += 0.01
    assert hand.is_passive and not hand.read().torque.any()


def test_noise_is_that_of_the_sensors():
    clock = FastClock()
    hand = SimulatedHand(clock=clock, noise=0.01)
    hand.open()
    readings = np.stack([hand.read().position for _ in range(200)])
    assert 0.008 < readings.std(0).mean() < 0.012


def test_a_policy_does_in_it_what_it_does_in_the_environment(hand_env, hand_actor, policy_folder):
    """Joint for joint and nut for nut: the same actions make the same motion, to the rounding of float32."""
    clock = FastClock()
    hand_env.set_seed(0)
    td = hand_env.reset()
    hand = SimulatedHand(Scene(nut="hexagon"), pose=td["joint_position"][0].double().numpy(), clock=clock)
    hand.open()
    policy = HandPolicy(ExportedPolicy(policy_folder))
    target = td["joint_target"][0].double().numpy()
    for _ in range(40):
        position = hand.read().position
        np.testing.assert_allclose(position, td["joint_position"][0], atol=2e-3)
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            td = hand_env.step(hand_actor(td))["next"].exclude("reward")
        _, target = policy.act(position.copy(), target.copy())
        np.testing.assert_allclose(target, td["joint_target"][0], atol=2e-3)
        hand.command(target)
        clock.now += 0.05
    moved = np.abs(hand.read().position - hand.scene.start_pose()).max()
    assert moved > 0.3
    assert np.isclose(hand.turns, td["metrics", "turns/hexagon"][0].item(), atol=0.02)


def test_the_wave_touches_no_nut():
    clock = FastClock()
    hand = SimulatedHand(clock=clock)
    report = run_policy(WaveMotion(), hand, seconds=8.0, clock=clock)
    assert report.outcome == "completed" and hand.is_passive and hand.turns == 0.0 and not hand.data.ncon


def test_joints_of_a_policy_for_a_mirrored_index_bend_are_turned_around(policy_folder):
    plain, mirrored = (HandPolicy(ExportedPolicy(policy_folder)) for _ in range(2))
    mirrored._signs[JOINTS.index("index_bend")] = -1
    rng = np.random.default_rng(0)
    flip = np.where(np.array(JOINTS) == "index_bend", -1.0, 1.0)
    position, target = (plain.start_pose + 0.05 * rng.standard_normal(12) for _ in range(2))
    _, expected = plain.act(position, target)
    _, result = mirrored.act(flip * position, flip * target)
    np.testing.assert_allclose(result, flip * expected, atol=1e-6)
