"""The nut-bolt environment: MuJoCo's own physics, the stated reward and ends, randomisation from one seed."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest
import torch
from torchrl.envs import check_env_specs

from torchrl_genpo.envs import make_env, simulator_state
from torchrl_genpo.envs.common import simulator
from torchrl_genpo.envs.xhand import JOINTS, NUTS, NutBoltEnv, Randomization, RewardWeights, Scene, joint_limits
from torchrl_genpo.training.evaluation import evaluate


def rollout(env, actions):
    """Steps through ``actions [time, env, d]`` with resets; the stacked steps."""
    td, steps = env.reset(), []
    for action in actions:
        step, td = env.step_and_maybe_reset(td.set("action", action))
        steps.append(step.clone())
    return torch.stack(steps, 1)


@pytest.mark.parametrize("options", [{}, {"all_joints": True, "history": 10}, {"randomize": False}])
def test_specs_are_fulfilled(options):
    check_env_specs(NutBoltEnv(3, seed=0))
    env = make_env("xhand/nut_bolt", num_envs=3, seed=0, **options)
    check_env_specs(env)
    assert env.action_spec.shape == (3, 12 if options.get("all_joints") else 8)
    assert env.observation_spec["observation"].shape == (3, 24 * options.get("history", 3))


def test_every_row_is_a_simulation_of_its_own_with_the_stated_reward():
    # rows of nuts with different numbers of geoms share the data of a thread: each must match plain MuJoCo
    env = NutBoltEnv(5, nuts=tuple(NUTS), randomization=Randomization(push_probability=1.0), num_threads=2, seed=0)
    td = env.reset()
    references = [env.data(row) for row in range(5)]
    start = td["joint_position"].double().numpy()
    rng = np.random.default_rng(0)
    for _ in range(25):
        target = start.astype(np.float32) + rng.uniform(-0.3, 0.3, start.shape).astype(np.float32)
        angles = [data.qpos[12] for data in references]
        td = env.step(td.set("action", torch.from_numpy(target)))
        for row, data in enumerate(references):
            data.ctrl[:], data.qfrc_applied[12] = target[row], env.state_dict()["push"][row]
            data.qacc_warmstart[:] = 0
            for _ in range(10):
                mujoco.mj_step(env.models[row], data)
            np.testing.assert_allclose(td["next", "joint_position"][row], data.qpos[:12].astype(np.float32), atol=1e-6)
            expected = reward(data, start[row], (data.qpos[12] - angles[row]) / 0.05)
            assert td["next", "reward"][row].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
        td = td["next"].exclude("reward")
    assert max(abs(data.qvel[12]) for data in references) > 0.1, "the test wants nuts that move"


def reward(data, start, speed):
    """xhand.md's formula."""
    position, torque = data.qpos[:12], data.actuator_force
    sensor = data.sensor
    distances = [
        np.linalg.norm(sensor(f"{finger}_position").data - sensor("nut_position").data) for finger in ("thumb", "index")
    ]
    power = sum(abs(torque * data.qvel[:12]))
    terms = [
        6 * np.clip(speed, -4, 4),
        -0.5 * sum((position[i] - start[i]) ** 2 for i in range(12) if not JOINTS[i].startswith("thumb")),
        -0.1 * sum(torque**2),
        -0.01 * power**2,
        -0.3 * max(speed - 10, 0),
        2 * np.clip(1 - np.mean(distances) / 0.07, 0, 1),
    ]
    return 0.01 * sum(terms)


def test_a_seed_fixes_everything_whatever_the_number_of_threads():
    torch.manual_seed(0)
    actions = torch.randn(90, 6, 8)
    first, second, other = (
        rollout(make_env("xhand/nut_bolt", num_envs=6, seed=seed, num_threads=threads), actions)
        for seed, threads in ((3, 1), (3, 2), (4, 2))
    )
    assert first["next", "done"].any() and not first["next", "done"].all(), "the test wants partial resets"
    for key in ("observation", "critic_observation", ("next", "reward"), ("next", "done")):
        assert torch.equal(first[key], second[key]), key
    assert not torch.equal(first["observation"], other["observation"])


def test_random_actions_neither_diverge_nor_spin_the_nut():
    torch.manual_seed(0)
    env = make_env("xhand/nut_bolt", num_envs=48, seed=0, nuts=list(NUTS))
    steps = rollout(env, 2 * torch.randn(150, 48, 8))
    for key in ("observation", "critic_observation", "reward", ("log", "end/diverged")):
        assert steps["next"][key].isfinite().all(), key
    assert not steps["next", "log", "end/diverged"].any()
    speed = steps["next", "privileged"][..., simulator(env).privileged_names.index("nut_speed")]
    assert 0.5 < speed.abs().max() < 15


def test_no_draw_starts_with_a_contact():
    env = NutBoltEnv(100, nuts=tuple(NUTS), seed=0)
    env.reset()
    assert [env.data(row).ncon for row in range(100)] == [0] * 100


def test_a_partial_reset_leaves_the_other_rows_alone():
    torch.manual_seed(0)
    env = make_env("xhand/nut_bolt", num_envs=4, seed=0)
    td = env.reset()
    for _ in range(5):
        _, td = env.step_and_maybe_reset(td.set("action", torch.randn(4, 8)))
    env_state = simulator(env).state_dict()
    mask = torch.tensor([False, True, False, True]).unsqueeze(-1)
    after = env.reset(td.clone().set("_reset", mask))
    for key in after.keys(True, True):
        if key in td.keys(True, True) and after[key].dtype.is_floating_point:
            assert torch.equal(after[key][[0, 2]].nan_to_num(-1), td[key][[0, 2]].nan_to_num(-1)), key
    for name, value in simulator(env).state_dict().items():
        if name != "generator":
            assert torch.equal(value[[0, 2]].nan_to_num(-1), env_state[name][[0, 2]].nan_to_num(-1)), name
    assert after["step_count"].flatten().tolist() == [5, 0, 5, 0]
    frames = after["frames"][[1, 3]].unflatten(-1, (3, 24))
    assert (frames == frames[:, :1]).all(), "an episode starts with one frame, repeated"
    torch.testing.assert_close(after["joint_target"][1], after["joint_position"][1])
    assert not torch.equal(after["joint_position_bias"][1], td["joint_position_bias"][1])


def test_the_time_limit_truncates():
    env = make_env("xhand/nut_bolt", num_envs=2, seed=0, max_steps=6)
    steps = rollout(env, torch.zeros(12, 2, 8))
    ends = [False] * 5 + [True]
    assert steps["next", "truncated"][0].flatten().tolist() == ends * 2
    assert not steps["next", "terminated"].any()
    assert steps["next", "log", "end/time_out"][0].flatten().tolist() == [float(end) for end in ends] * 2
    # the observation that ended the episode is kept, for the bootstrap
    there, reset = steps["next", "joint_position"][:, 5], steps["joint_position"][:, 6]
    assert (there - steps["joint_position"][:, 5]).abs().max() < 0.03 and (reset - there).abs().max() > 0.005


def test_standing_still_and_letting_go_terminate():
    env = make_env("xhand/nut_bolt", num_envs=2, seed=0)
    still = rollout(env, torch.zeros(70, 2, 8))["next"]
    assert still["terminated"][0].flatten().tolist() == [False] * 69 + [True] and not still["truncated"].any()
    assert still["log", "end/stalled"][:, -1].all() and still["log", "end/no_contact"][:, -1].all()
    assert still["metrics", "stalled/hexagon"][0, -1] == 1 and still["metrics", "stalled/hexagon"][1, -1].isnan()

    away = torch.zeros(30, 2, 8)
    away[..., JOINTS.index("index_1")] = -1.0
    steps = rollout(env, away)["next"]
    first = steps["terminated"][0].flatten().int().argmax()
    assert steps["terminated"][0, first] and steps["log", "end/reach"][0, first] == 1


def test_a_simulation_that_diverges_ends_its_episode_and_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log
    env = NutBoltEnv(2, seed=0, randomization=Randomization.none())
    td = env.reset()
    env._rows["physics"][0, env._velocity] = 1e12
    step = env.step(td.set("action", td["joint_position"].clone()))["next"]
    assert step["terminated"].flatten().tolist() == [True, False]
    assert step["log", "end/diverged"].flatten().tolist() == [1, 0]
    assert step["reward"][0] == 0 and step["reward"][1] > 0
    for key in ("joint_position", "privileged"):
        assert step[key].isfinite().all(), key
    step["_reset"] = step["done"]
    assert env.reset(step)["privileged"].abs().max() < 100


def test_metrics_and_reward_terms_add_up():
    torch.manual_seed(0)
    env = make_env("xhand/nut_bolt", num_envs=3, seed=0)
    names = simulator(env).privileged_names
    td = env.reset()
    simulated, total = simulator(env), torch.zeros(3)
    for _ in range(20):
        _, td = env.step_and_maybe_reset(td.set("action", torch.randn(3, 8)))
        total += td["privileged"][:, names.index("nut_speed")] * 0.05
    log = sum(value for name, value in td["log"].items() if name.startswith("reward/"))
    torch.testing.assert_close(log, td["episode_reward"], rtol=1e-4, atol=1e-6)
    for row, nut in enumerate(simulated.nuts):
        turns = td["metrics", f"turns/{nut}"]
        assert turns.isnan().flatten().tolist() == [other != row for other in range(3)]
        torch.testing.assert_close(turns[row, 0], total[row] / (2 * math.pi), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(td["metrics", f"progress/{nut}"][row], (turns[row] / 3).clamp(0, 1))
        assert td["metrics", f"completion_seconds/{nut}"][row] == 20


def test_a_nut_that_comes_off_is_timed():
    env = NutBoltEnv(1, seed=0, randomization=Randomization.none())
    td = env.reset()
    env._rows["start_angle"] -= 2 * math.pi * 3  # as if it had turned thrice
    for _ in range(3):
        td = env.step(td.set("action", td["joint_position"].clone()))["next"].exclude("reward")
    assert td["metrics", "completion_seconds/hexagon"].item() == pytest.approx(0.05)
    assert td["metrics", "progress/hexagon"].item() == 1


def test_what_is_drawn_is_simulated_and_told_to_the_critic():
    draws = Randomization(friction=(0.7, 0.8), nut_friction=(0.03, 0.05), stiffness=(2.0, 4.0))
    env = NutBoltEnv(6, randomization=draws, seed=0)
    seen = []
    for _ in range(2):
        td = env.reset()
        values = dict(zip(env.privileged_names, td["privileged"].double().numpy().T, strict=True))
        for name in draws.names:
            low, high = getattr(draws, name.removesuffix("_x").removesuffix("_y"))
            assert (values[name] >= low - 1e-6).all() and (values[name] <= high + 1e-6).all(), name
            assert len(set(values[name])) == 6, name
        for row, model in enumerate(env.models):
            nut = model.body("nut")
            actual = {
                "friction": model.geom_friction[0, 0],
                "nut_friction": model.dof_frictionloss[12],
                "nut_damping": model.dof_damping[12],
                "nut_mass": nut.mass[0],
                "nut_center_x": nut.ipos[0],
                "stiffness": model.actuator_gainprm[0, 0],
                "damping": -model.actuator_biasprm[0, 2],
                "hand_height": model.body("palm").pos[2],
                "nut_position_x": model.body("bolt").pos[0] - Scene().nut_position[0],
            }
            for name, value in actual.items():
                assert value == pytest.approx(values[name][row], rel=1e-5, abs=1e-8), name
        seen.append(values["friction"])
    assert (seen[0] != seen[1]).all(), "every reset draws anew"


def test_a_fixed_scene_differs_by_the_nut_only():
    env = make_env("xhand/nut_bolt", num_envs=4, seed=0, randomize=False, scene={"nut_friction": 0.03})
    td = env.reset()
    assert (td["observation"] == td["observation"][0]).all()
    assert [model.dof_frictionloss[12] for model in simulator(env).models] == pytest.approx([0.03] * 4)
    assert (td["action_delay"] == 0).all()
    randomized = make_env("xhand/nut_bolt", num_envs=1, seed=0)
    assert td["critic_observation"].shape[-1] == randomized.observation_spec["critic_observation"].shape[-1]


def test_the_left_task_has_the_left_hand_and_what_is_asked_for():
    for scene in ({"cone": "elliptic"}, Scene(cone="elliptic")):
        found = simulator(make_env("xhand/nut_bolt_left", scene=scene)).scene
        assert (found.side, found.index_bend_sign, found.cone) == ("left", -1, "elliptic")
    assert simulator(make_env("xhand/nut_bolt_left", scene={"index_bend_sign": 1})).scene.index_bend_sign == 1


@pytest.mark.parametrize(
    "scene", [{"timestep": 0.0025}, {"cone": "elliptic"}, {"thread_pitch": 0.002}, {"side": "left"}]
)
def test_variants_of_the_scene_step(scene):
    env = make_env("xhand/nut_bolt", num_envs=2, seed=0, scene=scene)
    steps = rollout(env, torch.zeros(3, 2, 8))
    assert steps["next", "observation"].isfinite().all() and not steps["next", "done"].any()
    model = simulator(env).models[0]
    assert simulator(env).num_substeps * model.opt.timestep == pytest.approx(0.05)


def test_a_restored_environment_continues_to_the_last_bit():
    torch.manual_seed(0)
    actions = torch.randn(60, 4, 8)

    def continuation(env, td):
        steps = []
        for action in actions[20:]:
            step, td = env.step_and_maybe_reset(td.set("action", action))
            steps.append(step["next"].select("observation", "critic_observation", "reward", "done").clone())
        return torch.stack(steps)

    env = make_env("xhand/nut_bolt", num_envs=4, seed=3, max_steps=30)
    td = env.reset()
    for action in actions[:20]:
        _, td = env.step_and_maybe_reset(td.set("action", action))
    state, carrier = simulator_state(env).state_dict(), td.clone()
    expected = continuation(env, td)
    assert expected["done"].any(), "the test wants resets after the restoration"
    other = make_env("xhand/nut_bolt", num_envs=4, seed=99, max_steps=30)
    other.reset()
    simulator_state(other).load_state_dict(state)
    assert (expected == continuation(other, carrier)).all()


def test_evaluation_reports_each_nut():
    env = make_env("xhand/nut_bolt", num_envs=4, seed=0, max_steps=8, nuts=["square", "cross"])

    def policy(td):
        return td.set("action", torch.ones(4, 8))

    results = evaluate(env, policy, seed=1)
    for nut in ("square", "cross"):
        for name in ("turns", "progress", "completion_seconds", "stalled"):
            assert math.isfinite(results[f"eval/zero_noise/{name}/{nut}"])
    assert results == evaluate(env, policy, seed=1)


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ({"name": "xhand/nut_bol"}, ["nut_bol", "Did you mean nut_bolt"]),
        ({"nuts": ["hexagn"]}, ["hexagn", "Did you mean hexagon"]),
        ({"nuts": []}, ["at least one of hexagon"]),
        ({"scene": {"timestep": 0.003}}, ["timestep must divide the control period of 0.05 s, got 0.003 s"]),
        ({"num_envs": 0}, ["num_envs must be at least 1, got 0"]),
        ({"randomization": {"frction": [1, 2]}}, ["frction", "Did you mean friction"]),
        (
            {"randomization": {"friction": [2, 1]}},
            ["Randomization: friction=[2, 1]", "a lowest and a highest value, got [2.0, 1.0]"],
        ),
        ({"randomization": {"friction": 1.0}}, ["Randomization: friction=1.0", "tuple"]),
        ({"randomization": {"friction": ["a", "b"]}}, ["Randomization: friction=['a', 'b']", "number"]),
        (
            {"randomization": {"friction": [-5, -1]}},
            ["Randomization: friction=[-5, -1]", "equal to 0"],
        ),
        ({"randomization": {"action_delay": 0.5}}, ["Randomization: action_delay=0.5", "integer"]),
        (
            {"randomization": {"push_probability": 5}},
            ["Randomization: push_probability=5", "equal to 1"],
        ),
        ({"scene": {"nut_position": 0.1}}, ["Scene: nut_position=0.1", "tuple"]),
        ({"scene": {"nut": "triangle"}}, ["nuts=[triangle] instead of scene.nut"]),
        ({"nuts": "hexagon"}, ["nuts must be a list of names, got 'hexagon'"]),
        ({"scene": {"timestep": 0.0}}, ["Scene: timestep=0.0", "greater than 0"]),
        ({"scene": {"nut_mass": True}}, ["Scene: nut_mass=true", "number"]),
        ({"scene": {"side": "both"}}, ["Scene: side=both", "'right' or 'left'"]),
        ({"scene": {"cone": "round"}}, ["Scene: cone=round", "'pyramidal' or 'elliptic'"]),
        ({"rewards": {"turning": "x"}}, ["RewardWeights: turning=x", "number"]),
        (
            {"randomization": {"joint_noise": -1}},
            ["Randomization: joint_noise=-1", "equal to 0"],
        ),
        ({"randomize": False, "randomization": {"friction": [1, 2]}}, ["randomize=False"]),
        ({"scene": {"nut_friction": 0.1}}, ["scene.nut_friction is drawn", "randomization.nut_friction"]),
        ({"scene": {"timestp": 1}}, ["Scene: timestp=1", "Did you mean timestep"]),
        ({"rewards": {"turnin": 1}}, ["RewardWeights: turnin=1", "turning"]),
        ({"reward": 1}, ["has no option reward"]),
    ],
)
def test_mistakes_are_explained(arguments, messages):
    with pytest.raises(ValueError) as error:
        make_env(**{"name": "xhand/nut_bolt", "num_envs": 2} | arguments)
    assert all(message in str(error.value) for message in messages), error.value


def test_settings_are_objects_or_what_a_configuration_says():
    objects = {"scene": Scene(side="left"), "randomization": Randomization(friction=(0.7, 0.8))}
    objects["rewards"] = RewardWeights(turning=3.0)
    mappings = {"scene": {"side": "left"}, "randomization": {"friction": [0.7, 0.8]}, "rewards": {"turning": 3}}
    actions = torch.randn(5, 3, 8)
    first, second = (rollout(make_env("xhand/nut_bolt", 3, seed=0, **each), actions) for each in (objects, mappings))
    for key in ("critic_observation", ("next", "reward")):
        assert torch.equal(first[key], second[key])


def test_settings_never_change():
    with pytest.raises(ValueError, match="frozen"):
        Scene().side = "left"


def test_joint_limits_bound_the_action():
    spec = NutBoltEnv(1, seed=0).action_spec
    np.testing.assert_allclose(torch.stack([spec.space.low[0], spec.space.high[0]]), joint_limits(), rtol=1e-6)
