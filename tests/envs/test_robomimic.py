"""robosuite's tasks through TorchRL, scripted experts, and the way from demonstrations to fine-tuning.

Needs robosuite; `.ci/run` installs it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrl.envs import check_env_specs

from torchrl_genpo.data.robomimic import INSTALL, read_demonstrations
from torchrl_genpo.envs import DiscountedReturn, make_env
from torchrl_genpo.training.checkpoint import best_checkpoint, frames_of
from torchrl_genpo.training.metrics import read_metrics

HAS_ROBOSUITE = importlib.util.find_spec("robosuite") is not None
needs_robosuite = pytest.mark.skipif(not HAS_ROBOSUITE, reason=f"needs robosuite: {INSTALL}")
h5py = pytest.importorskip("h5py", reason=f"needs robosuite: {INSTALL}")
ROOT = Path(__file__).parents[2]
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


def run(*command, succeeds=True):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=environment, timeout=900, cwd=ROOT
    )
    assert (result.returncode == 0) == succeeds, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    path = tmp_path_factory.mktemp("demos") / "can.hdf5"
    output = run("examples/collect_demos.py", "robomimic/can", "--episodes", 3, "--output", path, "--workers", 2)
    assert "3 of 3 episodes succeeded" in output
    return path


SMALL = ["policy.hidden_sizes=[32,32]", "eval.num_envs=2", "eval.rounds=1", "env.options.horizon=24"]


@pytest.fixture(scope="module")
def pretrained(demonstrations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    output = run(
        "sota-implementations/pretrain.py",
        f"pretrain.dataset={demonstrations}",
        "pretrain.iterations=60",
        "pretrain.log_interval=20",
        "pretrain.checkpoint_interval=20",
        f"hydra.run.dir={folder}",
        *SMALL,
    )
    return folder, output


@needs_robosuite
def test_pretraining_learns_evaluates_and_resumes(pretrained):
    folder, output = pretrained
    columns = read_metrics(folder / "metrics.csv")
    assert columns["iteration"] == [20, 40, 60]
    assert columns["train/loss"][-1] < columns["train/loss"][0]
    for way in ("euler", "reversible"):
        for noise in ("zero", "random"):
            assert re.search(rf"{way} eval/{noise}_noise/success: \d\.\d+", output)
    run("sota-implementations/pretrain.py", f"resume={folder}", "pretrain.iterations=80")
    resumed = read_metrics(folder / "metrics.csv")
    assert resumed["iteration"] == [20, 40, 60, 80]
    assert resumed["train/loss"][:3] == columns["train/loss"]
    output = run("sota-implementations/pretrain.py", f"resume={folder}")  # nothing is left to do
    assert read_metrics(folder / "metrics.csv")["iteration"][-1] == 80
    assert "genpo-train env=robomimic/can 'policy.hidden_sizes=[32,32]' policy.init=" in output
    output = run("sota-implementations/pretrain.py", f"resume={folder}", "pretrain.lr=1e-2", succeeds=False)
    assert "'pretrain.lr=1e-2' would change it" in output and "Traceback" not in output
    evaluation = ("sota-implementations/pretrain.py", f"evaluate={folder}", "eval.num_envs=2", "eval.rounds=1")
    outputs = [run(*evaluation, *options) for options in ([], ["euler=true"], ["start=paper"])]
    found = [re.findall(r"eval/zero_noise/reward_sum: .*|eval/zero_noise/return: .*", output) for output in outputs]
    assert all(found)
    assert "'env=robomimic/threading' would change it" in run(*evaluation, "env=robomimic/threading", succeeds=False)


@needs_robosuite
def test_what_a_policy_achieves_becomes_demonstrations_on_which_it_can_train(tmp_path):
    path = tmp_path / "can.hdf5"
    collect = (
        "examples/collect_demos.py",
        "robomimic/can",
        "--policy",
        "robomimic/can",
        "--episodes",
        2,
        "--workers",
        2,
    )
    assert "2 of 2 episodes succeeded" in run(*collect, "--output", path)
    first, second = read_demonstrations(path, ["object"])
    assert not torch.equal(first["observation"][0], second["observation"][0])
    for demonstration in (first, second):
        rewards = demonstration["next", "reward"].squeeze(-1)
        assert rewards[:-6].sum() == 0 and rewards[-6:].tolist() == [1] * 6, "it ends where the can has come to stay"
    with h5py.File(path) as file:
        assert file["data/demo_0"].attrs["model_file"].count("<mesh ") > 50, "it can be played back and drawn"
    wrong = run("examples/collect_demos.py", "robomimic/lift", succeeds=False)
    assert "no scripted expert for robomimic/lift: give a --policy" in wrong and "Traceback" not in wrong
    wrong = run("examples/collect_demos.py", "robomimic/threading", "--policy", "robomimic/can", succeeds=False)
    assert "is a policy of robomimic/can, not of robomimic/threading" in wrong


@needs_robosuite
def test_finetuning_starts_from_the_pretrained_policy_and_lets_the_critic_warm_up(pretrained, tmp_path):
    folder, _ = pretrained
    (checkpoint,) = sorted((folder / "checkpoints").glob("*60*"))
    finetune = [
        "sota-implementations/genpo.py",
        "env=robomimic/can",
        f"policy.init={checkpoint}",
        "env.num_envs=4",
        "collector.frames_per_batch=16",
        "collector.total_frames=64",
        "optim.critic_warmup=32",
        "optim.lr=1e-4",
        "optim.schedule=constant",
        "loss.clip_epsilon=0.02",
        "loss.mini_batch_size=8",
        "loss.epochs=2",
        "eval.interval=64",
    ]
    output = run(*finetune, *SMALL, f"hydra.run.dir={tmp_path / 'run'}")
    columns = read_metrics(tmp_path / "run" / "metrics.csv")
    assert columns["frames"] == [0, 16, 32, 48, 64], output
    assert columns["eval/random_noise/success"][0] == columns["eval/random_noise/success"][0], "the start is evaluated"
    assert max(columns["train/inversion_error"][1:]) < 1e-2
    # at unchanged parameters the KL is what the inversion rounds
    for row in (1, 2):
        assert abs(columns["train/kl"][row]) <= columns["train/inversion_error"][row]
        assert columns["train/clip_fraction"][row] == 0
    for row in (3, 4):
        assert abs(columns["train/kl"][row]) > 10 * columns["train/inversion_error"][row]
        assert columns["train/clip_fraction"][row] > 0
    for noise in ("zero", "random"):
        assert 0 <= columns[f"eval/{noise}_noise/success"][-1] <= 1

    best = max(columns["eval/zero_noise/success"])
    kept = best_checkpoint(tmp_path / "run", "eval/zero_noise/success")
    row = columns["frames"].index(frames_of(kept))
    assert columns["eval/zero_noise/success"][row] == best, "the start may be the best"

    output = run(*finetune, "policy.hidden_sizes=[16,16]", succeeds=False)
    assert "policy.hidden_sizes=[32, 32]" in output and "Traceback" not in output


@needs_robosuite
def test_a_worker_that_dies_is_named_and_the_run_starts_again_from_its_last_good_state(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "sota-implementations/genpo.py", "env=robomimic/can", "env.num_envs=4", *SMALL]
    command += ["collector.frames_per_batch=16", "collector.total_frames=320", "loss.mini_batch_size=8"]
    command += ["eval.interval=1000", "eval.num_envs=2", f"hydra.run.dir={folder}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 300
    while not (folder / "metrics.csv").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert re.search(
        r"Worker \d of the environment died \(exit code -9\)\. Saved .*\. Starting again from there\.", output
    )
    assert read_metrics(folder / "metrics.csv")["frames"] == [16 * i for i in range(1, 21)]


@needs_robosuite
@pytest.mark.parametrize("policy", ["gaussian", "fpo"])  # by maximum likelihood, by flow matching without a density
def test_a_baseline_is_pretrained_and_finetuned(demonstrations, policy, tmp_path):
    folder = tmp_path / "pretrained"
    small = [*SMALL, f"policy={policy}"]
    run(
        "sota-implementations/pretrain.py",
        f"pretrain.dataset={demonstrations}",
        "pretrain.iterations=40",
        "pretrain.action_noise=0.1",
        "pretrain.log_interval=20",
        f"hydra.run.dir={folder}",
        *small,
    )
    columns = read_metrics(folder / "metrics.csv")
    assert columns["train/loss"][1] < columns["train/loss"][0]
    (checkpoint,) = (folder / "checkpoints").glob("*40*")
    wrong = run("sota-implementations/pretrain.py", f"evaluate={checkpoint}", "euler=true", *SMALL[1:3], succeeds=False)
    assert f"is a policy={policy}" in wrong and "Traceback" not in wrong
    finetune = ["env=robomimic/can", f"policy.init={checkpoint}", "env.num_envs=4", "collector.frames_per_batch=16"]
    finetune += ["collector.total_frames=32", "loss.mini_batch_size=8", f"hydra.run.dir={tmp_path / 'run'}"]
    finetune += ["env.scale_reward=true", "env.options.reward_shaping=true", "env.options.end_at_success=false"]
    run("sota-implementations/genpo.py", *finetune, *small)
    columns = read_metrics(tmp_path / "run" / "metrics.csv")
    assert columns["train/return"][-1] > 0, "a shaped reward is one for every step"
    assert columns["train/success"][-1] == 0


@needs_robosuite
def test_mistakes_of_pretraining_are_explained(demonstrations, tmp_path):
    for overrides, message in (
        ([], "pretrain.dataset=<file.hdf5> is missing"),
        (["pretrain.dataset=nowhere.hdf5"], "pretrain.dataset=nowhere.hdf5 is missing"),
        ([f"pretrain.dataset={demonstrations}", "env=robomimic/threading"], "is of PickPlaceCan; robomimic/threading"),
        ([f"pretrain.dataset={demonstrations}", "pretrain.filter_key=trian"], "no filter key 'trian'"),
    ):
        command = [f"hydra.run.dir={tmp_path / str(len(message))}", *overrides]
        output = run("sota-implementations/pretrain.py", *command, succeeds=False)
        assert message in output and "Traceback" not in output


@pytest.mark.skipif(HAS_ROBOSUITE, reason="needs robosuite to be absent")
def test_without_robosuite_the_command_that_installs_it_is_named():
    with pytest.raises(ImportError, match="pip install --no-deps robosuite"):
        make_env("robomimic/can")


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
