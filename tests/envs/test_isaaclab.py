"""Isaac Lab through TorchRL: all eight real task configurations, on stand-in robots where the real ones are remote.

Needs Isaac Lab; `.ci/run` installs it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import check_env_specs
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives.value import GAE

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP
from torchrl_genpo.envs import DiscountedReturn, make_env, make_view, stagger_episodes
from torchrl_genpo.envs.isaaclab import INSTALL, LastObservationAtReset
from torchrl_genpo.training.metrics import read_metrics

HAS_ISAACLAB = importlib.util.find_spec("isaaclab") is not None
needs_isaaclab = pytest.mark.skipif(not HAS_ISAACLAB, reason=f"needs Isaac Lab: {INSTALL}")
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "sota-implementations" / "genpo.py"
TASKS = {  # observations and actions, as Isaac Lab documents them
    "ant": (60, 8),
    "humanoid": (87, 21),
    "open_drawer": (31, 8),
    "anymal_d_rough": (235, 12),
    "go2_rough": (235, 12),
    "g1_rough": (310, 37),
    "h1_rough": (256, 19),
    "digit_locomanip": (104, 26),
    "go2_flat": (48, 12),
    "g1_flat": (123, 37),
    "h1_flat": (69, 19),
}


def make_actor(env):
    obs_dim, action_dim = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    return ReversibleFlowActor(VelocityMLP(in_features=obs_dim, action_dim=action_dim, num_cells=(16, 16)))


def make_critic(env):
    size = env.observation_spec["observation"].shape[-1]
    return ValueOperator(MLP(in_features=size, out_features=1, num_cells=[16]), in_keys=["observation"])


SMALL_TERRAIN = {
    "scene": {"terrain": {"terrain_generator": {"num_rows": 3, "num_cols": 3}}},
    "sim": {"physics": {"collision_cfg": {"max_triangle_pairs": 200_000}}},
}


def test_only_an_observation_that_ended_an_episode_is_made_up_for():
    transform, nan = LastObservationAtReset(["observation"]), float("nan")
    transform._reset(TensorDict(), TensorDict(observation=torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])))
    step = TensorDict(observation=torch.tensor([[nan, nan], [nan, 8.0], [9.0, 9.0]]), done=torch.eye(3, 1).bool())
    found = transform._step(TensorDict(), step)["observation"]
    assert found[0].tolist() == [1.0, 2.0] and found[2].tolist() == [9.0, 9.0]
    assert found[1].isnan().tolist() == [True, False], "of a simulator that diverged"


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    root = os.environ.get("ISAACSIM_ASSET_ROOT")  # one a process: isaaclab reads it once
    if root:
        return Path(root)
    folder = tmp_path_factory.mktemp("assets")
    subprocess.run([sys.executable, ROOT / "examples" / "isaaclab_standins", folder], check=True)
    return folder


@pytest.fixture
def make(assets):
    """Makes environments, and closes them."""
    made = []

    def build(task, num_envs=4, seed=0, steps=None, **options):
        overrides = {} if steps is None else {"episode_length_s": steps * (1 / 60 if task in FAST else 0.02) - 1e-4}
        if task.endswith("rough"):
            overrides |= SMALL_TERRAIN
        overrides |= options.pop("overrides", {})
        made.append(
            make_env(f"isaaclab/{task}", num_envs, "cpu", seed, asset_root=str(assets), overrides=overrides, **options)
        )
        return made[-1]

    yield build
    for env in made:
        if not env.is_closed:
            env.close()


FAST = ("ant", "humanoid", "cartpole", "open_drawer")  # 60 control steps a second, the others 50


@needs_isaaclab
@pytest.mark.parametrize("task", TASKS)
def test_a_task_fulfils_specs_ends_in_time_and_trains(make, task):
    torch.manual_seed(0)
    env = make(task, steps=12)
    obs_dim, action_dim = TASKS[task]
    assert env.observation_spec["observation"].shape == (4, obs_dim)
    assert env.action_spec.shape == (4, action_dim)
    check_env_specs(env)

    env.append_transform(DiscountedReturn(gamma=0.99))
    actor, critic = make_actor(env), make_critic(env)
    loss = GenPOLoss(actor, critic)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-4)
    gae = GAE(gamma=0.99, lmbda=0.95, value_network=critic, average_gae=False)
    collector = Collector(env, actor, frames_per_batch=80, total_frames=240, auto_register_policy_transforms=False)
    before = [parameter.clone() for parameter in loss.parameters()]
    for data in collector:
        assert all(value.isfinite().all() for value in data.values(True, True))
        assert data["next", "done"].any()
        assert data["next", "step_count"].max() <= 12
        with torch.no_grad():
            gae(data)
        out = loss(data.reshape(-1))
        assert out["inversion_error"] < 1e-2
        optimizer.zero_grad()
        (out["loss_objective"] + out["loss_critic"]).backward()
        optimizer.step()
    assert any((parameter != old).any() for parameter, old in zip(loss.parameters(), before, strict=True))


@needs_isaaclab
def test_a_time_out_bootstraps_from_the_state_that_ended_the_episode(make):
    env = make("cartpole", num_envs=3, steps=5)
    env.reset()
    data = env.rollout(14, break_when_any_done=False)
    ends = data["next", "truncated"].squeeze(-1)
    assert ends[0].tolist() == [False, False, False, False, True] * 2 + [False] * 4
    assert not data["next", "terminated"].any()
    here, there, reset = data["observation"], data["next", "observation"], data["observation"].roll(-1, 1)
    # physics is continuous, a reset is not
    drift = (there - here).abs().amax(-1)
    assert drift[ends].max() < 2 * drift[~ends].max()
    jump = (reset - there).abs().amax(-1)[:, :-1]
    assert (jump[ends[:, :-1]] > 1e-3).all() and (jump[~ends[:, :-1]] < 1e-5).all()

    critic = make_critic(env)
    gae = GAE(gamma=0.9, lmbda=0.0, value_network=critic, average_gae=False)
    with torch.no_grad():
        target = gae(data.clone())["value_target"]
        expected = data["next", "reward"] + 0.9 * critic(TensorDict(observation=there))["state_value"]
    torch.testing.assert_close(target, expected)


@needs_isaaclab
def test_without_terminal_observations_the_one_before_takes_their_place_as_in_isaac_lab_2(make):
    env = make("cartpole", num_envs=3, steps=5, overrides={"compute_final_obs": False})
    td = env.reset()
    stagger_episodes(env)  # so that resets are partial
    data = env.rollout(12, break_when_any_done=False, auto_reset=False, tensordict=td)
    ends = data["next", "done"].squeeze(-1)
    assert ends.any()
    torch.testing.assert_close(data["next", "observation"][ends], data["observation"][ends])
    assert (data["next", "observation"] != data["observation"])[~ends].any(-1).all()


@needs_isaaclab
def test_returns_and_isaac_labs_own_statistics_are_those_of_the_episodes_that_ended(make):
    env = make("cartpole", num_envs=3, steps=5)
    data = env.rollout(7, break_when_any_done=False)
    returns = data["next", "reward"][:, :5].sum(1)
    torch.testing.assert_close(data["next", "episode_reward"][:, 4], returns)
    torch.testing.assert_close(data["next", "episode_reward"][:, 5], data["next", "reward"][:, 5])
    log = data["next", "log"][:, 4]
    assert (log["Episode_Termination/time_out"] == 1).all()
    terms = sum(value for name, value in log.items() if name.startswith("Episode_Reward/"))
    # Isaac Lab divides by the length of the episode in seconds
    assert terms.flatten().tolist() == pytest.approx([returns.mean().item() / (5 / 60 - 1e-4)] * 3, rel=1e-3)


@needs_isaaclab
def test_a_seed_gives_one_course_of_events(make):
    def course(seed):
        env = make("ant", num_envs=2, seed=seed)
        data = env.rollout(4)["observation"]
        env.close()
        return data

    seed = 2**62 + 3  # NumPy's global state, which Isaac Lab sets, takes 32 bits
    first = course(seed)
    assert torch.equal(first, course(seed))
    assert (first != course(seed + 1)).any()


@needs_isaaclab
def test_one_simulation_a_process(make):
    first = make("cartpole", num_envs=2)
    with pytest.raises(RuntimeError, match="close the other"):
        make("ant")
    first.close()
    assert make("cartpole", num_envs=2).rollout(2).batch_size == (2, 2)


@needs_isaaclab
def test_ids_of_both_versions_name_one_task(make):
    for name in ("Isaac-Cartpole-v0", "Isaac-Cartpole"):
        env = make(name, num_envs=1)
        assert env.base_env._env.spec.id == "Isaac-Cartpole"
        env.close()


@needs_isaaclab
def test_the_critics_group_is_read_and_actions_are_clipped_as_the_reference_does(make):
    """A task with a group for the critic and a bound of the action, registered as Isaac Lab's users do."""
    import gymnasium
    import isaaclab_tasks  # noqa: F401
    from isaaclab_tasks.utils import load_cfg_from_registry

    def environment():
        cfg = load_cfg_from_registry("Isaac-Cartpole", "env_cfg_entry_point")
        cfg.observations.critic = type(cfg.observations.policy)()
        return cfg

    def agent():
        cfg = load_cfg_from_registry("Isaac-Cartpole", "rsl_rl_cfg_entry_point")
        cfg.clip_actions = 0.5
        return cfg

    gymnasium.register(
        id="Test-Critic",
        entry_point="isaaclab.envs:ManagerBasedRLEnv",
        kwargs={"env_cfg_entry_point": environment, "rsl_rl_cfg_entry_point": agent},
    )
    env = make("Test-Critic")
    data = env.rollout(30)
    assert torch.equal(data["observation"], data["critic_observation"])
    assert data["critic_observation"].isfinite().all() and data["critic_observation"].abs().max() > 0
    after = []
    for action in (0.5, 7.0):
        env.set_seed(0)
        step = env.step(env.reset().set("action", torch.full((4, 1), action)))
        assert (step["action"] == action).all(), "the stored action must stay what the policy scored"
        after.append(step["next", "observation"])
    torch.testing.assert_close(*after)


@needs_isaaclab
def test_staggered_episodes_do_not_time_out_together(make):
    torch.manual_seed(0)
    env = make("cartpole", num_envs=16, steps=40)
    td = env.reset()
    stagger_episodes(env)
    ends = []
    for _ in range(40):
        step, td = env.step_and_maybe_reset(env.rand_action(td))
        ends.append(step["next", "done"].sum().item())
    assert max(ends) < 8 and sum(ends) >= 16


@needs_isaaclab
def test_the_camera_follows_the_robot(make):
    torch.manual_seed(0)
    env = make("ant", num_envs=1, render=True)
    view, td = make_view(env), env.reset()
    assert view.fps == 60
    frames = []
    for _ in range(12):
        _, td = env.step_and_maybe_reset(env.rand_action(td))
        frames.append(torch.as_tensor(view.frame(td)).float())
    assert frames[0].shape == (352, 640, 3)
    background = frames[-1][0, 0]
    ant = ((frames[-1] - background).abs().amax(-1) > 5).nonzero()
    assert len(ant) > 1000, "the ant is not in the picture"
    center = ant.float().mean(0)
    assert abs(center[0] - 176) < 80 and abs(center[1] - 320) < 80
    assert (frames[0] != frames[-1]).any()


@needs_isaaclab
@pytest.mark.parametrize(
    ("task", "options", "error", "messages"),
    [
        ("antt", {}, ValueError, ["Unknown Isaac Lab task 'antt'", "Did you mean", "Isaac-Humanoid"]),
        ("ant", {"overrides": {"episode_lenght_s": 1.0}}, ValueError, ["episode_lenght_s"]),
        ("ant", {"physics": "newton_mjwrap"}, ValueError, ["physics=newton_mjwrap"]),
        ("ant", {"physics": "isaacsim_physx"}, ImportError, ["needs Isaac Sim"]),
        ("ant", {"num_envs": 0}, ValueError, ["num_envs", "0"]),
        ("ant", {"phisics": "newton_mjwarp"}, ValueError, ["phisics", "physics"]),
        ("Isaac-Cartpole-Direct", {}, ValueError, ["not a manager-based task"]),
    ],
)
def test_mistakes_are_explained(make, task, options, error, messages):
    with pytest.raises(error) as raised:
        make(task, **options)
    for message in messages:
        assert message in str(raised.value)


@needs_isaaclab
@pytest.mark.parametrize("task", TASKS)
def test_a_configuration_trains_by_the_entry_script(assets, tmp_path, task):
    overrides = [LENGTH]
    if task.endswith("rough"):
        overrides += [
            "+env.options.overrides.scene.terrain.terrain_generator={num_rows:3,num_cols:3}",
            "+env.options.overrides.sim.physics.collision_cfg.max_triangle_pairs=200000",
        ]
    policy = "gaussian" if task == "humanoid" else "reversible_flow"
    output = train(assets, tmp_path, f"env=isaaclab/{task}", f"policy={policy}", *overrides)
    columns = read_metrics(tmp_path / "run" / "metrics.csv")
    assert len(columns["frames"]) == 3, output
    for name in ("train/return", "train/kl", "train/loss_critic", "task/Episode_Termination/time_out"):
        assert all(value == value for value in columns[name]), name
    if policy == "reversible_flow":
        assert max(columns["train/inversion_error"]) < 1e-2
    assert columns["eval/zero_noise/return"][-1] == columns["eval/zero_noise/return"][-1]


LENGTH = "+env.options.overrides.episode_length_s=0.3"


def train(assets, tmp_path, *overrides):
    command = [sys.executable, str(SCRIPT), "device=cpu", "env.num_envs=4", "collector.frames_per_batch=64"]
    command += ["collector.total_frames=192", "loss.epochs=2", f"hydra.run.dir={tmp_path / 'run'}", *overrides]
    environment = os.environ | {"ISAACSIM_ASSET_ROOT": str(assets)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@needs_isaaclab
def test_a_run_evaluates_in_its_own_simulation_films_and_resumes(assets, tmp_path):
    run = tmp_path / "run"
    train(assets, tmp_path, "env=isaaclab/cartpole", "eval.interval=64", "checkpoint.interval=64", "video=true", LENGTH)
    columns = read_metrics(run / "metrics.csv")
    assert all(value == value for value in columns["eval/zero_noise/return"])
    assert (run / "video.mp4").stat().st_size > 1000
    command = [sys.executable, str(SCRIPT), f"resume={run}", "collector.total_frames=320"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    resumed = read_metrics(run / "metrics.csv")
    assert resumed["frames"] == [64, 128, 192, 256, 320]
    assert resumed["train/kl"][:3] == columns["train/kl"]
