# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The compiled control of arms is robosuite's own, only faster."""

from __future__ import annotations

import numpy as np
import pytest

from torchrl_genpo.envs import ROBOMIMIC_TASKS
from torchrl_genpo.envs.robomimic.simulator import make_simulator, set_simulator_seed

pytest.importorskip("robosuite", reason="needs robosuite: pip install 'torchrl-genpo[robomimic]' and robosuite==1.5.2")


def play(simulator, actions, *, is_compiled):
    """The states, observations and rewards of an episode; ``actions`` is a list, or an expert that is asked."""
    set_simulator_seed(simulator, 0)
    observation = simulator.reset()
    assert simulator._arms, "the arms of this task are not compiled"
    if not is_compiled:
        simulator._arms = None
    states, observations, rewards, taken = [], [], [], []
    while len(taken) < 250 and not (taken and simulator._check_success()):
        action = actions[len(taken)] if isinstance(actions, list) else actions(observation)
        observation, reward, _, _ = simulator.step(action)
        taken.append(action)
        rewards.append(reward)
        states.append(np.concatenate([simulator.sim.data.qpos, simulator.sim.data.qvel * 1e-2]))
        observations.append(np.concatenate([np.ravel(value) for value in observation.values()]))
        if isinstance(actions, list) and len(taken) == len(actions):
            break
    return np.array(states), np.array(observations), np.array(rewards), taken


@pytest.fixture
def make():
    made = []

    def make(task, **overrides):
        env_args = ROBOMIMIC_TASKS[task].env_args()
        made.append(make_simulator(env_args, has_visuals=False, **overrides))
        return made[-1]

    yield make
    for simulator in made:
        simulator.close()


# a needle that slides along a ring amplifies rounding errors, robosuite's own too: it is followed until it touches
@pytest.mark.parametrize(("task", "longest"), [("can", 250), ("box_cleanup", 250), ("threading", 100)])
def test_an_experts_episode_is_robosuites_own_to_a_micrometre(make, task, longest):
    from torchrl_genpo.envs.robomimic.experts import EXPERTS

    simulator = make(task, reward_shaping=task == "can")
    expert = EXPERTS[type(simulator).__mro__[2].__name__](simulator, np.random.default_rng(0))
    *_, actions = play(simulator, lambda observation: expert(observation), is_compiled=True)
    assert simulator._check_success(), "the expert does something worth comparing"
    compiled = play(simulator, actions[:longest], is_compiled=True)
    own = play(simulator, actions[:longest], is_compiled=False)
    for mine, theirs in zip(compiled[:3], own[:3], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)


def test_a_coupled_law_with_goals_in_the_frame_of_the_base_is_the_same(make):
    env_args = ROBOMIMIC_TASKS["lift"].env_args()
    arm = dict(env_args["env_kwargs"]["controller_configs"]["body_parts"]["right"])
    arm |= {"input_ref_frame": "base", "uncouple_pos_ori": False, "kp": 80}
    simulator = make("lift", controller_configs={"type": "BASIC", "body_parts": {"right": arm}})
    actions = list(np.sin(np.linspace(0, 6, 60))[:, None] * np.array([0.5, -0.3, 0.4, 0.2, 0.1, -0.3, 0.0]))
    compiled = play(simulator, actions, is_compiled=True)
    own = play(simulator, actions, is_compiled=False)
    for mine, theirs in zip(compiled[:3], own[:3], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)


def test_other_controllers_are_left_to_robosuite(make):
    joints = {"type": "JOINT_POSITION", "input_max": 1, "input_min": -1, "interpolation": None, "ramp_ratio": 0.2}
    joints |= {"output_max": 0.5, "output_min": -0.5, "kp": 50, "gripper": {"type": "GRIP"}}
    simulator = make("lift", controller_configs={"type": "BASIC", "body_parts": {"right": joints}})
    simulator.reset()
    assert simulator._arms is None
    simulator.step(np.zeros(len(simulator.action_spec[0])))


def test_a_singular_arm_is_left_to_robosuite(make, monkeypatch):
    from torchrl_genpo.envs.robomimic import control

    simulator = make("lift")
    set_simulator_seed(simulator, 0)
    simulator.reset()
    monkeypatch.setattr(control, "_apply_torques", lambda *arguments: False)
    action = np.full(len(simulator.action_spec[0]), 0.1)
    states = [play(simulator, [action] * 3, is_compiled=value)[0] for value in (True, False)]
    assert np.array_equal(*states)
