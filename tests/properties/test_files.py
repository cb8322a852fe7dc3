"""Whatever happens to a file, its reader returns what it holds or refuses it by a documented error."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrl_genpo.data import read_demonstrations, read_env_args, write_demonstrations
from torchrl_genpo.deploy import ExportedPolicy, PolicyExporter
from torchrl_genpo.trained import trained_policies
from torchrl_genpo.training import read_metrics
from torchrl_genpo.training.checkpoint import load_policy, read_checkpoint

sys.path.append(str(Path(__file__).parents[1]))
from forks import run_forked

pytestmark = pytest.mark.extras("deploy", "robomimic")  # policies and demonstrations are written

MEMORY = 4 * 2**30  # bytes that a reader may take beyond what this process has


def read_hdf5(path):
    read_env_args(path)
    read_demonstrations(path, ["object"])


def read_policy(path):
    """Reads the file in a folder with the good ones of the same policy."""
    ExportedPolicy(path.parent)(np.zeros(17))


READERS = {
    "checkpoint.pt": read_checkpoint,
    "policy.onnx": read_policy,
    "policy.json": read_policy,
    "metrics.csv": read_metrics,
    "demonstrations.hdf5": read_hdf5,
}
WHOLE = ("checkpoint.pt", "policy.json", "demonstrations.hdf5")
"""The files that a cut of any length leaves unreadable; the others end where a row or a field does."""


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a good file of each kind."""
    folder = tmp_path_factory.mktemp("good")
    source = trained_policies()["half_cheetah"]
    policy, env, _ = load_policy(source, 1, 0)
    PolicyExporter(policy, env).save(folder)
    (folder / "checkpoint.pt").write_bytes(source.read_bytes())
    (folder / "metrics.csv").write_text("frames,train/return\n" + "".join(f"{64 * i},{i / 7}\n" for i in range(1, 9)))
    steps = np.linspace(0, 1, 12, dtype=np.float32).reshape(6, 2)
    parts = {"obs": {"object": steps}, "next_obs": {"object": steps}, "actions": steps, "model_file": "<mujoco/>"}
    parts |= dict.fromkeys(("rewards", "dones", "states"), steps[:, 0])
    arguments = {"env_name": "Lift", "type": 1, "env_kwargs": {"robots": "Panda"}}
    write_demonstrations(folder / "demonstrations.hdf5", [parts, parts], arguments)
    return folder


def read(good, name, content, folder):
    """Reads a file in another process with little memory; returns ``whole``, ``refused`` or what went wrong."""
    outcome = folder / "outcome.txt"
    for other in READERS:
        (folder / other).write_bytes(content if other == name else (good / other).read_bytes())

    def child():
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        try:
            READERS[name](folder / name)
        except (ValueError, FileNotFoundError) as error:
            outcome.write_text(f"refused: {error}")
        except BaseException as error:
            outcome.write_text(f"fault: {type(error).__name__}: {error}")
        else:
            outcome.write_text("whole")

    code, seconds = run_forked(child, folder / "output.txt", 30.0, method="fork")
    return outcome.read_text() if code == 0 else f"fault: exit code {code} after {seconds:.0f} s"


@st.composite
def damaged(draw, content):
    """The content with a part overwritten, flipped, doubled or lost."""
    data = bytearray(content)
    place, size = draw(st.integers(0, len(data) - 1)), draw(st.integers(1, 64))
    kind = draw(st.sampled_from(["flip", "overwrite", "repeat", "drop"]))
    if kind == "flip":
        data[place] ^= 1 << draw(st.integers(0, 7))
    elif kind == "overwrite":
        data[place : place + size] = draw(st.binary(min_size=size, max_size=size))
    elif kind == "repeat":
        data[place:place] = data[place : place + 16 * size]
    else:
        del data[place : place + 16 * size]
    return bytes(data)


@pytest.mark.parametrize("name", READERS)
def test_a_good_file_is_read(good, name, tmp_path):
    assert read(good, name, (good / name).read_bytes(), tmp_path) == "whole"


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_by_a_documented_error(good, name, tmp_path_factory, data):
    result = read(good, name, data.draw(damaged((good / name).read_bytes())), tmp_path_factory.mktemp("damaged"))
    assert not result.startswith("fault"), result


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_a_file_that_was_cut_short_is_refused_with_its_name(good, name, tmp_path_factory, data):
    content = (good / name).read_bytes()
    length = data.draw(st.integers(0, len(content) - 1))
    result = read(good, name, content[:length], tmp_path_factory.mktemp("cut"))
    assert not result.startswith("fault"), result
    if name in WHOLE:
        assert result.startswith("refused") and name in result, result
