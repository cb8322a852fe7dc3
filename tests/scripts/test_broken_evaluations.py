"""An evaluation never ends a training: what is not finite is logged as such, and nothing of the training is lost."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from torchrl_genpo.training.checkpoint import best_checkpoint, checkpoints_of, frames_of
from torchrl_genpo.training.metrics import read_metrics

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from runs import TINY, run

TASK = """
import gymnasium as gym, numpy as np

class Task(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    render_mode = None
    made = steps = 0

    def __init__(self):
        Task.made += 1
        self.is_evaluated = Task.made > 4  # the training's are made first

    def observe(self):
        return self.np_random.standard_normal(2).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {{}}

    def step(self, action):
        self.time += 1
        reward = 1.0
        Task.steps += self.is_evaluated
        if self.is_evaluated and Task.steps > {steps} and self.time == 20:
            {what}
        return self.observe(), reward, False, self.time == 20, {{}}

gym.register("Breaking-v0", Task)
"""
OPTIONS = [*TINY, "env.name=breaking:Breaking-v0", "env.scale_reward=false"]


STEPS = 2 * 2 * 20  # of an evaluation: in both ways, in two environments


def start(folder, monkeypatch, what, **options):
    """Trains with three evaluations, of which the first is well."""
    (folder / "breaking.py").write_text(TASK.format(what=what, steps=STEPS))
    monkeypatch.syspath_prepend(folder)
    return run(*OPTIONS, f"hydra.run.dir={folder / 'run'}", "collector.total_frames=1536", **options)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_reward_that_is_not_finite_is_logged_and_the_training_goes_on(tmp_path, monkeypatch, value):
    output = start(tmp_path, monkeypatch, f'reward = float("{value}")')
    columns = read_metrics(tmp_path / "run" / "metrics.csv")
    returns = columns["eval/zero_noise/return"]
    assert columns["frames"][-1] == 1536
    assert f"eval/zero_noise/return is {value}" in output and "reward was not finite" in output
    assert returns[1] == 20, "the first evaluation was well"
    assert [str(value) for value in returns[3::2]] == [value, value]
    text = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    column = text[0].split(",").index("eval/zero_noise/return")
    assert [line.split(",")[column] for line in text[4::2]] == [value, value], "not as if it had not been evaluated"
    best = best_checkpoint(tmp_path / "run", "eval/zero_noise/return")
    assert frames_of(best) == 512, "what is not finite is not the best"
    assert frames_of(checkpoints_of(tmp_path / "run")[-1]) == 1536
    run(f"resume={tmp_path / 'run'}", "collector.total_frames=1792")
    assert read_metrics(tmp_path / "run" / "metrics.csv")["frames"][-1] == 1792
    assert (tmp_path / "run" / "learning_curve.png").exists()


def test_a_task_that_raises_in_an_evaluation_loses_nothing_and_a_resumed_run_goes_on(tmp_path, monkeypatch):
    output = start(tmp_path, monkeypatch, 'raise ZeroDivisionError("a wheel")', succeeds=False)
    columns = read_metrics(tmp_path / "run" / "metrics.csv")
    assert "ZeroDivisionError: a wheel" in output and "The evaluation at frame 1024 failed. Saved" in output
    assert columns["frames"] == [256, 512, 768, 1024] and math.isnan(columns["eval/zero_noise/return"][-1])
    assert frames_of(checkpoints_of(tmp_path / "run")[-1]) == 1024
    run(f"resume={tmp_path / 'run'}", "collector.total_frames=1280")
    assert read_metrics(tmp_path / "run" / "metrics.csv")["frames"][-1] == 1280
