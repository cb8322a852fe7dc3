"""Evaluation, the update and the parts of a run that the entry script and the examples share."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale
from torchrl.envs import ExplorationType, GymEnv, RewardSum, StepCounter, TransformedEnv, set_exploration_type
from torchrl.modules import MLP, ValueOperator

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, ReversibleSolver, VelocityMLP
from torchrl_genpo.config.compose import compose
from torchrl_genpo.envs import make_env
from torchrl_genpo.modules import encode, flow_of
from torchrl_genpo.training import DivergedError, check_finite, evaluate, make_update
from torchrl_genpo.training.build import build_env
from torchrl_genpo.training.evaluation import RatioWatch, episode_log
from torchrl_genpo.training.policy import make_policy


def make_actor(solver=None):
    gaussian = torch.nn.Sequential(torch.nn.Linear(4, 1), AddStateIndependentNormalScale(1))
    return ReversibleFlowActor(VelocityMLP(4, 1, (16, 16)), solver=solver, gaussian=gaussian)


def make_critic():
    return ValueOperator(MLP(in_features=4, out_features=1, num_cells=[16]))


@pytest.fixture
def parts():
    torch.manual_seed(0)
    env = make_env("pendulum", num_envs=3, seed=0)
    actor = make_actor()
    return env, actor, GenPOLoss(actor, make_critic(), clip_epsilon=0.2)


def batch_of(actor, size=32):
    with torch.no_grad():
        data = actor(TensorDict(observation=torch.randn(size, 4), batch_size=[size]))
    data["advantage"], data["value_target"] = torch.randn(2, size, 1)
    return data


def test_ratios_of_pair_and_action_are_compared(parts):
    _, actor, _ = parts
    watch = RatioWatch(actor, batch_of(actor, 8192), 16)
    same = watch.compare(0.2)
    assert abs(same["kl_pair"]) < 1e-4 and abs(same["kl_action"]) < 1e-4 and same["ess"] > 0.5
    assert same["clip_fraction_pair"] == same["clip_fraction_action"] == 0
    with torch.no_grad():
        for parameter in actor.velocity.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    moved = watch.compare(0.2)
    assert moved["kl_pair"] > moved["kl_action"] > 0  # information is only lost by forgetting the memory
    assert moved["clip_fraction_pair"] > moved["clip_fraction_action"] > 0


def test_the_ratios_follow_whatever_of_the_policy_moves():
    options = compose(["env=pendulum", "env.num_envs=2", "collector.frames_per_batch=64", "loss.mini_batch_size=32"])
    env = build_env(options, 2, 0)
    policy = make_policy(options, env)
    with torch.no_grad():
        for parameter in flow_of(policy).gaussian[0].parameters():  # the first one hardly moves the mean
            parameter.mul_(100)
    data = env.rollout(64, policy, break_when_any_done=False).reshape(-1).detach()
    watch = RatioWatch(policy, data, 16)
    assert watch.compare(0.2)["kl_pair"] == pytest.approx(0, abs=1e-5)
    trunk = next(step for step in policy.module if step.out_keys == ["trunk"])
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    moved = watch.compare(0.2)
    exact = (data["action_log_prob"] - flow_of(policy).log_prob(encode(policy, data)[1])).mean().item()
    assert moved["kl_pair"] == pytest.approx(exact, rel=1e-4) and exact > 0.01 and moved["kl_action"] > 0.01
    env.close()


def test_evaluation_repeats_itself_and_leaves_the_random_state_alone(parts):
    env, actor, _ = parts
    state = torch.get_rng_state()
    first = evaluate(env, actor, seed=7)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    assert first == evaluate(env, actor, seed=7)
    assert first != evaluate(env, actor, seed=8)


def test_evaluation_takes_an_environment_without_a_batch_and_names_what_it_lacks():
    env = TransformedEnv(GymEnv("Pendulum-v1"), StepCounter(50))
    actor = ReversibleFlowActor(VelocityMLP(3, 1, (16,)))
    with pytest.raises(KeyError, match=r"append torchrl\.envs\.RewardSum"):
        evaluate(env, actor, seed=3)
    env.append_transform(RewardSum())
    returns = evaluate(env, actor, seed=3)
    assert -1000 < returns["eval/zero_noise/return"] < 0 and returns == evaluate(env, actor, seed=3)


@pytest.mark.parametrize("rounds", [1, 3])
def test_evaluation_counts_the_first_episodes_of_each_environment(parts, rounds):
    env, actor, _ = parts
    result = evaluate(env, actor, seed=7, rounds=rounds)
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        env.set_seed(7)
        steps = env.rollout(1000, actor, break_when_any_done=False)
    returns = []
    for i in range(3):
        ends = steps["next", "done"][i, :, 0].nonzero()[:rounds, 0]
        returns += steps["next", "episode_reward"][i, ends, 0].tolist()
    assert len(returns) == 3 * rounds
    assert result["eval/zero_noise/return"] == pytest.approx(sum(returns) / len(returns))


@pytest.mark.parametrize("compile_mode", [None, pytest.param("default", marks=pytest.mark.slow)])
def test_an_update_is_one_clipped_gradient_step(compile_mode):
    actor = make_actor(ReversibleSolver(num_steps=2))  # soon compiled
    loss = GenPOLoss(actor, make_critic(), clip_epsilon=0.2)
    batch = batch_of(actor)
    out = loss(batch)
    (out["loss_objective"] + out["loss_critic"]).backward()
    params = [p for p in loss.parameters() if p.requires_grad]
    norm = torch.cat([p.grad.flatten() for p in params]).norm()
    expected = [p.detach() - 0.1 * p.grad * min(1, 0.01 / norm.item()) for p in params]
    update = make_update(loss, torch.optim.SGD(params, 0.1), 0.01, compile_mode=compile_mode)
    result = update(batch)
    torch.testing.assert_close(result["grad_norm"], norm, rtol=1e-4, atol=0)
    torch.testing.assert_close(result["loss_objective"], out["loss_objective"].detach())
    for parameter, value in zip(params, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-4, atol=1e-6)


def test_an_update_that_is_not_finite_changes_nothing_and_says_where(parts):
    _, actor, loss = parts
    params = list(loss.parameters())
    before = [p.detach().clone() for p in params]
    update = make_update(loss, torch.optim.Adam(params), 1.0)
    batch = batch_of(actor)
    batch["advantage"][3] = float("nan")
    with pytest.raises(DivergedError, match="loss_objective"):
        update(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))


def test_a_ratio_that_is_not_finite_is_found_where_the_clip_hides_it(parts):
    _, actor, loss = parts
    batch = batch_of(actor)
    batch["advantage"][3], batch["action"][3] = -1.0, 1e25
    with pytest.raises(DivergedError, match="kl_approx"):
        make_update(loss, torch.optim.Adam(loss.parameters()), 1.0)(batch)


def test_data_that_is_not_finite_is_named():
    check_finite({"observation": torch.zeros(3)}, "the data")
    with pytest.raises(DivergedError, match=r"the data.*reward"):
        check_finite({"observation": torch.zeros(3), "reward": torch.tensor([1.0, float("inf")])}, "the data")


def test_statistics_are_means_over_ended_episodes_where_they_apply():
    nan = float("nan")
    following = {
        "done": torch.tensor([[True], [True], [False], [True]]),
        "log": TensorDict({"fell": torch.tensor([[1.0], [0.0], [1.0], [0.0]])}, batch_size=4),
        "metrics": TensorDict(
            {"a": torch.tensor([[3.0], [nan], [8.0], [5.0]]), "b": torch.tensor([[nan], [nan], [2.0], [nan]])},
            batch_size=4,
        ),
        "success": torch.tensor([[1.0], [1.0], [1.0], [0.0]]),
    }
    data = TensorDict({"next": TensorDict(following, batch_size=4)}, batch_size=4)
    assert episode_log(data) == pytest.approx({"task/fell": 1 / 3, "task/a": 4.0, "train/success": 2 / 3})
    data["next", "done"] = torch.zeros(4, 1, dtype=torch.bool)
    assert episode_log(data) == {}
