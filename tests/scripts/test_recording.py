"""What a run records beside ``metrics.csv``, and that what it needs is asked for before the training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchrl_genpo.training.metrics import read_metrics

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from runs import EVERYTHING, TINY, launch, run, train


def tensorboard_scalars(folder):
    """Every value that was logged, by the name of its metric and its step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "run")).Reload()
    return {(name, event.step): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)}


@pytest.mark.extras("tensorboard")
def test_tensorboard_shows_every_metric_under_its_name_and_continues_with_the_run(tmp_path):
    folder = tmp_path / "run"
    train(folder, 512, *EVERYTHING, "logger=tensorboard")
    run(f"resume={folder}", "collector.total_frames=1024")
    columns = read_metrics(folder / "metrics.csv")
    written = {
        (name, int(frames)): value
        for name, values in columns.items()
        for frames, value in zip(columns["frames"], values, strict=True)
        if value == value
    }
    logged = tensorboard_scalars(folder)
    assert logged.keys() == written.keys()
    assert {name for name, _ in written} >= {"diagnostics/ess", "eval/random_noise/return"}
    for key, value in written.items():
        assert logged[key] == pytest.approx(value, rel=1e-6), key


@pytest.mark.extras("wandb")
def test_wandb_is_written_offline_and_continues_one_run(tmp_path):
    folder = tmp_path / "run"
    for options in (
        [*TINY, "env=pendulum", "logger=wandb", f"hydra.run.dir={folder}", "collector.total_frames=512"],
        [f"resume={folder}", "collector.total_frames=1024"],
    ):  # wandb writes its last records as Python ends, which a fork does not
        subprocess.run(launch(*options), check=True, capture_output=True, timeout=300)
    files = list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and len({file.stem for file in files}) == 1, files
    assert all(b"zero_noise" in file.read_bytes() for file in files)


@pytest.mark.extras("wandb")
def test_a_moved_run_stays_one_run_of_wandb_and_a_new_one_in_its_place_is_another(tmp_path):
    folder, moved = tmp_path / "run", tmp_path / "moved"

    def start(*options):
        subprocess.run(launch(*options), check=True, capture_output=True, timeout=300)

    def ids(run):
        return [path.name.rpartition("-")[2] for path in sorted((run / "wandb").glob("offline-run-*"))]

    new = [*TINY, "env=pendulum", "logger=wandb", f"hydra.run.dir={folder}", "collector.total_frames=256"]
    start(*new)
    first = ids(folder)
    folder.rename(moved)
    start(f"resume={moved}", "collector.total_frames=512")
    assert ids(moved) == 2 * first
    start(*new)
    assert ids(folder) != first


@pytest.mark.extras("wandb")
def test_each_run_of_a_sweep_is_a_run_of_its_own_at_wandb(tmp_path):
    options = ["--multirun", *TINY, "env=pendulum", "logger=wandb", "seed=1,2", f"hydra.sweep.dir={tmp_path}"]
    subprocess.run(launch(*options, "collector.total_frames=256"), check=True, capture_output=True, timeout=300)
    for index, other in (("0", "1"), ("1", "0")):
        (run,) = (tmp_path / index / "wandb").glob("offline-run-*/*.wandb")
        assert b"zero_noise" in run.read_bytes()
        assert not list((tmp_path / other).rglob(run.name))


@pytest.mark.extras("wandb")
def test_wandb_online_without_a_key_is_explained_before_the_training(tmp_path):
    places = dict.fromkeys(("HOME", "WANDB_CONFIG_DIR", "WANDB_DIR"), str(tmp_path)) | {"NETRC": str(tmp_path / "none")}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")} | places
    folder = tmp_path / "run"
    result = subprocess.run(
        launch(*TINY, "env=pendulum", "logger=wandb", "logger.mode=online", f"hydra.run.dir={folder}"),
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    for word in ("logger.mode=online", "wandb login", "WANDB_API_KEY", "logger.mode=offline"):
        assert word in result.stderr
    assert not folder.exists()


UNDRAWABLE = """
import gymnasium as gym, numpy as np
class Task(gym.Env):
    metadata = {"render_modes": []}
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    def __init__(self, render_mode=None): self.render_mode = render_mode
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action): return np.zeros(2, np.float32), 0.0, False, False, {}
class Blank(Task):
    metadata = {"render_modes": ["rgb_array"]}
    def render(self): return None
class Painted(Blank):
    def render(self): return np.zeros((32, 32, 3), np.uint8)
for task in (Task, Blank, Painted):
    gym.register(f"mine/{task.__name__}-v0", entry_point=task, max_episode_steps=20)
"""


@pytest.mark.extras("video")
@pytest.mark.parametrize("task", ["Task", "Blank"])
def test_a_task_that_cannot_be_drawn_is_refused_before_the_training_whatever_its_id(tmp_path, monkeypatch, task):
    (tmp_path / "undrawable.py").write_text(UNDRAWABLE)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"undrawable:mine/{task}-v0"
    options = [*TINY, f"env.name={name}", "video=true", f"hydra.run.dir={tmp_path / 'run'}"]
    output = run(*options, succeeds=False)
    assert f"video=true: {name}" in output and "video=false" in output and "Traceback" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.extras("video")
def test_a_task_that_draws_itself_needs_no_opengl(tmp_path, monkeypatch):
    (tmp_path / "undrawable.py").write_text(UNDRAWABLE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    train(tmp_path / "run", 256, "env.name=undrawable:mine/Painted-v0", "video=true")
    assert (tmp_path / "run" / "video.mp4").stat().st_size > 100


@pytest.mark.extras("video")
def test_what_is_wrong_with_a_task_is_not_said_of_its_drawing():
    output = run(*TINY, "env.name=HalfCheeta-v5", "video=true", "hydra.run.dir=run", succeeds=False)
    assert "Unknown environment" in output and "cannot be drawn" not in output


@pytest.mark.extras("video")
def test_video_is_written_or_the_missing_renderer_is_named_before_training(tmp_path):
    result = subprocess.run(
        launch(*TINY, "env=pendulum", "video=true", "collector.total_frames=256", f"hydra.run.dir={tmp_path / 'run'}"),
        capture_output=True,
        text=True,
    )
    if result.returncode:
        assert "video=true needs OpenGL" in result.stderr and not (tmp_path / "run" / "metrics.csv").exists()
    else:
        import imageio

        assert imageio.v3.improps(tmp_path / "run" / "video.mp4", plugin="FFMPEG").shape[1:] == (480, 480, 3)
