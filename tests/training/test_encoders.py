# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Policies with an encoder by configuration: vectors, pixels, and those that remember."""

from __future__ import annotations

import shutil

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from torchrl.modules import set_recurrent_mode

from torchrl_genpo.config.compose import compose
from torchrl_genpo.training.build import build_env
from torchrl_genpo.training.loop import Training
from torchrl_genpo.training.ranks import Ranks
from torchrl_genpo.training.run_folder import RunFolder

SMALL = (
    "env.num_envs=4",
    "collector.frames_per_batch=128",
    "loss.mini_batch_size=64",
    "loss.epochs=2",
    "eval.num_envs=2",
    "collector.total_frames=512",
)


class Pictures(gymnasium.Env):
    """A task of pictures alone."""

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = Box(0, 255, (36, 40, 3), np.uint8)
    action_space = Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(-np.square(action).sum()), False, False, {}


class Seen(Pictures):
    """A task that observes a vector and a picture."""

    observation_space = Dict({"observation": Box(-1, 1, (3,), np.float32), "camera": Pictures.observation_space})


if "Pictures-v0" not in gymnasium.registry:
    gymnasium.register("Seen-v0", entry_point=Seen, max_episode_steps=20)
    gymnasium.register("Pictures-v0", entry_point=Pictures, max_episode_steps=20)


@pytest.fixture
def make_training(tmp_path):
    made = []

    def make(*options, folder="run", resume=False):
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        training = Training(compose([*SMALL, *options]), RunFolder(path, resume=resume), Ranks("cpu"))
        made.append(training)
        return training

    yield make
    for training in made:
        training.close()


@pytest.mark.parametrize("policy", ["reversible_flow", "gaussian"])
@pytest.mark.parametrize("encoder", ["mlp", "gru", "lstm"])
def test_the_ratio_is_one_before_the_first_update_and_gradients_reach_the_encoder(make_training, policy, encoder):
    training = make_training("env=pendulum", f"policy={policy}", f"policy.encoder={encoder}", "eval.rounds=0")
    data = next(iter(training.collection))
    batch = training.learner._prepare(data)
    assert batch.shape == ((4, 32) if encoder in ("gru", "lstm") else (128,))
    assert data["next", "done"].any()  # sequences hold several episodes
    out = training.loss(batch)
    assert (out["max_ratio"] - 1).abs() < 1e-3 and out["kl_approx"].abs() < 1e-4
    (out["loss_objective"] + out["loss_critic"]).backward()
    reached = {name.split(".")[1] for name, p in training.loss.named_parameters() if p.grad is not None}
    assert all(p.grad is not None for p in training.loss.actor_network_params.parameters()), reached


@pytest.mark.parametrize("encoder", ["gru", "lstm"])
def test_values_of_a_memory_are_those_of_the_whole_sequence_from_where_the_batch_began(make_training, encoder):
    training = make_training("env=pendulum", f"policy.encoder={encoder}")
    batches = iter(training.collection)
    next(batches)
    data = next(batches)  # begins within episodes
    training.learner._prepare(data)
    with torch.no_grad(), set_recurrent_mode(True):
        again = training.learner.critic(data.select(*training.learner.critic.in_keys))["state_value"]
    torch.testing.assert_close(data["state_value"], again, rtol=1e-4, atol=1e-5)


def test_a_memory_is_empty_where_an_episode_begins():
    env = build_env(compose([*SMALL, "env=pendulum", "policy.encoder=gru"]), 4, 0)
    td = env.reset()
    td["action"] = torch.zeros(4, 1)
    td["next"] = {"recurrent_state": torch.ones(4, 1, 128)}
    _, carried = env.step_and_maybe_reset(td)
    assert carried["is_init"].sum() == 0 and (carried["recurrent_state"] == 1).all()
    assert (env.reset()["recurrent_state"] == 0).all() and env.reset()["is_init"].all()
    env.close()


@pytest.mark.parametrize("encoder", ["gru", "mlp"])
def test_a_policy_with_an_encoder_resumes_to_the_last_bit(make_training, encoder):
    options = ("env=pendulum", f"policy.encoder={encoder}")
    whole = make_training(*options, folder="whole")
    batches = iter(whole.collection)

    def update(training, batches):
        frames = training.progress.frames
        data = next(batches)
        training.progress.frames += data.numel()
        return training.learn(data, frames)

    update(whole, batches)
    whole.folder.log({"frames": whole.progress.frames})
    whole.save()
    expected = update(whole, batches)
    shutil.copytree(whole.folder.path, whole.folder.path.parent / "again", ignore=shutil.ignore_patterns(".*"))
    again = make_training(*options, folder="again", resume=True)
    assert update(again, iter(again.collection)) == expected


def test_a_policy_of_pixels_trains_and_is_evaluated(make_training):
    training = make_training(
        "env.name=Pictures-v0",
        "policy.encoder=cnn",
        "policy.encoder_sizes=[16]",
        "env.num_envs=2",
        "collector.frames_per_batch=32",
        "loss.mini_batch_size=32",
    )
    row = training.learn(next(iter(training.collection)), 0)
    assert np.isfinite(row["train/kl"]) and row["train/inversion_error"] < 1e-3
    assert np.isfinite(training._evaluate()["eval/zero_noise/return"])


@pytest.mark.parametrize(("encoder", "unread"), [("cnn", "'observation'"), ("mlp", "'pixels'")])
def test_what_the_encoder_of_a_dictionary_does_not_read_is_named(make_training, encoder, unread):
    size = "policy.encoder_sizes=[16]"
    with pytest.warns(UserWarning, match=f"the policy does not read {unread}"):
        training = make_training("env.name=Seen-v0", f"policy.encoder={encoder}", size, "env.num_envs=2")
    assert np.isfinite(training.learn(next(iter(training.collection)), 0)["train/kl"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["env=pendulum", "policy.encoder=cnn"], "no 'pixels'"),
        (["env.name=Pictures-v0"], "policy.encoder=cnn"),
        (["env=pendulum", "policy.encoder=gru", "policy=fpo"], "density"),
        (["env=pendulum", "policy.encoder=lstm", "loss.mini_batch_size=16"], "loss.mini_batch_size=16"),
        (["env=pendulum", "policy.encoder=gru", "compile.enabled=true"], "compile.enabled"),
    ],
)
def test_what_does_not_fit_an_encoder_is_named(make_training, options, named):
    with pytest.raises(ValueError, match=named):
        make_training(*options)
