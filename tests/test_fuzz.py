"""A part of benchmarks/fuzz.py: invalid command lines and malformed files end with a message, and code is never run."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torchrl.checkpoint import Checkpoint

pytest.importorskip("h5py", reason="needs h5py: pip install h5py")
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import fuzz_command_lines as lines
import fuzz_files as files
import fuzz_hostile as harmful
from torchrl_genpo.untrusted import read_program


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return files.Samples(tmp_path_factory.mktemp("fuzz") / "good")


@pytest.mark.parametrize("part", range(2))
def test_invalid_command_lines_end_with_a_message_and_leave_nothing(part, tmp_path):
    chosen = lines.command_lines(300, lines.foreign_files(tmp_path / "files"))[part::20]
    outcomes = [lines.run(lines.full_command(line), tmp_path / str(i)) for i, line in enumerate(chosen)]
    assert not [(outcome.command, outcome.fault, outcome.output) for outcome in outcomes if outcome.fault]


def test_a_valid_command_line_is_not_refused_in_a_fork(tmp_path):
    outcome = lines.run(lines.full_command(["seed=3"]), tmp_path / "valid")
    assert outcome.code == 0 and outcome.fault == "accepted" and "run/metrics.csv" in outcome.left


@pytest.mark.parametrize("kind", files.KINDS)
def test_malformed_files_are_refused_by_a_documented_error(samples, kind, tmp_path):
    assert files.read(samples, kind, getattr(samples, kind), tmp_path / "good") == "loaded"
    rng, refused = random.Random(1), 0
    for index in range(8 if kind == "policy" else 25):
        folder = tmp_path / str(index)
        folder.mkdir()
        result = files.read(samples, kind, files.malformed(samples, kind, rng, folder), folder)
        assert not result.startswith("fault"), result
        refused += result.startswith("refused")
    assert refused > 1


def test_files_made_to_harm_are_refused_and_nothing_in_them_runs(samples, tmp_path):
    marker, count = tmp_path / "marker", 0
    for kind, name, path in harmful.hostile(samples, tmp_path / "hostile", marker):
        result = files.read(samples, kind, path, tmp_path / "output")
        assert result.startswith("refused") and not marker.exists(), (kind, name, result)
        count += 1
    assert count > 40


def test_torchrl_itself_runs_the_code_of_such_a_checkpoint(samples, tmp_path):
    """Otherwise the refusal would prove nothing."""
    marker, path = tmp_path / "marker", tmp_path / "evil.torchrl"
    harmful.CHECKPOINTS["with pickled code"](samples.checkpoint, path, marker)
    with pytest.raises(ValueError, match=r"other\.pickle"):
        samples.read_checkpoint(path)
    assert not marker.exists()

    class Anything:
        def state_dict(self):
            return {}

        def load_state_dict(self, state_dict):
            pass

    Checkpoint(format="archive", loss=Anything()).load(path, strict="ignore")
    assert marker.exists()


@pytest.mark.parametrize("name", ["with pickled inputs", "with code in a shape"])
def test_pytorch_itself_runs_the_code_of_such_a_program(samples, name, tmp_path):
    marker, folder = tmp_path / "marker", tmp_path / "policy"
    shutil.copytree(samples.policy, folder)
    harmful.PROGRAMS[name](samples.policy / "policy.pt2", folder / "policy.pt2", marker)
    with pytest.raises(ValueError, match="not a readable program"):
        samples.read_policy(folder)
    assert not marker.exists()
    with pytest.raises(Exception):  # noqa: B017  # after the code has run, whatever it meets
        torch.export.load(folder / "policy.pt2")
    assert marker.exists()


@pytest.mark.parametrize("name", ["that opens a file", "that writes to a tensor", "that looks up without a check"])
def test_an_operator_that_does_more_than_compute_is_refused(samples, name, tmp_path):
    path = tmp_path / "policy.pt2"
    harmful.PROGRAMS[name](samples.policy / "policy.pt2", path, tmp_path)
    with pytest.raises(ValueError, match=r"the target 'torch\.ops\.aten\."):
        read_program(path)
