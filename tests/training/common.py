"""Small runs, and the parts of one."""

from __future__ import annotations

import torch

from torchrl_genpo.config.compose import compose
from torchrl_genpo.training.build import build_env, build_models
from torchrl_genpo.training.learner import Learner
from torchrl_genpo.training.ranks import Ranks

SMALL = ["env=pendulum", "collector.frames_per_batch=64", "loss.mini_batch_size=16", "env.num_envs=2"]


def make_parts(*overrides):
    """Options, environment, policy, critic and loss of a small run."""
    options = compose([*SMALL, *overrides])
    torch.manual_seed(0)
    env = build_env(options, options.env.num_envs, seed=0)
    return options, env, *build_models(options, env)


def collect(env, policy, steps=32):
    with torch.no_grad():
        return env.rollout(steps, policy, break_when_any_done=False)


def learn(*overrides, batches=1):
    """The learner after some batches, and by how much each parameter of the policy has moved at most."""
    options, env, policy, critic, loss = make_parts(*overrides)
    learner = Learner(options, env, policy, critic, loss, Ranks("cpu"))
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    for batch in range(batches):
        learner.learn(collect(env, policy), 64 * batch)
    moved = {name: (p.detach() - before[name]).abs().max().item() for name, p in policy.named_parameters()}
    return learner, moved
