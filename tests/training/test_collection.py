"""What a run collects: each frame is trained on once an epoch, time limits hold, and a resumed run is honest."""

from __future__ import annotations

import gc
import weakref
from collections import Counter

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FrameStackObservation

from torchrl_genpo.config.compose import compose
from torchrl_genpo.envs import simulator_state
from torchrl_genpo.training import evaluate
from torchrl_genpo.training.build import build_env, build_models
from torchrl_genpo.training.collection import make_collection
from torchrl_genpo.training.learner import Learner
from torchrl_genpo.training.loop import Training
from torchrl_genpo.training.progress import Progress
from torchrl_genpo.training.ranks import Ranks
from torchrl_genpo.training.run_folder import RunFolder

SMALL = ["policy.hidden_sizes=[8]", "critic.hidden_sizes=[8]", "eval.num_envs=1", "eval.interval=1_000_000"]


def rows(data):
    """How often each observation is in the data."""
    return Counter(tuple(row) for row in data["observation"].flatten(0, -2).tolist())


@pytest.mark.parametrize(
    "sizes",
    [
        ["env.num_envs=3", "collector.frames_per_batch=63", "loss.mini_batch_size=9"],
        ["env.num_envs=5", "collector.frames_per_batch=35", "loss.mini_batch_size=35"],
        ["env.num_envs=4", "collector.frames_per_batch=52", "loss.mini_batch_size=26"],
        ["env.num_envs=2", "collector.frames_per_batch=50", "loss.mini_batch_size=1"],
        ["env.num_envs=2", "collector.frames_per_batch=50", "loss.mini_batch_size=1000"],
    ],
    ids=str,
)
def test_every_collected_frame_is_trained_on_once_an_epoch(sizes):
    options = compose(["env=pendulum", "loss.epochs=2", *SMALL, *sizes])
    torch.manual_seed(0)
    env = build_env(options, options.env.num_envs, 0)
    policy, critic, loss = build_models(options, env)
    trained: Counter = Counter()
    loss.register_forward_pre_hook(lambda module, inputs: trained.update(rows(inputs[0])))
    learner = Learner(options, env, policy, critic, loss, Ranks("cpu"))
    collection = make_collection(options, env, policy, 0, Progress())
    data = next(iter(collection))
    collected = rows(data)
    assert data.numel() == options.collector.frames_per_batch
    learner.learn(data, 0)
    assert trained == Counter({row: 2 * number for row, number in collected.items()})
    collection.close()


class Endless(gymnasium.Env):
    """Has no time limit, and never ends by itself."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action):
        return self.np_random.normal(size=2).astype(np.float32), 1.0, False, False, {}


@pytest.fixture
def endless():
    gymnasium.register("Endless-v0", Endless)
    yield "Endless-v0"
    del gymnasium.registry["Endless-v0"]


def test_a_limit_on_the_steps_ends_the_episodes_of_training_and_evaluation(endless):
    options = compose([f"env.name={endless}", "env.max_episode_steps=12", "env.num_envs=2", *SMALL])
    env = build_env(options, 2, 0)
    policy, *_ = build_models(options, env)
    results = evaluate(env, policy, 0)
    assert results["eval/zero_noise/return"] == results["eval/random_noise/return"] == 12


@pytest.fixture
def stacked():
    gymnasium.register("Stacked-v0", lambda: FrameStackObservation(gymnasium.make("Pendulum-v1"), 3))
    yield "Stacked-v0"
    del gymnasium.registry["Stacked-v0"]


def begin(folder, name, resume=False):
    batch = ["env.num_envs=2", "collector.frames_per_batch=16", "loss.mini_batch_size=8", "loss.epochs=1"]
    options = compose([f"env.name={name}", *batch, *SMALL])
    run_folder = RunFolder(folder, resume=resume)
    run_folder.write_config(options.model_dump(mode="json"))
    return Training(options, run_folder, Ranks("cpu")), run_folder


@pytest.mark.parametrize(("name", "is_exact"), [("Pendulum-v1", True), ("Stacked-v0", False)])
@pytest.mark.usefixtures("stacked")
def test_a_resumed_run_continues_its_episodes_or_says_that_it_starts_others(tmp_path, capsys, name, is_exact):
    training, folder = begin(tmp_path / "run", name)
    assert (simulator_state(training.env) is not None) == is_exact
    batches = iter(training.collection)
    first = next(batches)["observation"][:, 0].clone()
    training.progress.frames = 16
    training.save()
    expected = next(batches).clone()
    training.close()
    folder._lock.release()  # which would be the end of the process
    assert "fresh episodes" not in capsys.readouterr().err

    resumed, folder = begin(tmp_path / "run", name, resume=True)
    assert ("fresh episodes" in capsys.readouterr().err) == (not is_exact)
    actual = next(iter(resumed.collection))
    same = torch.equal(actual["observation"][:, 0], expected["observation"][:, 0])
    assert same == is_exact
    assert not torch.equal(actual["observation"][:, 0], first), "the first episodes must not be played again"
    if not is_exact:
        assert (actual["step_count"][:, 0] == 0).all()
    resumed.close()
    folder._lock.release()


def test_a_closed_run_leaves_no_environment_behind(tmp_path):
    training, folder = begin(tmp_path / "run", "Pendulum-v1")
    envs = [training.env, training.eval_env]
    training.close()
    assert all(env.is_closed for env in envs)
    left = [weakref.ref(env) for env in envs]
    folder._lock.release()
    del training, folder, envs
    gc.collect()
    assert [ref() for ref in left] == [None, None]
