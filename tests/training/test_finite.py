"""Numbers that are not finite: named where they appear, kept out of the statistics, undone."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs import ParallelEnv
from torchrl.modules import MLP, ValueOperator

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP
from torchrl_genpo.envs import make_env, name_worker_failure
from torchrl_genpo.envs.robomimic.env import _Workers
from torchrl_genpo.training import DivergedError, check_finite, make_update
from torchrl_genpo.training.finite import LastGood, check_data

NAN, INF = float("nan"), float("inf")
KEYS = [("next", "observation"), ("next", "reward"), "observation"]


def pendulum(num_envs=3):
    return make_env("pendulum", num_envs=num_envs, seed=0)


def step(env, td, key, index, value):
    """One step whose simulator returns ``value`` for one environment."""
    base = env.base_env
    original = base._step

    def broken(tensordict):
        out = original(tensordict)
        out[key] = out[key].clone()
        out[key][index] = value
        return out

    base._step = broken
    try:
        return env.step_and_maybe_reset(env.rand_action(td))
    finally:
        base._step = original


def make_loss():
    actor = ReversibleFlowActor(VelocityMLP(4, 1, (8,)))
    return actor, GenPOLoss(actor, ValueOperator(MLP(in_features=4, out_features=1, num_cells=[8])))


@pytest.mark.parametrize("key", ["observation", "reward"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_the_simulators_number_is_named_by_key_environment_and_step(key, value):
    env = pendulum()
    td = env.reset()
    steps = []
    for time in range(4):
        taken, td = step(env, td, key, 1, value if time == 2 else 0.0)
        steps.append(taken)
    data = torch.stack(steps, 1)
    with pytest.raises(DivergedError, match=rf"data: {key} \(first in step 2 of the batch, environment 1\)"):
        check_data(data, KEYS)
    check_data(data[:, :2], KEYS)


def test_the_tasks_own_terms_are_named_where_something_is_wrong():
    data = TensorDict(
        {
            "observation": torch.zeros(4, 5, 3),
            "next": {"observation": torch.zeros(4, 5, 3), "reward": torch.zeros(4, 5, 1)},
        },
        [4, 5],
    )
    data["next", "log"] = TensorDict({"torque": torch.zeros(4, 5, 1), "upright": torch.zeros(4, 5, 1)}, [4, 5])
    data["next", "reward"][1, 3] = data["next", "reward"][3, 3] = data["next", "log", "torque"][1, 3] = INF
    with pytest.raises(DivergedError) as error:
        check_data(data, KEYS)
    assert "reward (first in step 3 of the batch, environment 1, 3)" in str(error.value)
    assert "log torque" in str(error.value) and "upright" not in str(error.value)


def test_long_lists_are_cut():
    with pytest.raises(DivergedError, match="and 12 more"):
        check_finite({str(i): torch.tensor(NAN) for i in range(20)}, "the test")


def test_the_last_good_state_comes_back():
    _, loss = make_loss()
    statistics = nn.BatchNorm1d(2)
    optimizer = torch.optim.Adam(loss.parameters())

    def state():
        moments = [value for group in optimizer.state.values() for value in group.values()]
        return [
            *(p.detach().clone() for p in loss.parameters()),
            *(m.clone() for m in moments),
            statistics.running_mean,
        ]

    for parameter in loss.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    good = LastGood(loss, optimizer, statistics)
    before = [value.clone() for value in state()]
    for parameter in loss.parameters():
        parameter.grad = torch.full_like(parameter, NAN)
    optimizer.step()
    statistics(torch.randn(5, 2))
    assert not all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    for _ in range(2):  # as often as needed
        good.restore()
        assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
        statistics(torch.randn(5, 2))


def test_a_gradient_is_named_by_its_parameter():
    actor, loss = make_loss()
    with torch.no_grad():
        batch = actor(TensorDict(observation=torch.randn(16, 4), batch_size=[16]))
    batch["advantage"], batch["value_target"] = torch.randn(2, 16, 1)
    broken = next(loss.critic_network_params.parameters())
    broken.register_hook(lambda gradient: gradient * NAN)
    update = make_update(loss, torch.optim.Adam(loss.parameters()), 1.0)
    with pytest.raises(DivergedError, match=r"in the gradient of the loss: critic_network_params\S+\.$"):
        update(batch)


def make_pendulum():
    return make_env("pendulum", num_envs=1, seed=0)


@pytest.fixture
def two_workers():
    env = ParallelEnv(2, make_pendulum, use_buffers=False, mp_start_method="fork")
    env.reset()
    yield env
    for worker in env._workers:
        with contextlib.suppress(ValueError):  # it is closed
            worker.kill()
    env.is_closed = True  # else TorchRL says goodbye to each for ten seconds


def test_a_dead_worker_is_named_and_other_errors_are_not_its(two_workers):
    assert name_worker_failure(two_workers, RuntimeError("a bug")) is None
    two_workers._workers[1].kill()
    with pytest.raises(Exception) as error:
        two_workers.rollout(3)
    assert name_worker_failure(two_workers, error.value) == "Worker 1 of the environment died (exit code -9)."
    assert name_worker_failure(make_pendulum(), RuntimeError()) is None


def test_a_dead_worker_is_named_when_torchrl_has_closed_the_others(two_workers):
    for worker in two_workers._workers:  # both, so that the other has ended too, however busy the machine is
        worker.kill()
        worker.join()
    two_workers._workers[1].close()
    assert name_worker_failure(two_workers, RuntimeError("At least one process failed")) == (
        "Worker 0 of the environment died (exit code -9)."
    )


def test_an_environment_that_a_collector_has_closed_still_tells_who_died():
    for killed, expected in ((None, None), (1, "Worker 1 of the environment died (exit code -9).")):
        env = _Workers(2, make_pendulum, use_buffers=False, mp_start_method="fork")
        env.reset()
        if killed is not None:
            worker, env._timeout = env._workers[killed], 0.5  # s
            env.parent_channels[killed].send = lambda message, worker=worker: worker.kill()  # it dies unheard
        env.close()
        assert name_worker_failure(env, RuntimeError("a bug")) == expected


def test_a_worker_that_hangs_is_named(two_workers):
    two_workers.BATCHED_PIPE_TIMEOUT = 1
    os.kill(two_workers._workers[0].pid, signal.SIGSTOP)
    with pytest.raises(RuntimeError) as error:
        two_workers.rollout(3)
    assert name_worker_failure(two_workers, error.value) == "A worker of the environment did not answer for 1 s."
