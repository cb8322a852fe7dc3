"""The policies that come with the library are small, hold no traces of a machine, and reach what is said of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from torchrl_genpo.trained import trained_policies
from torchrl_genpo.training import evaluate
from torchrl_genpo.training.checkpoint import find_checkpoint, load_policy, read_checkpoint

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "trained_policies.jsonl"
MEASURED = {record["name"]: record for record in map(json.loads, RESULTS.read_text().splitlines())}


@pytest.fixture
def installed(name):
    """Skips the policy of a simulator that is missing."""
    if name.startswith("robomimic/"):
        pytest.importorskip("robosuite", reason="the README says how to install robosuite")


def test_all_are_measured():
    assert set(trained_policies()) == set(MEASURED)


@pytest.mark.parametrize("name", trained_policies())
def test_a_name_finds_a_small_file_without_paths_of_a_machine(name):
    path = find_checkpoint(Path(name))
    assert path.stat().st_size < 3_000_000
    config = read_checkpoint(path)["config"]
    assert config["env"]["name"] == name
    assert "/work" not in json.dumps(config) and "/home" not in json.dumps(config)


@pytest.mark.parametrize("name", trained_policies())
@pytest.mark.usefixtures("installed")
def test_a_policy_reaches_what_was_measured(name):
    policy, env, _ = load_policy(trained_policies()[name], 4, 0)
    returns = evaluate(env, policy, 10_000, 1)
    for noise in ("zero", "random"):  # four episodes against a mean of a hundred
        assert returns[f"eval/{noise}_noise/return"] > 0.6 * MEASURED[name][f"eval/{noise}_noise/return"]


@pytest.mark.parametrize("kind", ["name", "checkpoint", "run"])
def test_a_policy_is_loaded_by_what_a_user_has(kind, tmp_path):
    checkpoint = trained_policies()["half_cheetah"]
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(checkpoint, tmp_path / "checkpoints" / "checkpoint-000000000001.pt")
    path = {"name": "half_cheetah", "checkpoint": str(checkpoint), "run": tmp_path}[kind]
    policy, env, _ = load_policy(path, num_envs=2)
    assert policy(env.reset())["action"].shape == (2, 6)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match=r"half_cheetah.*xhand/nut_bolt"):
        find_checkpoint(Path("half_cheetahh"))
