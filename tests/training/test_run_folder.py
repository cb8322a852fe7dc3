"""The folder of a run: whatever happens to it, what it holds can be read."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from torchrl_genpo.training.checkpoint import (
    RandomState,
    best_checkpoint,
    find_checkpoint,
    is_intact,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from torchrl_genpo.training.metrics import draw_learning_curve, read_metrics
from torchrl_genpo.training.run_folder import RunFolder, read_run_config
from torchrl_genpo.training.signals import StopRequest

COLUMNS = ["frames", "score"]


def open_folder(path, **options):
    return RunFolder(path, columns=COLUMNS, **options)


def module(seed):
    torch.manual_seed(seed)
    return nn.Linear(3, 3)


def test_a_run_without_an_update_has_no_learning_curve(tmp_path):
    folder = open_folder(tmp_path)
    folder.log({"frames": 1, "score": 2})
    folder.truncate_metrics(-1)
    draw_learning_curve(tmp_path / "metrics.csv", tmp_path / "curve.png", "a title")
    assert read_metrics(tmp_path / "metrics.csv") == {} and not (tmp_path / "curve.png").exists()


def saved(path, steps, **options):
    """A folder with a checkpoint of another module at each step."""
    folder = open_folder(path, **options)
    folder.write_config({"seed": 0})
    for step in steps:
        folder.log({"frames": step, "score": -abs(step - 2)})
        save(folder, step)
    return folder


def save(folder, step):
    return folder.save(step, {"seed": 0}, {"module": module(step)})


def weight_of(path):
    target = module(99)
    restore(read_checkpoint(path), {"module": target}, path)
    return target.weight


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, capsys):
    folder = saved(tmp_path, [1, 2])
    newest = folder.latest()
    data = bytearray(newest.read_bytes())
    position = data.index(module(2).weight.detach().numpy().tobytes())
    data[position] ^= 1
    newest.write_bytes(data)
    found = folder.latest()
    assert torch.equal(weight_of(found), module(1).weight)
    assert f"{newest} is damaged" in capsys.readouterr().err
    newest.write_bytes(newest.read_bytes()[:100])
    assert folder.latest() == found
    found.unlink()
    with pytest.raises(FileNotFoundError, match="no readable checkpoint"):
        folder.resume()


def test_a_flipped_bit_is_detected_or_harmless(tmp_path):
    path = saved(tmp_path, [1]).latest()
    data, expected = path.read_bytes(), module(1).weight
    generator = torch.Generator().manual_seed(0)
    detected = 0
    for position in torch.randint(8 * len(data), (400,), generator=generator).tolist():
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        if not is_intact(path):
            detected += 1
            continue
        try:
            weight = weight_of(path)
        except ValueError:
            detected += 1
        else:
            assert torch.equal(weight, expected), position
    assert detected > 200


def test_the_last_and_the_best_are_kept(tmp_path):
    folder = saved(tmp_path, range(6), keep_last=2, keep_best="score")
    steps = [int(path.stem.split("-")[1]) for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert steps == [2, 4, 5]
    assert best_checkpoint(tmp_path, "score").stem.endswith("2")
    save(folder, 7)  # not evaluated
    assert best_checkpoint(tmp_path, "score").stem.endswith("2")
    assert find_checkpoint(tmp_path).stem.endswith("7"), "without a column to go by, the newest"
    (tmp_path / "config.yaml").write_text("checkpoint: {keep_best: score}\n")
    assert find_checkpoint(tmp_path) == best_checkpoint(tmp_path, "score")


def test_what_was_just_saved_stays_whatever_lies_beside_it(tmp_path):
    folder = saved(tmp_path, [9], keep_last=1)
    folder.latest().write_bytes(b"damaged")
    path = save(folder, 4)  # the run went on from a checkpoint before it
    assert folder.latest() == path and torch.equal(weight_of(path), module(4).weight)


def test_the_order_of_checkpoints_does_not_depend_on_the_clock(tmp_path):
    folder = saved(tmp_path, [1, 2, 3], keep_last=3)
    for path, time in zip(sorted((tmp_path / "checkpoints").iterdir()), (3e9, 1e9, 2e9), strict=True):
        os.utime(path, (time, time))
    assert folder.latest().stem.endswith("3")
    save(folder, 4)
    assert folder.latest().stem.endswith("4")


def test_a_second_process_is_refused(tmp_path):
    folder = saved(tmp_path, [1])
    code = f"from torchrl_genpo.training.run_folder import RunFolder; RunFolder({str(tmp_path)!r}, resume=True)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode and "Another process trains in" in result.stderr
    del folder
    assert open_folder(tmp_path, resume=True).resume_from is not None


def test_what_a_killed_process_left_behind_is_cleared(tmp_path):
    saved(tmp_path, [1])
    (tmp_path / "checkpoints" / ".checkpoint-000000000002.pt.tmp").write_bytes(b"half")
    open_folder(tmp_path, resume=True)
    assert [path.name[0] for path in (tmp_path / "checkpoints").iterdir()] == ["c"]


def test_a_row_that_was_cut_short_is_not_read(tmp_path):
    folder = saved(tmp_path, [])
    for frames in (10, 20, 30):
        folder.log({"frames": frames, "score": 0.5})
    text = folder.metrics_path.read_text()
    for end in range(len(text) - len("30,0.5\n"), len(text)):
        folder.metrics_path.write_text(text[:end])
        assert read_metrics(folder.metrics_path) == {"frames": [10, 20], "score": [0.5, 0.5]}, end
        folder.truncate_metrics(20)
        assert folder.metrics_path.read_text() == "frames,score\n10,0.5\n20,0.5\n"


def test_rows_of_an_older_version_have_fewer_columns(tmp_path):
    folder = saved(tmp_path, [1])
    folder.metrics_path.write_text("frames\n10\n20\n")
    folder.truncate_metrics(10)
    assert folder.metrics_path.read_text() == "frames,score\n10,\n"


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path):
    folder = saved(tmp_path, [1])
    before = folder.latest().read_bytes()
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails, as on a full disk
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            save(folder, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert folder.latest().read_bytes() == before
    assert [path.name[0] for path in (tmp_path / "checkpoints").iterdir()] == ["c"], "no half of a file stays"


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def record_replace(source, destination):
        events.append(("replace", Path(destination).name))
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    saved(tmp_path, [1])
    kinds = [kind for kind, _ in events[-3:]]
    assert kinds == ["fsync", "replace", "fsync"], events
    assert events[-3][1].startswith(".checkpoint-") and events[-1][1] == "checkpoints"


def test_a_configuration_that_was_cut_is_refused_or_made_whole(tmp_path, capsys):
    whole = {"seed": 3, "loss": {"epochs": 10, "gamma": 0.9}, "env": {"name": "pendulum"}}
    folder = open_folder(tmp_path)
    folder.save(1, whole, {"module": module(1)})
    text = "seed: 3\nloss:\n  epochs: 10\n  gamma: 0.9\nenv:\n  name: pendulum\n"
    folder.config_path.write_text(text)
    assert read_run_config(tmp_path) == whole and not capsys.readouterr().err
    folder.config_path.write_text("seed: 3\nloss:\n  epochs: 10\n")
    assert read_run_config(tmp_path) == whole
    assert "is not whole" in capsys.readouterr().err
    folder.config_path.write_text("seed: 3\nloss:\n  epochs: 1")
    with pytest.raises(ValueError, match="cut short"):
        read_run_config(tmp_path)
    folder.config_path.write_text(text.replace("10", "12"))  # the file's own values count
    assert read_run_config(tmp_path)["loss"]["epochs"] == 12


@pytest.mark.parametrize("read", [find_checkpoint, read_run_config])
@pytest.mark.parametrize("damaged", ["loss: [1", "just a text\n"])
def test_a_damaged_configuration_is_named_by_whatever_reads_it(read, damaged, tmp_path):
    folder = open_folder(tmp_path)
    folder.save(1, {}, {"module": module(1)})
    folder.config_path.write_text(damaged)
    with pytest.raises(ValueError, match=r"config\.yaml (is damaged|holds no mapping)"):
        read(tmp_path)


def test_sigterm_is_told_from_ctrl_c_and_the_handlers_before_return():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert stop.received and stop.preempted == (number == signal.SIGTERM)
            assert signal.getsignal(signal.SIGINT) == before[0], "a second Ctrl-C interrupts"
        assert [signal.getsignal(each) for each in numbers] == before


class Malicious:
    """What runs a command when it is unpickled."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)

    def state_dict(self):
        return self


def test_a_file_made_to_harm_is_refused_and_runs_nothing(tmp_path):
    witness, path = tmp_path / "witness", tmp_path / "checkpoint-000000000001.pt"
    save_checkpoint(path, 1, {"seed": 0}, {"policy": Malicious(witness)})
    torch.load(path, weights_only=False)
    assert witness.exists(), "the file would run a command: else the test shows nothing"
    witness.unlink()
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        read_checkpoint(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"format": 2, "frames": 1, "config": {}},
        {"frames": 1, "config": {}},
        {"format": 1, "frames": 1, "config": 3},
        [1],
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "checkpoint-000000000001.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        read_checkpoint(path)


def test_a_part_that_is_missing_or_of_another_size_is_named(tmp_path):
    path = saved(tmp_path, [1]).latest()
    with pytest.raises(ValueError, match="it has no 'other'"):
        restore(read_checkpoint(path), {"other": module(1)}, path)
    with pytest.raises(ValueError, match=r"'module' from .* of another configuration"):
        restore(read_checkpoint(path), {"module": nn.Linear(2, 3)}, path)


def test_random_states_continue_where_they_were(tmp_path):
    import random

    import numpy

    path = tmp_path / "checkpoint-000000000001.pt"
    save_checkpoint(path, 1, {}, {"random": RandomState()})

    def draw():
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    first = draw()
    assert draw() != first
    restore(read_checkpoint(path), {"random": RandomState()}, path)
    assert draw() == first


def test_the_id_of_a_run_is_drawn_once_and_goes_with_its_folder(tmp_path):
    folder = saved(tmp_path / "run", [1])
    drawn = folder.run_id
    assert folder.run_id == drawn and drawn != saved(tmp_path / "other", [1]).run_id
    del folder  # and its lock
    (tmp_path / "run").rename(tmp_path / "moved")
    assert open_folder(tmp_path / "moved", resume=True).run_id == drawn
    assert open_folder(tmp_path / "run").run_id != drawn


def test_a_run_that_never_began_leaves_no_id_to_the_next(tmp_path):
    folder = open_folder(tmp_path)
    drawn = folder.run_id
    folder._lock.release()  # it was killed
    assert open_folder(tmp_path).run_id != drawn
    folder = open_folder(tmp_path / "new")
    assert folder.run_id
    folder.remove_unused()
    assert not list((tmp_path / "new").iterdir())
