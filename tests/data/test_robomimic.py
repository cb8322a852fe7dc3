"""robomimic's files: what is written is read, by robomimic itself too; what is wrong is named."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from torchrl_genpo.data import (
    data_range,
    make_chunk_buffer,
    read_demonstrations,
    read_env_args,
    write_demonstrations,
)

pytestmark = pytest.mark.extras("robomimic")
h5py = pytest.importorskip("h5py", reason="needs h5py: pip install 'torchrl-genpo[robomimic]'")
ENV_ARGS = {"env_name": "PickPlaceCan", "env_version": "1.5.2", "type": 1, "env_kwargs": {"robots": ["Panda"]}}
KEYS = ("robot0_eef_pos", "object")


def demonstration(length, seed):
    generator = torch.Generator().manual_seed(seed)
    obs = {
        "robot0_eef_pos": torch.randn(length, 3, generator=generator).numpy(),
        "object": torch.randn(length, 14, generator=generator).numpy(),
    }
    return {
        "obs": obs,
        "next_obs": obs,
        "actions": torch.rand(length, 7, generator=generator).numpy(),
        "rewards": torch.zeros(length).numpy(),
        "dones": torch.zeros(length).numpy(),
        "states": torch.zeros(length, 5).numpy(),
        "model_file": "<mujoco/>",
    }


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "demos.hdf5"
    written = [demonstration(length, length) for length in (4, 6, 5)]
    write_demonstrations(path, written, ENV_ARGS, valid_fraction=0.34)
    return path, written


def test_what_is_written_is_read(file):
    path, written = file
    read = read_demonstrations(path, KEYS)
    assert [len(demonstration) for demonstration in read] == [4, 6, 5]
    for mine, theirs in zip(read, written, strict=True):
        expected = torch.cat([torch.as_tensor(theirs["obs"][key]) for key in KEYS], -1)
        assert torch.equal(mine["observation"], expected)
        assert torch.equal(mine["action"], torch.as_tensor(theirs["actions"]))
    assert read_env_args(path) == ENV_ARGS
    assert not list(path.parent.glob(".*")), "temporary files were left behind"


def test_filter_keys_and_numbers_choose_demonstrations(file):
    path, _ = file
    assert [len(d) for d in read_demonstrations(path, KEYS, filter_key="train")] == [4, 6]
    assert [len(d) for d in read_demonstrations(path, KEYS, filter_key="valid")] == [5]
    assert [len(d) for d in read_demonstrations(path, KEYS, num_demonstrations=1)] == [4]
    with pytest.raises(ValueError, match="holds 3 demonstrations, not 4"):
        read_demonstrations(path, KEYS, num_demonstrations=4)


def test_chunks_end_with_their_demonstration_and_say_so(file):
    path, _ = file
    demonstrations = read_demonstrations(path, KEYS)
    data = make_chunk_buffer(demonstrations, 3, batch_size=8)[:]
    assert data.batch_size == (15,)
    row = 0
    for steps in demonstrations:
        action = steps["action"]
        for t in range(len(steps)):
            inside = [min(t + i, len(steps) - 1) for i in range(3)]
            assert torch.equal(data[row]["action"].view(3, 7), action[inside])
            is_pad = data[row]["action_is_pad"].view(3, 7)
            assert is_pad.all(1).tolist() == [t + i >= len(steps) for i in range(3)] == is_pad.any(1).tolist()
            assert torch.equal(data[row]["observation"], steps["observation"][t])
            row += 1


def test_the_range_maps_the_data_onto_minus_one_to_one(file):
    path, written = file
    written[0]["obs"]["object"][:, 2] = 7.0
    for other in written[1:]:
        other["obs"]["object"][:, 2] = 7.0  # never changes
    write_demonstrations(path, written, ENV_ARGS)
    demonstrations = read_demonstrations(path, KEYS)
    loc, scale = data_range(demonstrations, "observation")
    scaled = (torch.cat([steps["observation"] for steps in demonstrations]) - loc) / scale
    changing = torch.arange(17) != 3 + 2
    torch.testing.assert_close(scaled.amin(0)[changing], -torch.ones(16))
    torch.testing.assert_close(scaled.amax(0)[changing], torch.ones(16))
    assert (scaled[:, 5] == 0).all()


def damaged(path, damage):
    with h5py.File(path, "a") as opened:
        damage(opened)


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (lambda f: f["data/demo_1"].pop("actions"), ["demo_1", "'actions'", "rewards"]),
        (lambda f: f["data/demo_1/obs"].pop("object"), ["demo_1", "'obs/object'", "robot0_eef_pos"]),
        (lambda f: f["data"].pop("demo_2"), ["demo_2", "is missing"]),
        (lambda f: f["data/demo_1/obs/object"].resize((2, 14)), ["demo_1", "'obs/object' has 2 steps", "has 6"]),
        (lambda f: f.pop("data"), ["not a robomimic file", "mask"]),
    ],
)
def test_a_damaged_file_is_refused_and_what_is_wrong_named(file, damage, messages):
    path, _ = file
    if "resize" in damage.__code__.co_names:
        damaged(path, lambda f: f["data/demo_1/obs"].pop("object"))
        damaged(
            path, lambda f: f["data/demo_1/obs"].create_dataset("object", data=[[0.0] * 14] * 6, maxshape=(None, 14))
        )
    damaged(path, damage)
    with pytest.raises(ValueError) as raised:
        read_demonstrations(path, KEYS, filter_key="valid" if "demo_2" in messages else None)
    for message in messages:
        assert message in str(raised.value)


def test_a_file_without_rewards_and_dones_is_read(file):
    """MimicGen's generator writes such files."""
    path, written = file
    damaged(path, lambda f: [f[f"data/demo_{i}"].pop(key) for i in range(3) for key in ("rewards", "dones")])
    for mine, theirs in zip(read_demonstrations(path, KEYS), written, strict=True):
        assert torch.equal(mine["action"], torch.as_tensor(theirs["actions"]))


def reallocate(key, shape):
    """Replaces a dataset by one that was allocated and never written, of which HDF5 stores nothing."""

    def damage(opened):
        opened["data/demo_1"].pop(key)
        opened["data/demo_1"].create_dataset(key, shape, "f8")

    return damage


def test_observations_and_actions_that_were_never_written_are_not_taken_for_zeros(file):
    path, _ = file
    damaged(path, reallocate("obs/object", (6, 14)))
    with pytest.raises(ValueError, match=r"demo_1: 'obs/object' was allocated, but never written"):
        read_demonstrations(path, KEYS)
    damaged(path, reallocate("actions", (6, 7)))
    with pytest.raises(ValueError, match=r"demo_1: 'actions' was allocated, but never written"):
        read_demonstrations(path, KEYS)


@pytest.mark.parametrize(
    ("key", "shape"), [("obs/object", (10**12, 14)), ("actions", (6, 10**12)), ("actions", (10**12, 7))]
)
def test_a_claim_of_terabytes_of_which_nothing_is_stored_is_refused_unread(file, key, shape):
    path, _ = file
    damaged(path, reallocate(key, shape))
    with pytest.raises(ValueError, match=r"has 1000000000000 steps|never written"):
        read_demonstrations(path, KEYS)


@pytest.mark.parametrize("has_actions", [True, False])
def test_an_empty_demonstration_is_left_out_and_named(file, has_actions):
    path, _ = file

    def damage(opened):
        opened["data"].pop("demo_1")
        group = opened["data"].create_group("demo_1")
        if has_actions:
            group.create_dataset("actions", (0, 7), "f8")

    damaged(path, damage)
    with pytest.warns(UserWarning, match=r"demo_1 without a step"):
        assert [len(demonstration) for demonstration in read_demonstrations(path, KEYS)] == [4, 5]
    with pytest.warns(UserWarning, match="demo_1"):
        assert [len(read) for read in read_demonstrations(path, KEYS, num_demonstrations=2)] == [4, 5]
    with pytest.warns(UserWarning, match="demo_1"), pytest.raises(ValueError, match="holds 2 demonstrations, not 3"):
        read_demonstrations(path, KEYS, num_demonstrations=3)


def test_values_that_are_not_finite_are_refused(file):
    path, _ = file

    def damage(opened):
        opened["data/demo_0/obs/object"][2, 3] = float("nan")

    damaged(path, damage)
    with pytest.raises(ValueError, match=r"demo_0: 'obs/object' has values that are not finite"):
        read_demonstrations(path, KEYS)


def test_files_that_are_cut_short_foreign_or_absent_are_named(file, tmp_path):
    path, _ = file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a whole HDF5 file"):
        read_demonstrations(path, KEYS)
    (tmp_path / "text.hdf5").write_text("hello")
    with pytest.raises(ValueError, match="not a whole HDF5 file"):
        read_env_args(tmp_path / "text.hdf5")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.hdf5"):
        read_demonstrations(tmp_path / "nowhere.hdf5", KEYS)


def test_wrong_requests_are_explained(file):
    path, _ = file
    with pytest.raises(ValueError, match="no filter key 'trian'; it has train, valid"):
        read_demonstrations(path, KEYS, filter_key="trian")
    damaged(path, lambda f: f["data"].attrs.__setitem__("env_args", json.dumps({**ENV_ARGS, "type": 2})))
    with pytest.raises(ValueError, match="type 2, not 1"):
        read_env_args(path)
    with pytest.raises(ValueError, match="no demonstration"):
        write_demonstrations(path, [], ENV_ARGS)
    damaged(path, lambda f: f["data"].attrs.__delitem__("env_args"))
    with pytest.raises(ValueError, match="env_args"):
        read_env_args(path)


@pytest.mark.parametrize("text", ["{", "[" * 60_000, "null", '{"env_kwargs": 3}'])
def test_a_description_of_the_environment_that_is_damaged_is_refused(file, text):
    path, _ = file
    damaged(path, lambda f: f["data"].attrs.__delitem__("env_args"))
    damaged(path, lambda f: f["data"].attrs.create("env_args", text))
    with pytest.raises(ValueError, match=r"env_args'\] (is no JSON|has no env_kwargs)"):
        read_env_args(path)


def test_a_write_that_fails_leaves_the_old_file_alone(file):
    path, written = file
    before = path.read_bytes()
    del written[1]["rewards"]
    with pytest.raises(KeyError):
        write_demonstrations(path, written, ENV_ARGS)
    assert path.read_bytes() == before and not list(path.parent.glob(".*"))


@pytest.mark.skipif(
    importlib.util.find_spec("robosuite") is None, reason="needs robosuite: pip install --no-deps robosuite==1.5.2"
)
def test_old_controllers_are_converted(file):
    path, _ = file
    old = {"type": "OSC_POSE", "input_max": 1, "input_min": -1, "kp": 150}
    env_args = {**ENV_ARGS, "env_kwargs": {"robots": ["Panda"], "controller_configs": old}}
    damaged(path, lambda f: f["data"].attrs.__setitem__("env_args", json.dumps(env_args)))
    converted = read_env_args(path)["env_kwargs"]["controller_configs"]
    assert converted["body_parts"]["right"]["kp"] == 150 and converted["type"] == "BASIC"
    env_args["env_kwargs"] = {"robots": ["Panda", "Panda"], "controller_configs": [old, converted]}
    damaged(path, lambda f: f["data"].attrs.__setitem__("env_args", json.dumps(env_args)))
    assert read_env_args(path)["env_kwargs"]["controller_configs"] == [converted, converted]
    env_args["env_kwargs"]["robots"] = ["Panda"]
    damaged(path, lambda f: f["data"].attrs.__setitem__("env_args", json.dumps(env_args)))
    with pytest.raises(ValueError, match=r"2 controllers for the robots \['Panda'\]"):
        read_env_args(path)


@pytest.mark.skipif(
    importlib.util.find_spec("robomimic") is None, reason="needs robomimic: pip install --no-deps robomimic==0.3.0"
)
def test_robomimic_itself_reads_the_file(file):
    import robomimic.utils.obs_utils as ObsUtils
    from robomimic.utils.dataset import SequenceDataset

    path, written = file
    ObsUtils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(KEYS), "rgb": []}})
    dataset = SequenceDataset(
        hdf5_path=str(path),
        obs_keys=KEYS,
        dataset_keys=("actions", "rewards", "dones"),
        seq_length=3,
        filter_by_attribute="train",
        hdf5_cache_mode="all",
    )
    assert len(dataset) == 10
    for index in range(4):
        sample = dataset[index]
        expected = torch.as_tensor(written[0]["actions"][index : index + 3])
        torch.testing.assert_close(torch.as_tensor(sample["actions"])[: len(expected)], expected)
        expected = torch.as_tensor(written[0]["obs"]["object"][index])
        torch.testing.assert_close(torch.as_tensor(sample["obs"]["object"])[0], expected)
