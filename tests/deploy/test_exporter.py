"""Exported policies act as the policy does, and the folder says what they are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import torchrl
from tensordict import TensorDict
from tensordict.nn import (
    AddStateIndependentNormalScale,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn
from torchrl.envs import DoubleToFloat, ExplorationType, GymWrapper, TransformedEnv, set_exploration_type
from torchrl.modules import IndependentNormal, ProbabilisticActor

from torchrl_genpo import ConsistentStart, IndependentStart, ReversibleFlowActor, SteeredStart, VelocityMLP
from torchrl_genpo.baselines import AlternatingCoupling
from torchrl_genpo.commands.export import main as export
from torchrl_genpo.deploy import ExportedPolicy, HandPolicy, PolicyExporter
from torchrl_genpo.envs.xhand import Scene
from torchrl_genpo.flow import VelocityTransformer
from torchrl_genpo.modules import ActionScale, RunningNormalizer, flow_of

pytestmark = pytest.mark.extras("deploy")
onnx = pytest.importorskip("onnx", reason='pip install "torchrl-genpo[deploy]"')

OBS, ACTION = 17, 6  # of half_cheetah


def normalizer(env):
    module = RunningNormalizer(env.observation_spec["observation"].shape[-1])
    module.update(env.rollout(50, break_when_any_done=False)["observation"])
    return module


def flow(obs_dim=OBS, action_dim=ACTION, in_key="normalized_observation", action_key="action", **options):
    velocity = options.pop("velocity", None) or VelocityMLP(obs_dim, action_dim, num_cells=(32, 32))
    actor = ReversibleFlowActor(velocity, in_keys=[in_key], action_key=action_key, **options)
    for parameter in actor.parameters():  # as trained: far from the small first layer
        nn.init.normal_(parameter, std=0.2)
    return actor


def gaussian(action_key="action"):
    net = nn.Sequential(nn.Linear(OBS, ACTION), AddStateIndependentNormalScale(ACTION))
    return ProbabilisticActor(
        TensorDictModule(net, ["normalized_observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=[action_key],
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )


def scale(loc=0.1, factor=0.5):
    return ActionScale(torch.full((ACTION,), loc), torch.full((ACTION,), factor))


def encoder():
    return TensorDictModule(nn.Sequential(nn.Linear(OBS, 24), nn.Tanh()), ["normalized_observation"], ["features"])


POLICIES = {
    "flow": lambda env: ProbabilisticTensorDictSequential(normalizer(env), flow()),
    "scaled": lambda env: ProbabilisticTensorDictSequential(normalizer(env), flow(action_key="raw_action"), scale()),
    "encoded": lambda env: ProbabilisticTensorDictSequential(normalizer(env), encoder(), flow(24, in_key="features")),
    "gaussian": lambda env: TensorDictSequential(normalizer(env), gaussian()),
    "scaled gaussian": lambda env: TensorDictSequential(normalizer(env), gaussian("raw_action"), scale()),
    "bare": lambda env: flow(in_key="observation"),
}


@pytest.mark.parametrize("name", POLICIES)
def test_an_exported_policy_runs_an_episode_as_the_policy_does(name, raw_env, tmp_path):
    """From raw observations to executed actions, step by step."""
    env = raw_env("half_cheetah")
    policy = POLICIES[name](env)
    exported = ExportedPolicy(PolicyExporter(policy, env).save(tmp_path))
    space, largest = env.action_spec.space, 0.0
    env.set_seed(5)
    td = env.reset()
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        for _ in range(10):
            td = policy(td)
            action = exported(td["observation"][0].numpy())
            np.testing.assert_allclose(action, td["action"].clamp(space.low, space.high)[0], rtol=0, atol=1e-5)
            largest = max(largest, np.abs(action).max())
            td = env.step(td)["next"].exclude("reward")
    assert largest > 0.1


def test_a_number_that_is_not_finite_is_seen_as_the_policy_sees_it(raw_env, tmp_path):
    env = raw_env("half_cheetah")
    policy = POLICIES["flow"](env)
    exported = ExportedPolicy(PolicyExporter(policy, env).save(tmp_path))
    observation = torch.randn(4, OBS)
    for row, value in enumerate([float("nan"), float("inf"), -float("inf")]):
        observation[row, 2] = value
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        expected = policy(TensorDict(observation=observation, batch_size=[4]))["action"].clamp(-1, 1)
    action = exported.run({"observation": observation.numpy()})["action"]
    np.testing.assert_allclose(action, expected, rtol=0, atol=1e-5)
    assert np.isfinite(action).all()
    for row in observation[:3]:  # on a robot it is a sensor that failed
        with pytest.raises(ValueError, match="The observation has numbers that are not finite"):
            exported(row.numpy())


@pytest.mark.parametrize("history", [1, 3, 5])
def test_a_hand_policy_stacks_frames_as_its_environment_does(history, raw_env, tmp_path):
    """Number for number, over two episodes of a hand with noise, delays and biases."""
    env = raw_env("xhand/nut_bolt", history=history, max_steps=6)
    actor = flow(24 * history, 8, in_key="observation")
    policy = HandPolicy(ExportedPolicy(PolicyExporter(actor, env).save(tmp_path)))
    steps = env.rollout(12, break_when_any_done=False)[0]
    assert (steps["step_count"] == 0).sum() == 2
    for step in steps:
        if step["step_count"] == 0:
            policy.reset()
        observation = policy.observe(step["measured_position"].double().numpy(), step["joint_target"].double().numpy())
        np.testing.assert_array_equal(observation, step["observation"])


def test_a_policy_of_the_hand_acts_as_in_its_environment(hand_env, hand_actor, policy_folder):
    policy = HandPolicy(ExportedPolicy(policy_folder))
    for _ in range(2):  # reset() begins an episode
        policy.reset()
        hand_env.set_seed(3)
        td = hand_env.reset()
        for _ in range(5):
            with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
                td = hand_actor(td)
            position, target = (td[key][0].double().numpy() for key in ("joint_position", "joint_target"))
            action, target = policy.act(position, target)
            np.testing.assert_allclose(action, td["action"][0].clamp(-1, 1), rtol=0, atol=1e-5)
            td = hand_env.step(td)["next"].exclude("reward")
            np.testing.assert_allclose(target, td["joint_target"][0], rtol=0, atol=1e-5)


def test_a_policy_of_another_task_cannot_drive_a_hand(policy_folder, tmp_path):
    folder = shutil.copytree(policy_folder, tmp_path / "policy")
    for change, message in {
        ("hand", "joints", 0): "not trained on a hand",
        ("hand", "frames", None): r"\(48, 8\).*\(72, 8\)",
    }.items():
        metadata = json.loads((policy_folder / "policy.json").read_text())
        if change[1] == "joints":
            del metadata["hand"]
        else:
            metadata["hand"]["frames"] = 2
        (folder / "policy.json").write_text(json.dumps(metadata))
        with pytest.raises(ValueError, match=message):
            HandPolicy(ExportedPolicy(folder))


def test_the_model_takes_batches_of_any_size(policy_folder):
    policy = ExportedPolicy(policy_folder)
    for size in (1, 9):
        assert policy.run({"observation": np.zeros((size, 72), np.float32)})["action"].shape == (size, 8)


def test_the_model_holds_its_weights_and_no_foreign_operators(policy_folder):
    assert sorted(path.name for path in policy_folder.iterdir()) == ["policy.json", "policy.onnx"]
    model = onnx.load(policy_folder / "policy.onnx", load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}


def test_the_folder_says_what_the_policy_is(policy_folder):
    metadata = json.loads((policy_folder / "policy.json").read_text())
    assert metadata["dt"] == 0.05 and metadata["policy"]["num_steps"] == 5
    assert metadata["inputs"] == {"observation": [72]} and metadata["outputs"] == ["action"]
    assert metadata["action"] == {"shape": [8], "low": [-1.0] * 8, "high": [1.0] * 8}
    made = [transform.partition("(")[0] for transform in metadata["observation_transforms"]]
    assert made == ["Noise", "CatTensors", "History", "CatTensors"]
    assert metadata["hand"]["frames"] == 3 and metadata["hand"]["active"][-1] == "mid_2"
    assert metadata["largest_difference"] < 1e-5
    assert metadata["versions"]["torchrl"] == torchrl.__version__ and "onnx" in metadata["versions"]
    assert metadata["source"]["commit"]


def test_bounds_and_control_period_are_those_of_the_environment(tmp_path):
    env = TransformedEnv(GymWrapper(gymnasium.make("InvertedPendulum-v5")), DoubleToFloat(["observation"]))
    exporter = PolicyExporter(flow(4, 1, in_key="observation"), env)
    assert exporter.metadata["action"] == {"shape": [1], "low": [-3.0], "high": [3.0]}
    assert exporter.metadata["dt"] == pytest.approx(0.04) and "hand" not in exporter.metadata
    nn.init.constant_(exporter._policy.velocity.trunk[-1].bias, 50.0)
    exported = ExportedPolicy(PolicyExporter(exporter._policy, env).save(tmp_path))
    assert exported(np.zeros(4)) == [3.0] == exported.run({"observation": np.zeros((1, 4))})["action"]


def test_an_infinite_bound_is_none(tmp_path):
    clipped = gymnasium.wrappers.ClipAction(gymnasium.make("InvertedPendulum-v5"))  # whose own bounds are infinite
    env = TransformedEnv(GymWrapper(clipped), DoubleToFloat(["observation"]))
    actor = flow(4, 1, in_key="observation")
    nn.init.constant_(actor.velocity.trunk[-1].bias, 50.0)
    exported = ExportedPolicy(PolicyExporter(actor, env).save(tmp_path))
    assert exported.metadata["action"] == {"shape": [1], "low": [None], "high": [None]}
    assert exported(np.zeros(4)) > 10


def test_an_observation_that_never_changed_is_exported_too(raw_env, tmp_path):
    env = raw_env("half_cheetah")
    norm = RunningNormalizer(OBS)
    norm.update(torch.ones(20, OBS))
    metadata = ExportedPolicy(
        PolicyExporter(ProbabilisticTensorDictSequential(norm, flow()), env).save(tmp_path)
    ).metadata
    assert metadata["largest_difference"] <= 1e-5


def spoiled(exporter):
    with torch.no_grad():
        flow_of(exporter.module.policy.policy).velocity.trunk[-1].bias.add_(0.01)
    return exporter


def test_an_export_that_differs_from_its_policy_is_refused(hand_env, hand_actor, policy_folder, tmp_path):
    """It leaves nothing, or the policy that was there."""
    folder = shutil.copytree(policy_folder, tmp_path / "policy")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for target in (tmp_path / "new", folder):
        with pytest.raises(RuntimeError, match="differ from the policy"):
            spoiled(PolicyExporter(hand_actor, hand_env)).save(target)
    assert not list((tmp_path / "new").iterdir())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


KINDS = {
    "coupling": lambda: {"solver": AlternatingCoupling()},
    "consistent": lambda: {"start": ConsistentStart(0.1, ACTION)},
    "steered": lambda: {"start": SteeredStart(IndependentStart(), ACTION, 32)},
    "transformer": lambda: {
        "velocity": VelocityTransformer(OBS, ACTION, chunk_size=2, width=16, num_layers=1, num_heads=2)
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_flow_is_exported_and_read(kind, raw_env, tmp_path):
    env = raw_env("half_cheetah")
    policy = ProbabilisticTensorDictSequential(normalizer(env), flow(**KINDS[kind]()))
    metadata = ExportedPolicy(PolicyExporter(policy, env).save(tmp_path)).metadata
    assert metadata["largest_difference"] <= 1e-5


def test_noise_is_an_input_where_it_was_asked_for(hand_env, hand_actor, policy_folder, tmp_path):
    observation = np.tile(Scene().start_pose(), 6)
    sampling = ExportedPolicy(PolicyExporter(hand_actor, hand_env, noise_input=True).save(tmp_path))
    plain = ExportedPolicy(policy_folder)
    np.testing.assert_allclose(sampling(observation), plain(observation), atol=1e-6)
    noise = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    assert np.abs(sampling(observation, noise) - plain(observation)).max() > 0.1
    with pytest.raises(ValueError, match="takes no noise"):
        plain(observation, noise)
    with pytest.raises(ValueError, match=r"noise of the shape \[16\], got \(8,\)"):
        sampling(observation, noise[:8])


def test_errors_say_what_to_do(policy_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="genpo-export"):
        ExportedPolicy(tmp_path)
    with pytest.raises(ValueError, match=r"observation of the shape \[72\], got \(71,\)"):
        ExportedPolicy(policy_folder)(np.zeros(71))
    for version in (1, 99):
        (tmp_path / "policy.json").write_text(json.dumps({"format": version}))
        with pytest.raises(ValueError, match=f"format {version}"):
            ExportedPolicy(tmp_path)
    shutil.copy(policy_folder / "policy.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"policy\.onnx"):
        ExportedPolicy(tmp_path)


MISSING = object()
REQUIRED = (
    *("format", "dt", "action", "inputs", "outputs", "action.shape", "action.low", "action.high"),
    *(
        f"hand.{name}"
        for name in ("side", "joints", "active", "masked", "scale", "low", "high", "start_pose", "frames")
    ),
)
WRONG = (
    *(("format", "one"), ("format", True), ("dt", "0.05"), ("dt", -1.0), ("dt", float("nan"))),
    *(("action.shape", 9), ("action.low", 1), ("action.low", [-1.0]), ("action.high", [float("inf")] * 8)),
    *(("action.low", ["x"] * 8), ("inputs.observation", [10**9]), ("inputs.observation", [-1])),
    *(("inputs", {}), ("inputs", {"noise": [16]}), ("inputs", {"agents.observation": [-1]})),
    *(("outputs", ["value"]), ("outputs", [])),
    *(("outputs", ["action", "next.hidden"]), ("outputs", ["action", "next.observation"])),
    *(("hand", 3), ("hand.active", ["toe"]), ("hand.low", [0.0]), ("hand.index_bend_sign", 0), ("hand.frames", 0)),
)


@pytest.mark.parametrize(("part", "value"), [*((name, MISSING) for name in REQUIRED), *WRONG])
def test_a_description_with_a_missing_or_wrong_part_is_refused_by_its_name(part, value, policy_folder, tmp_path):
    metadata = json.loads((policy_folder / "policy.json").read_text())
    *sections, name = part.split(".")
    section = metadata
    for each in sections:
        section = section[each]
    if value is MISSING:
        del section[name]
    else:
        section[name] = value
    shutil.copy(policy_folder / "policy.onnx", tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"policy\.json is damaged") as raised:
        ExportedPolicy(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 10**5, b'{"format": 2}'])
def test_a_damaged_description_is_refused_by_its_name(content, tmp_path):
    (tmp_path / "policy.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"policy\.json is damaged"):
        ExportedPolicy(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "garbled"])
def test_a_damaged_model_is_refused_by_its_name(damage, policy_folder, tmp_path):
    content = (policy_folder / "policy.onnx").read_bytes()
    garbled = bytes(byte ^ 0xFF if index % 97 == 0 else byte for index, byte in enumerate(content))
    contents = {"cut": content[: len(content) // 2], "empty": b"", "text": b"no model", "garbled": garbled}
    shutil.copy(policy_folder / "policy.json", tmp_path)
    (tmp_path / "policy.onnx").write_bytes(contents[damage])
    with pytest.raises(ValueError, match=r"policy\.onnx"):
        ExportedPolicy(tmp_path)


def test_a_model_of_another_policy_is_refused(policy_folder, raw_env, tmp_path):
    env = raw_env("pendulum")
    folder = PolicyExporter(flow(4, 1, in_key="observation"), env).save(tmp_path)
    shutil.copy(policy_folder / "policy.json", folder)
    with pytest.raises(ValueError, match=r"policy\.onnx cannot be run as .*policy\.json says"):
        ExportedPolicy(folder)
    metadata = json.loads((folder / "policy.json").read_text())
    del metadata["hand"]
    metadata["inputs"] = {"observation": [4]}
    (folder / "policy.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"policy\.onnx gives action of the shape \(1,\)"):
        ExportedPolicy(folder)


def test_a_checkpoint_of_the_entry_script_is_exported_by_one_command(tmp_path, capsys):
    script = Path(__file__).parents[2] / "sota-implementations" / "genpo.py"
    sizes = ["env.num_envs=2", "collector.frames_per_batch=64", "collector.total_frames=64", "loss.mini_batch_size=32"]
    options = ["env=pendulum", *sizes, "eval.num_envs=1", f"hydra.run.dir={tmp_path / 'run'}"]
    subprocess.run([sys.executable, str(script), *options], check=True, capture_output=True)
    export([str(tmp_path / "run"), str(tmp_path / "policy")])
    assert "Largest difference from the policy: " in capsys.readouterr().out
    metadata = ExportedPolicy(tmp_path / "policy").metadata
    assert metadata["source"]["config"]["env"]["name"] == "pendulum" and len(metadata["source"]["sha256"]) == 64
    assert metadata["action"] == {"shape": [1], "low": [-3.0], "high": [3.0]}
    command = [str(tmp_path / "run"), str(tmp_path / "policy")]
    with pytest.raises(SystemExit, match="There is no checkpoint and no run"):
        export([str(tmp_path / "none"), command[1]])
    with pytest.raises(SystemExit, match=r"evn: There is no such option"):
        export([*command, "--set", "evn.num_envs=4"])
    with pytest.raises(SystemExit, match=r"env\.num_envs"):
        export([*command, "--set", "env.num_envs=x"])
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="FileExistsError"):
        export([command[0], str(tmp_path / "file"), "--set", "env.num_envs=4"])
