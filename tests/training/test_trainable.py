# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Runs that train a part of the policy they began with: policy.trainable, start.steering_sizes."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_genpo.config.compose import compose
from torchrl_genpo.modules import flow_of
from torchrl_genpo.trained import trained_policies
from torchrl_genpo.training.build import build_env
from torchrl_genpo.training.checkpoint import load_policy, load_pretrained, read_checkpoint
from torchrl_genpo.training.policy import make_policy


def trained_and_not(training):
    """The names of the policy's parameters and buffers that an update moves, and of the others."""
    before = {name: value.clone() for name, value in training.policy.state_dict().items() if torch.is_tensor(value)}
    for _ in range(2):
        training.learner.learn(next(iter(training.collection)), 0)
    after = training.policy.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    return moved, before.keys() - moved


@pytest.mark.parametrize(
    ("options", "trained", "kept"),
    [
        (
            ("policy.trainable=start", "start=steered"),
            (".start.",),
            (".velocity.", "gaussian.", "module.0.", "module.1."),
        ),
        (("policy.trainable=start", "start=pretrained"), (".start.",), (".velocity.", "gaussian.", "module.0.")),
        (("policy.trainable=head",), (".velocity.", "gaussian."), ("module.0.", "module.1.")),
    ],
)
def test_what_is_not_trained_stays_as_it_was_with_its_normalisation(make_training, begun, options, trained, kept):
    training = make_training("part", f"policy.init={begun}", "optim.lr=3e-3", *options)
    moved, still = trained_and_not(training)
    assert all(any(part in name for name in moved) for part in trained)
    assert all(any(part in name for name in still) for part in kept)
    assert not any(part in name for name in moved for part in kept)


def test_a_steered_policy_comes_back_from_its_checkpoint(make_training, begun, tmp_path):
    training = make_training("part", f"policy.init={begun}", "policy.trainable=start", "start=steered", "optim.lr=3e-3")
    training.learner.learn(next(iter(training.collection)), 0)
    training.progress.frames = 128
    path = training.save()
    policy, env, _ = load_policy(path)
    for name, value in policy.state_dict().items():
        if torch.is_tensor(value):
            torch.testing.assert_close(value, training.policy.state_dict()[name], rtol=0, atol=0)
    assert any("start.network" in name for name in policy.state_dict())
    env.close()


@pytest.mark.parametrize("options", [("start=steered",), ("start=pretrained",), ("solver.num_steps=2",)])
def test_another_start_or_solver_keeps_the_deviation_of_the_first_actions(make_training, begun, options):
    training = make_training("part", f"policy.init={begun}", *options)
    flow = flow_of(training.policy)
    torch.nn.init.zeros_(flow.velocity.trunk[-1].weight)
    torch.nn.init.zeros_(flow.velocity.trunk[-1].bias)
    seen = TensorDict({key: torch.zeros(20_000, 8) for key in flow.in_keys}, batch_size=[20_000])
    _, deviation = flow.gaussian(seen[flow.in_keys[0]])
    assert flow(seen)["raw_action"].std().item() == pytest.approx(deviation[0].item(), rel=0.03)


@pytest.mark.parametrize("name", ["half_cheetah", "xhand/nut_bolt"])
def test_a_policy_that_comes_with_the_library_can_be_trained_further(name):
    """Whatever options there are that it was saved without."""
    options = compose([f"env={name}", f"policy.init={trained_policies()[name]}", "env.num_envs=2"])
    env = build_env(options, 2, 0)
    policy = make_policy(options, env)
    load_pretrained(options, policy)
    saved = read_checkpoint(trained_policies()[name])["policy"]
    assert all(torch.equal(value, saved[key]) for key, value in policy.named_parameters())
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("policy.trainable=start",), "name a checkpoint"),
        (("policy.trainable=head", "policy.init=a", "policy.head_sizes=[]"), "needs a network before the head"),
        (("policy.trainable=start", "policy.init=a", "start=paper"), "steering_sizes"),
    ],
)
def test_runs_that_would_train_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compose(list(options))
