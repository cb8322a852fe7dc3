# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""On a GPU, where there is one: the numbers of the CPU, by the eager path, ``torch.compile`` and CUDA graphs alike."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import CudaGraphModule
from torchrl.modules import MLP, ValueOperator

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, ReversibleSolver, VelocityMLP
from torchrl_genpo.config.compose import compose
from torchrl_genpo.training.build import build_env, build_models
from torchrl_genpo.training.learner import Learner
from torchrl_genpo.training.loop import Training
from torchrl_genpo.training.ranks import Ranks
from torchrl_genpo.training.run_folder import RunFolder
from torchrl_genpo.training.signals import StopRequest
from torchrl_genpo.training.update import make_update

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no GPU here.")


def make_loss(gradient="stored"):
    torch.manual_seed(0)
    velocity = VelocityMLP(in_features=11, action_dim=3, num_cells=(64, 64))
    actor = ReversibleFlowActor(velocity, solver=ReversibleSolver(5, gradient=gradient))
    critic = ValueOperator(MLP(in_features=11, out_features=1, num_cells=[64]))
    loss = GenPOLoss(actor, critic)
    with torch.no_grad():
        data = actor(TensorDict(observation=torch.randn(256, 11), batch_size=[256]))
        data["advantage"], data["value_target"] = torch.randn(2, 256, 1)
    return actor, loss, data


@pytest.mark.parametrize("gradient", ["stored", "reversible"])
def test_densities_and_gradients_are_those_of_the_cpu_in_double_precision(gradient):
    _, loss, data = make_loss(gradient)
    results = {}
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        copy = deepcopy(loss).to(device=device, dtype=dtype)
        out = copy(data.to(dtype).to(device))
        (out["loss_objective"] + out["loss_critic"]).backward()
        gradients = [p.grad.flatten().double().cpu() for p in copy.parameters() if p.grad is not None]
        results[device] = out["loss_objective"].item(), torch.cat(gradients)
    assert results["cuda"][0] == pytest.approx(results["cpu"][0], abs=1e-5)
    torch.testing.assert_close(results["cuda"][1], results["cpu"][1], rtol=1e-3, atol=1e-5)


def test_the_ratio_of_a_fresh_batch_is_one():
    actor, loss, data = make_loss()
    actor.cuda(), loss.cuda()
    data = actor(data.select("observation").cuda()).detach()
    data["advantage"], data["value_target"] = torch.randn(2, 256, 1, device="cuda")
    assert loss(data)["inversion_error"] < 1e-3


@pytest.mark.parametrize(
    "how", [{"compile_mode": "default"}, {"cudagraphs": True}, {"compile_mode": "default", "cudagraphs": True}]
)
def test_compiled_and_captured_updates_are_the_eager_one(how):
    _, loss, data = make_loss()
    data, parameters = data.cuda(), []
    for options in ({}, how):
        copy = deepcopy(loss).cuda()
        update = make_update(copy, torch.optim.Adam(copy.parameters(), lr=1e-3, fused=True), 1.0, **options)
        for mini_batch in data.split(32) * 2:  # CUDA graphs are captured after the fifth
            update(mini_batch.clone())  # the captured one's tensors become the inputs of the graph
        parameters.append(torch.cat([p.detach().flatten() for p in copy.parameters()]))
    torch.testing.assert_close(parameters[1], parameters[0], rtol=0, atol=2e-4)


def test_a_captured_policy_draws_new_noise_at_every_call():
    actor, *_ = make_loss()
    policy = CudaGraphModule(actor.cuda())
    with torch.no_grad():
        actions = [
            policy(TensorDict(observation=torch.zeros(4, 11), device="cuda"))["action"].clone() for _ in range(5)
        ]
    assert torch.stack(actions).flatten(1).unique(dim=0).shape[0] == 5


def configure(*overrides):
    options = ["env=pendulum", "device=cuda", "collector.frames_per_batch=128", "loss.mini_batch_size=32"]
    return compose([*options, *overrides])


def test_captured_while_the_critic_alone_learns_the_actor_learns_afterwards():
    cfg = configure("compile.cudagraphs=true", "optim.critic_warmup=256")
    env = build_env(cfg, 2, seed=0)
    actor, critic, loss = build_models(cfg, env)
    learner = Learner(cfg, env, actor, critic, loss, Ranks("cuda"))
    moved, before = [], loss.actor_network_params.clone()
    for batch in range(4):
        with torch.no_grad():
            data = env.rollout(64, actor, break_when_any_done=False)
        learner.learn(data, 128 * batch)
        change = loss.actor_network_params.flatten_keys(".").data - before.flatten_keys(".").data
        moved.append(max(value.abs().max().item() for value in change.values()))
    assert moved[0] == moved[1] == 0
    assert 0 < moved[2] < moved[3]


@pytest.mark.parametrize("policy", ["reversible_flow", "gaussian", "genpo", "fpo", "policyflow"])
@pytest.mark.parametrize("how", [[], ["compile.cudagraphs=true"], ["compile.enabled=true"]])
def test_every_policy_trains(policy, how, tmp_path):
    cfg = configure(f"policy={policy}", "collector.total_frames=512", "eval.num_envs=2", *how)
    training = Training(cfg, RunFolder(tmp_path), Ranks("cuda"))
    try:
        training.run(StopRequest())
        assert training.progress.frames == 512
    finally:
        training.close()


@pytest.mark.parametrize("task", ["pendulum", "hopper", "xhand/nut_bolt"])
def test_a_run_is_resumed_with_its_simulators(task, tmp_path):
    cfg = configure(f"env={task}", "env.num_envs=4", "collector.total_frames=128", "eval.num_envs=3")
    for resume in (False, True):
        training = Training(cfg, RunFolder(tmp_path, resume=resume), Ranks("cuda"))
        training.run(StopRequest())
        assert training.progress.frames == 128
        training.close()
