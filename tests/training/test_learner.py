"""What one batch does to the networks, and at which rates."""

from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from torchrl_genpo.configuration import build_env, build_models
from torchrl_genpo.distributed import Ranks
from torchrl_genpo.loading import fill_in
from torchrl_genpo.training.learner import Learner


def test_a_run_of_another_collector_is_filled_in_with_what_is_new_and_keeps_its_own():
    with initialize_config_module("torchrl_genpo.config", version_base="1.3"):
        default, saved = (compose("genpo", [f"collector={kind}"]) for kind in ("sync", "multi_sync"))
    saved = OmegaConf.create(OmegaConf.to_container(saved))
    workers = saved.collector.num_workers
    del saved.collector.frames_per_batch
    filled = fill_in(saved, default)
    assert filled.collector.kind == "multi_sync" and filled.collector.num_workers == workers
    assert filled.collector.frames_per_batch == default.collector.frames_per_batch


def learn(*overrides, batches=1):
    """The learner after some batches, and by how much each parameter of the actor has moved at most."""
    with initialize_config_module("torchrl_genpo.config", version_base="1.3"):
        cfg = compose("genpo", ["env=pendulum", "collector.frames_per_batch=64", "loss.mini_batch_size=16", *overrides])
    torch.manual_seed(0)
    env = build_env(cfg, 2, seed=0)
    actor, critic, loss = build_models(cfg, env)
    learner = Learner(cfg, env, actor, critic, loss, Ranks("cpu"))
    before = loss.actor_network_params.clone()
    for batch in range(batches):
        with torch.no_grad():
            data = env.rollout(32, actor, break_when_any_done=False)
        learner.learn(data, 64 * batch)
    moved = (loss.actor_network_params.flatten_keys(".").data - before.flatten_keys(".").data).abs()
    return learner, {name: value.max().item() for name, value in moved.items()}


@pytest.mark.parametrize(
    ("policy", "noise"),
    [
        (["start=learned_scale"], "start.log_scale"),
        (["start=consistent", "start.scale=unit", "start.learn_tau=per_dimension"], "start.log_tau"),
        (["policy=gaussian"], "module.0.module.1.state_independent_scale"),
    ],
)
def test_the_noise_has_a_rate_of_its_own(policy, noise):
    fixed = ["optim.schedule=constant", "optim.lr=1e-7", "optim.critic_lr=1e-3"]
    _, alike = learn(*policy, *fixed)
    assert max(alike.values()) < 1e-5
    learner, moved = learn(*policy, *fixed, "optim.noise_lr=1e-2")
    assert 1e-2 < moved.pop(noise) < 1
    assert max(moved.values()) < 1e-5
    assert [group["lr"] for group in learner.optimizer.param_groups] == [1e-7, 1e-3, 1e-2]


def test_an_adaptive_rate_moves_that_of_the_noise_and_leaves_the_critics_alone():
    rates = ["optim.lr=1e-4", "optim.critic_lr=1e-3", "optim.noise_lr=4e-4", "optim.target_kl=100"]
    learner, _ = learn("start=learned_scale", *rates, batches=2)
    actor, critic, noise = (group["lr"] for group in learner.optimizer.param_groups)
    assert actor == pytest.approx(1.5**2 * 1e-4)
    assert (critic, noise) == (1e-3, pytest.approx(4 * actor))


def test_a_linear_schedule_leaves_a_rate_of_the_critics_own_alone():
    options = ["optim.schedule=linear", "optim.lr=1e-4", "collector.total_frames=128"]
    for own, expected in ((["optim.critic_lr=1e-3"], 1e-3), ([], 5e-5)):
        learner, _ = learn(*options, *own, batches=2)
        assert [group["lr"] for group in learner.optimizer.param_groups] == [5e-5, expected]


def test_a_rate_of_the_noise_does_nothing_where_the_noise_has_no_parameters():
    learner, moved = learn("start=paper", "optim.noise_lr=0.01")
    assert len(learner.optimizer.param_groups) == 2
    assert moved == learn("start=paper")[1]


def test_the_critic_alone_learns_during_its_warm_up():
    learner, moved = learn("optim.critic_warmup=100", batches=2)
    assert max(moved.values()) == 0
    assert len(learner.optimizer.state) == len(learner.optimizer.param_groups[1]["params"]), "the critic's alone"
    _, moved = learn("optim.critic_warmup=100", batches=3)
    assert max(moved.values()) > 0
