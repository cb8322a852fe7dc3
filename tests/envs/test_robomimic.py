"""robosuite's tasks through TorchRL, and scripted experts.

Needs robosuite; `.ci/run` installs it.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torchrl.envs import check_env_specs

from torchrl_genpo.data.robomimic import INSTALL
from torchrl_genpo.envs import DiscountedReturn, make_env

HAS_ROBOSUITE = importlib.util.find_spec("robosuite") is not None
needs_robosuite = pytest.mark.skipif(not HAS_ROBOSUITE, reason=f"needs robosuite: {INSTALL}")
pytest.importorskip("h5py", reason=f"needs robosuite: {INSTALL}")
SIZES = {"can": (23, 7), "box_cleanup": (32, 14), "threading": (32, 14)}


def simulate(task, seed, **options):
    """One environment, and the expert's actions for it."""
    from torchrl_genpo.envs.robomimic import ROBOMIMIC_TASKS, RobosuiteEnv
    from torchrl_genpo.envs.robomimic.experts import EXPERTS

    known = ROBOMIMIC_TASKS[task]
    env_args = known.env_args()
    env = RobosuiteEnv(env_args, known.observation_keys, options.pop("horizon", known.horizon), **options)
    observation, _ = env.reset(seed=seed)
    expert = EXPERTS[env_args["env_name"]](env.simulator, np.random.default_rng(seed))
    return env, observation, lambda: expert(env.simulator._get_observations())


@needs_robosuite
@pytest.mark.parametrize("task", SIZES)
def test_a_task_fulfils_specs(task):
    env = make_env(f"robomimic/{task}", num_envs=2, seed=0, chunk_size=3, horizon=20)
    obs_dim, action_dim = SIZES[task]
    assert env.observation_spec["observation"].shape == (2, obs_dim)
    assert env.action_spec.shape == (2, 3 * action_dim)
    check_env_specs(env)
    data = env.rollout(8, break_when_any_done=False)
    # the horizon is no end of the task: 7 chunks, the last one cut short, then a new episode
    assert data["next", "truncated"].squeeze(-1).tolist() == [[False] * 6 + [True, False]] * 2
    assert not data["next", "terminated"].any()
    assert data["next", "step_count"].squeeze(-1)[0].tolist() == [1, 2, 3, 4, 5, 6, 7, 1]
    assert not data["next", "success"].any()
    env.close()


@needs_robosuite
@pytest.mark.parametrize("task", SIZES)
def test_without_what_is_only_drawn_a_simulator_moves_the_same_in_a_tenth_of_the_memory(task):
    from torchrl_genpo.envs.robomimic import ROBOMIMIC_TASKS
    from torchrl_genpo.envs.robomimic.simulator import make_simulator, set_simulator_seed

    env_args = ROBOMIMIC_TASKS[task].env_args()
    courses, sizes = [], []
    for has_visuals in (True, False):
        simulator = make_simulator(env_args, has_visuals=has_visuals)
        set_simulator_seed(simulator, 0)
        simulator.reset()
        actions = np.random.default_rng(0).uniform(-1, 1, (30, SIZES[task][1]))
        courses.append([simulator.step(action)[0] for action in actions])
        sizes.append(simulator.sim.model._model.nbuffer)
        simulator.close()
    for full, light in zip(*courses, strict=True):
        assert full.keys() == light.keys()
        assert all(np.array_equal(full[key], light[key]) for key in full)
    assert sizes[1] < 0.1 * sizes[0]


@needs_robosuite
def test_observations_and_actions_are_in_robosuites_own_units():
    single, *_ = simulate("can", seed=0)
    low, high = single.simulator.action_spec
    env = make_env("robomimic/can", num_envs=2, seed=0, chunk_size=3)
    np.testing.assert_allclose(env.action_spec.space.low, np.tile(low, (2, 3)))
    np.testing.assert_allclose(env.action_spec.space.high, np.tile(high, (2, 3)))
    seen = env.reset()
    raw = [one.unwrapped.simulator._get_observations() for one in env.base_env._env.envs]
    for row in range(2):
        np.testing.assert_allclose(seen["observation"][row, :3], raw[row]["robot0_eef_pos"], atol=1e-6)
    env.close()


@needs_robosuite
def test_actions_beyond_the_bounds_are_clipped_inside_the_environment():
    after = []
    for value in (1.0, 7.0):
        env = make_env("robomimic/can", seed=0, chunk_size=2)
        step = env.step(env.reset().set("action", torch.full((1, 14), value)))
        assert (step["action"] == value).all(), "the stored action must stay what the policy scored"
        after.append(step["next", "observation"])
        env.close()
    torch.testing.assert_close(*after)


@needs_robosuite
def test_workers_form_a_batch_of_their_own():
    env = make_env("robomimic/can", num_envs=4, seed=0, num_workers=2, horizon=8)
    env.append_transform(DiscountedReturn())
    check_env_specs(env)
    data = env.rollout(3, break_when_any_done=False)
    assert data.batch_size == (2, 2, 3)
    assert data["next", "truncated"].squeeze(-1).tolist() == [[[False, True, False]] * 2] * 2
    first = data["observation"][..., 0, :].flatten(0, 1)
    assert len({tuple(row) for row in first.tolist()}) == 4, "every environment must have its own course"
    some = torch.tensor([[[False], [True]], [[False], [False]]])  # nothing of the second worker
    before = data["next"][..., -1].exclude("reward")
    after = env.reset(before.clone().set("_reset", some))
    assert after["step_count"].tolist() == [[[1], [0]], [[1], [1]]]
    assert torch.equal((after["observation"] != before["observation"]).any(-1, keepdim=True), some)
    env.close()


@needs_robosuite
@pytest.mark.parametrize("num_envs", [1, 3])
def test_environments_that_cannot_be_divided_among_the_workers_have_fewer(num_envs):
    env = make_env("robomimic/can", num_envs=num_envs, seed=0, num_workers=2)
    assert env.batch_size == (num_envs,)
    env.close()


@needs_robosuite
@pytest.mark.parametrize("task", SIZES)
def test_the_expert_succeeds_and_success_ends_the_episode(task):
    env, _, act = simulate(task, seed=1)
    rewards = []
    for _ in range(400):
        observation, reward, terminated, truncated, _ = env.step(act())
        rewards.append(reward)
        if terminated or truncated:
            break
    assert (terminated, truncated) == (True, False)
    assert rewards[-1] == 1.0 and sum(rewards) == 1.0
    assert observation["success"] == 1
    observation, _ = env.reset()
    assert observation["success"] == 0
    env.close()


@needs_robosuite
def test_a_chunk_is_its_steps_with_the_discounted_sum_of_their_rewards():
    chunked, _, _ = simulate("can", seed=1, chunk_size=4, gamma=0.9, end_at_success=False, reward_shaping=True)
    single, _, act = simulate("can", seed=1, end_at_success=False, reward_shaping=True)
    for _ in range(3):
        actions, total = [], 0.0
        for i in range(4):
            actions.append(act())
            expected, reward, *_ = single.step(actions[-1])
            total += 0.9**i * reward
        observation, reward, *_ = chunked.step(np.concatenate(actions))
        np.testing.assert_allclose(observation["observation"], expected["observation"], atol=1e-6)
        assert reward == pytest.approx(total) and reward > 0


@needs_robosuite
def test_a_longer_simulation_step_moves_the_arm_alike_in_fewer_steps():
    poses, substeps = [], []
    for timestep in (0.002, 0.005):
        env, observation, _ = simulate("can", seed=1, simulation_timestep=timestep)
        start, simulator = observation["observation"], env.simulator
        for _ in range(10):
            observation, *_ = env.step(np.array([0.5, 0.2, -0.3, 0, 0, 0, -1.0]))
        poses.append(observation["observation"][:3] - start[:3])
        substeps.append(round(10 * simulator.control_timestep / simulator.sim.model.opt.timestep))
        assert simulator.sim.data.time == pytest.approx(0.5)
    assert substeps == [250, 100]
    assert np.abs(poses[0]).max() > 0.04
    np.testing.assert_allclose(*poses, atol=2e-3)


@needs_robosuite
@pytest.mark.parametrize("task", ["can", "lift", "square", "box_cleanup", "threading"])
def test_a_seed_gives_the_same_objects_in_every_construction(task):
    first, second = (make_env(f"robomimic/{task}", num_envs=2, seed=0).reset()["observation"] for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first[0], first[1])


@needs_robosuite
def test_an_action_takes_the_time_of_its_control_steps():
    env, *_ = simulate("can", seed=0, chunk_size=3)
    assert env.dt == pytest.approx(0.15) and env.metadata["render_fps"] == pytest.approx(1 / 0.15)


@needs_robosuite
def test_a_seed_gives_one_course_of_episodes():
    def course(seed):
        env, observation, _ = simulate("can", seed)
        return np.stack([observation["observation"], *(env.reset()[0]["observation"] for _ in range(2))])

    first = course(5)
    np.testing.assert_array_equal(first, course(5))
    assert np.abs(first - course(6)).max() > 0.01
    assert np.abs(np.diff(first, axis=0)).max(1).min() > 0.01, "episodes must differ"


@needs_robosuite
def test_the_first_observation_is_that_of_the_state_it_shows():
    """robosuite's own reset returns zeros for the poses relative to the gripper."""
    env, observation, _ = simulate("can", seed=0)
    again = env._observe(env.simulator._get_observations(force_update=True))
    np.testing.assert_array_equal(observation["observation"], again["observation"])
    assert np.abs(observation["observation"][9:12]).min() > 0


@needs_robosuite
@pytest.mark.parametrize(
    ("task", "options", "error", "messages"),
    [
        ("cann", {}, ValueError, ["'cann'", "Did you mean can", "threading"]),
        ("can", {"num_envs": 0}, ValueError, ["num_envs must be at least 1"]),
        ("can", {"chunk_size": 0}, ValueError, ["chunk_size", "0"]),
        ("can", {"horizon": -1}, ValueError, ["horizon", "-1"]),
        ("can", {"dataset": "moved.hdf5"}, FileNotFoundError, ["dataset=moved.hdf5", "env.options.dataset=<file>"]),
        ("can", {"horizon": 0}, ValueError, ["horizon", "got 0"]),
        ("can", {"observation_keys": []}, ValueError, ["observation_keys must name at least one"]),
        ("can", {"simulation_timestep": 0.003}, ValueError, ["simulation_timestep=0.003", "0.05 s", "0.002"]),
        ("can", {"simulation_timestep": 0.0}, ValueError, ["simulation_timestep=0.0"]),
        ("can", {"observation_keys": ["objekt"]}, ValueError, ["objekt", "robot0_eef_pos"]),
        ("threading", {"reward_shaping": True}, ValueError, ["success alone"]),
        ("StackThree_D1", {}, ImportError, ["StackThree_D1", "mimicgen", "pip install"]),
    ],
)
def test_mistakes_are_explained(task, options, error, messages):
    with pytest.raises(error) as raised:
        make_env(f"robomimic/{task}", **options)
    for message in messages:
        assert message in str(raised.value)


@needs_robosuite
def test_a_video_shows_the_arm(tmp_path):
    from torchrl_genpo.envs import make_view

    env = make_env("robomimic/can", render=True, seed=0)
    try:
        view, td = make_view(env), env.reset()
        first = torch.as_tensor(view.frame(td).copy()).float()
    except Exception as error:  # each OpenGL platform has exceptions of its own
        pytest.skip(f"needs OpenGL (apt install libegl1 libgl1): {error}")
    _, td = env.step_and_maybe_reset(td.set("action", torch.ones(env.action_spec.shape)))
    second = torch.as_tensor(view.frame(td).copy()).float()
    assert first.shape == (384, 512, 3) and view.fps == 5
    assert first.std() > 20 and (first - second).abs().amax(-1).gt(30).sum() > 100


@pytest.mark.skipif(HAS_ROBOSUITE, reason="needs robosuite to be absent")
def test_without_robosuite_the_command_that_installs_it_is_named():
    with pytest.raises(ImportError, match="pip install --no-deps robosuite"):
        make_env("robomimic/can")
