"""Exported policies: both files act as the actor does, and the folder says what they are."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrl.envs import ActionScaling, ExplorationType, VecNormV2, set_exploration_type

from torchrl_genpo.commands.export import main as export
from torchrl_genpo.deploy import ExportedPolicy, PolicyExporter
from torchrl_genpo.envs import freeze_normalization, make_env
from torchrl_genpo.envs.xhand import Scene
from torchrl_genpo.models import make_actor, make_solver

sys.path.append(str(Path(__file__).parents[1]))
from forks import run_script

RUNTIMES = ("onnx", "torch")


@pytest.mark.parametrize("scale", [None, 0.5], ids=["plain", "scaled actions"])
@pytest.mark.parametrize("name", ["reversible_flow", "gaussian"])
def test_an_exported_policy_runs_an_episode_as_the_actor_does(name, scale, tmp_path):
    """From raw observations to executed actions, against the actor in its normalised environment, step by step."""
    env, raw_env = (make_env("half_cheetah", 1, seed=0, normalize_observation=flag) for flag in (True, False))
    env.rollout(50)
    freeze_normalization(env)
    if scale is not None:
        env.append_transform(ActionScaling(loc=torch.full((6,), 0.1), scale=torch.full((6,), scale)))
    actor = make_actor(env, name, hidden_sizes=(32, 32))
    for parameter in actor.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = PolicyExporter(actor, env).save(tmp_path)
    policies = [ExportedPolicy(folder, runtime) for runtime in RUNTIMES]
    for each in (env, raw_env):
        each.set_seed(5)
    td, raw_td = env.reset(), raw_env.reset()
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        for _ in range(10):
            chosen = actor(td)["action"]
            expected = (chosen if scale is None else 0.1 + scale * chosen).clamp(-1, 1)
            for policy in policies:
                action = policy(raw_td["observation"][0].numpy())
                np.testing.assert_allclose(action, expected[0], rtol=0, atol=1e-5)
            pairs = ((env, td.set("action", chosen)), (raw_env, raw_td.set("action", expected)))
            td, raw_td = (each.step(step)["next"] for each, step in pairs)
    assert np.abs(action).max() > 0.01


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_policy_of_the_hand_remembers_its_history(hand_env, hand_actor, policy_folder, runtime):
    policy = ExportedPolicy(policy_folder, runtime)
    for _ in range(2):  # reset() begins an episode
        policy.reset()
        hand_env.set_seed(3)
        td = hand_env.reset()
        for _ in range(5):
            with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
                td = hand_actor(td)
            raw = torch.cat([td["joint_position"], td["joint_target"]], -1)[0].numpy()
            np.testing.assert_allclose(policy(raw), td["action"][0].clamp(-1, 1), rtol=0, atol=1e-5)
            td = hand_env.step(td)["next"].exclude("reward")


def test_the_files_take_batches_of_any_size(policy_folder):
    policy = ExportedPolicy(policy_folder)
    for size in (1, 9):
        inputs = {"observation": np.zeros((size, 24), np.float32), "history": np.zeros((size, 2, 24), np.float32)}
        assert policy.run(inputs)["action"].shape == (size, 8)


@pytest.mark.parametrize("size", [1, 5])
def test_the_program_takes_contiguous_tensors(policy_folder, size):
    program = torch.export.load(policy_folder / "policy.pt2").module()
    action, _ = program(observation=torch.zeros(size, 24), history=torch.zeros(size, 2, 24))
    assert action.shape == (size, 8)


def test_the_folder_says_what_the_policy_is(policy_folder):
    metadata = json.loads((policy_folder / "policy.json").read_text())
    assert metadata["dt"] == 0.05 and metadata["policy"]["num_steps"] == 5
    assert metadata["observation"]["parts"] == {"joint_position": 12, "joint_target": 12}
    assert (
        metadata["observation"]["frames"] == 3 and len(metadata["observation"]["normalization"]["stacked"]["loc"]) == 72
    )
    assert metadata["action"]["low"] == [-1.0] * 8 and metadata["hand"]["active"][-1] == "mid_2"
    assert max(metadata["largest_difference"].values()) < 1e-5
    assert {"torch", "onnx"} <= set(metadata["versions"]) and metadata["source"]["commit"]


def test_an_exported_action_is_the_one_that_the_task_itself_takes(tmp_path):
    """The environment takes [-1, 1] for the force in [-3, 3], and so does the actor; the folder knows of neither."""
    env = make_env("pendulum", 2, seed=0, normalize_observation=False)
    actor = make_actor(env, hidden_sizes=(16,))
    torch.nn.init.normal_(actor.velocity.trunk[-1].weight, std=2.0)
    policy = ExportedPolicy(PolicyExporter(actor, env).save(tmp_path))
    assert policy.metadata["action"] == {"size": 1, "low": [-3.0], "high": [3.0]}
    td = env.reset()
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        expected = 3 * actor(td)["action"].clamp(-1, 1)
    for row in range(2):
        np.testing.assert_allclose(policy(td["observation"][row].numpy()), expected[row], rtol=0, atol=3e-5)
    assert expected.abs().max() > 0.1


def test_an_observation_that_never_changed_is_exported_too(tmp_path):
    env = make_env("half_cheetah", 1, seed=0)
    env.rollout(20)
    freeze_normalization(env)
    (norm,) = (transform for transform in env.transform if isinstance(transform, VecNormV2))
    norm._var["observation"][..., 0] = norm._loc["observation"][..., 0].square() - 1e-7  # by rounding
    assert norm.scale["observation"].isnan().any()
    metadata = ExportedPolicy(PolicyExporter(make_actor(env, hidden_sizes=(16,)), env).save(tmp_path)).metadata
    assert max(metadata["largest_difference"].values()) <= 1e-5


def test_bounds_and_control_period_are_those_of_the_task():
    env = make_env("hopper", num_envs=1)
    metadata = PolicyExporter(make_actor(env), make_env("hopper", normalize_observation=False)).metadata
    assert metadata["action"] == {"size": 3, "low": [-1.0] * 3, "high": [1.0] * 3}
    assert metadata["dt"] == pytest.approx(0.008) and "hand" not in metadata


def test_an_export_that_differs_from_its_actor_is_refused(hand_env, hand_actor, tmp_path, monkeypatch):
    exporter = PolicyExporter(hand_actor, hand_env)
    with torch.no_grad():
        exporter.module.head.velocity.trunk[-1].bias.add_(0.01)
    with pytest.raises(RuntimeError, match="differ from the actor"):
        exporter.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_refused_export_leaves_the_policy_that_was_there(hand_env, hand_actor, policy_folder, tmp_path):
    folder = shutil.copytree(policy_folder, tmp_path / "policy")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    exporter = PolicyExporter(hand_actor, hand_env)
    with torch.no_grad():
        exporter.module.head.velocity.trunk[-1].bias.add_(0.01)
    with pytest.raises(RuntimeError, match="differ from the actor"):
        exporter.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "options",
    [
        {"solver": make_solver("three_step")},
        {"name": "dummy_flow"},
        {"start": {"name": "consistent", "tau": 0.1, "learn_tau": "per_dimension"}},
        {"start": {"name": "independent", "scale": "state_dependent"}},
        {"transformer": {"chunk_size": 2, "width": 16, "num_layers": 1, "num_heads": 2}},
    ],
    ids=str,
)
def test_every_kind_of_flow_is_exported_and_read(options, tmp_path):
    env = make_env("half_cheetah", 1, seed=0)
    actor = make_actor(freeze_normalization(env), hidden_sizes=(16,), **options)
    metadata = ExportedPolicy(PolicyExporter(actor, env).save(tmp_path)).metadata
    assert max(metadata["largest_difference"].values()) <= 1e-5


def test_noise_is_an_input_where_it_was_asked_for(hand_env, hand_actor, policy_folder, tmp_path):
    observation = np.tile(Scene().start_pose(), 2)
    sampling = ExportedPolicy(PolicyExporter(hand_actor, hand_env, noise_input=True).save(tmp_path))
    plain = ExportedPolicy(policy_folder)
    np.testing.assert_allclose(sampling(observation), plain(observation), atol=1e-6)
    noise = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    assert np.abs(sampling(observation, noise) - plain(observation)).max() > 0.1
    with pytest.raises(ValueError, match="takes no noise"):
        plain(observation, noise)


def test_errors_say_what_to_do(policy_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="genpo-export"):
        ExportedPolicy(tmp_path)
    with pytest.raises(ValueError, match="choose from onnx, torch"):
        ExportedPolicy(policy_folder, "tensorrt")
    with pytest.raises(ValueError, match=r"observation of \[24\], got \(23,\)"):
        ExportedPolicy(policy_folder)(np.zeros(23))
    (tmp_path / "policy.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        ExportedPolicy(tmp_path)


def test_a_checkpoint_of_the_entry_script_is_exported_by_one_command(tmp_path, capsys):
    script = Path(__file__).parents[2] / "sota-implementations" / "genpo.py"
    sizes = ["env.num_envs=2", "collector.frames_per_batch=64", "collector.total_frames=64", "loss.mini_batch_size=32"]
    options = ["env=pendulum", *sizes, "eval.num_envs=1", f"hydra.run.dir={tmp_path / 'run'}"]
    assert run_script(script, options, tmp_path / "output.txt")[0] == 0
    export([str(tmp_path / "run"), str(tmp_path / "policy")])
    assert "Difference from the actor: onnx" in capsys.readouterr().out
    metadata = ExportedPolicy(tmp_path / "policy").metadata
    assert metadata["source"]["config"]["env"]["name"] == "pendulum" and len(metadata["source"]["sha256"]) == 64
    command = [str(tmp_path / "run"), str(tmp_path / "policy")]
    with pytest.raises(SystemExit, match="There is no checkpoint and no run"):
        export([str(tmp_path / "none"), command[1]])
    with pytest.raises(SystemExit, match=r"no option evn.num_envs. Did you mean env.num_envs,"):
        export([*command, "--set", "evn.num_envs=4"])
    with pytest.raises(SystemExit, match=r"env.num_envs=x: env.num_envs must be an integer"):
        export([*command, "--set", "env.num_envs=x"])
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="FileExistsError"):
        export([command[0], str(tmp_path / "file"), "--set", "env.num_envs=4"])
