"""What one batch does to the networks, and at which rates."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

from torchrl_genpo.config.compose import compose
from torchrl_genpo.modules import encode
from torchrl_genpo.training import DivergedError
from torchrl_genpo.training.build import build_env, build_models, normalizers
from torchrl_genpo.training.learner import Learner
from torchrl_genpo.training.policy import LEAST_STD, AddCovariance
from torchrl_genpo.training.ranks import Ranks
from torchrl_genpo.training.reward_scale import RewardScale

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


@pytest.mark.parametrize(
    ("policy", "noise"),
    [
        ([], "module.2.gaussian.1.state_independent_scale"),
        (["start=pretrained"], "module.2.start.log_tau"),
        (["policy=gaussian"], "module.1.module.1.state_independent_scale"),
    ],
)
def test_the_noise_has_a_rate_of_its_own(policy, noise):
    fixed = ["optim.schedule=constant", "optim.lr=1e-7", "optim.critic_lr=1e-3"]
    _, alike = learn(*policy, *fixed)
    assert max(alike.values()) < 1e-5
    learner, moved = learn(*policy, *fixed, "optim.noise_lr=1e-2")
    assert 1e-2 < moved.pop(noise) < 1
    assert max(moved.values()) < 1e-5
    assert [group["lr"] for group in learner.optimizer.param_groups][:3] == [1e-7, 1e-3, 1e-2]


@pytest.mark.parametrize(("given", "rate"), [([], 1e-7 / 3), (["optim.head_lr=1e-2"], 1e-2)])
def test_the_head_has_a_rate_of_its_own_by_default_a_third(given, rate):
    fixed = ["optim.schedule=constant", "optim.lr=1e-7", "optim.critic_lr=1e-3"]
    learner, moved = learn(*fixed, *given)
    assert [group["lr"] for group in learner.optimizer.param_groups] == [1e-7, 1e-3, rate]
    head = {name for name in moved if ".velocity." in name}
    assert head and all((moved[name] > 1e-3) == (name in head and rate == 1e-2) for name in moved)


def test_a_flow_without_a_head_has_one_rate():
    learner, _ = learn("policy.head_sizes=[]", "optim.lr=1e-4", "optim.critic_lr=1e-3", "optim.schedule=constant")
    assert [group["lr"] for group in learner.optimizer.param_groups] == [1e-4, 1e-3]


def test_an_adaptive_rate_moves_that_of_the_noise_and_leaves_the_critics_alone():
    rates = ["optim.lr=1e-4", "optim.critic_lr=1e-3", "optim.noise_lr=4e-4", "optim.target_kl=100"]
    learner, _ = learn(*rates, batches=2)
    actor, critic, noise, head = (group["lr"] for group in learner.optimizer.param_groups)
    assert actor == pytest.approx(1.5**2 * 1e-4)
    assert (critic, noise, head) == (1e-3, pytest.approx(4 * actor), pytest.approx(actor / 3))


def test_a_linear_schedule_leaves_a_rate_of_the_critics_own_alone():
    options = ["optim.schedule=linear", "optim.lr=1e-4", "collector.total_frames=128"]
    for own, expected in ((["optim.critic_lr=1e-3"], 1e-3), ([], 5e-5)):
        learner, _ = learn(*options, *own, batches=2)
        assert [group["lr"] for group in learner.optimizer.param_groups] == pytest.approx([5e-5, expected, 5e-5 / 3])


@pytest.mark.parametrize("policy", ["policy.scale=unit", "policy=fpo"])
def test_a_rate_of_the_noise_does_nothing_where_the_noise_has_no_parameters(policy):
    learner, moved = learn(policy, "optim.noise_lr=3e-3")
    without, moved_without = learn(policy)
    assert len(learner.optimizer.param_groups) == len(without.optimizer.param_groups)
    assert moved == moved_without


def test_the_critic_alone_learns_during_its_warm_up():
    learner, moved = learn("optim.critic_warmup=100", batches=2)
    assert max(moved.values()) == 0
    assert len(learner.optimizer.state) == len(learner.optimizer.param_groups[1]["params"]), "the critic's alone"
    _, moved = learn("optim.critic_warmup=100", batches=3)
    assert max(moved.values()) > 0


def test_the_statistics_move_after_the_update_and_are_those_of_the_batch():
    options, env, policy, critic, loss = make_parts()
    learner = Learner(options, env, policy, critic, loss, Ranks("cpu"))
    (normalizer,) = normalizers(policy, critic)
    for _ in range(2):
        data = collect(env, policy)
        seen = data["observation"].clone()
        row = learner.learn(data, 0)
        assert row["train/inversion_error"] < 1e-4, "stored and recomputed densities are of the same statistics"
    assert normalizer.count == 128
    first = collect(make_parts()[1], policy)["observation"]
    assert not torch.equal(first, seen)


def test_collected_densities_are_exact_after_the_statistics_have_moved():
    options, env, policy, critic, loss = make_parts()
    learner = Learner(options, env, policy, critic, loss, Ranks("cpu"))
    learner.learn(collect(env, policy), 0)
    data = collect(env, policy)
    flow, seen = encode(policy, data)
    torch.testing.assert_close(flow.log_prob(seen), data["action_log_prob"], atol=1e-4, rtol=0)


def test_statistics_stand_still_where_normalisation_is_off():
    _, env, policy, critic, _ = make_parts("env.normalize_observation=false")
    assert not normalizers(policy, critic)
    assert "normalized_observation" not in collect(env, policy).keys()


HAND = ["env=xhand/nut_bolt", "env.num_envs=2", "env.options.num_threads=1", "env.options.max_steps=20"]


def test_the_critic_of_a_task_with_an_observation_of_its_own_has_its_own_normaliser():
    _, _, policy, critic, _ = make_parts(*HAND)
    assert [n.in_keys for n in normalizers(policy, critic)] == [["observation"], ["critic_observation"]]


def test_beside_a_frozen_policy_the_critics_own_normaliser_moves():
    options, env, policy, critic, loss = make_parts(*HAND)
    options.policy.__dict__["trainable"] = "head"  # of a policy.init, which a run would need
    learner = Learner(options, env, policy, critic, loss, Ranks("cpu"))
    learner.learn(collect(env, policy), 0)
    assert [int(n.count) for n in normalizers(policy, critic)] == [0, 64]


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return():
    _, env, policy, *_ = make_parts()
    batches = [collect(env, policy) for _ in range(2)]
    scale, raw, returns = RewardScale(), [], []
    for data in batches:
        raw.append(data["next", "reward"].clone())
        returns.append(data["next", "discounted_return"].double())
        scale(data)
        deviation = torch.cat(returns).std(correction=0)
        torch.testing.assert_close(data["next", "reward"], (raw[-1] / deviation).clamp(-10, 10).float())


def test_a_bad_batch_leaves_the_statistics_alone():
    options, env, policy, critic, loss = make_parts()
    learner = Learner(options, env, policy, critic, loss, Ranks("cpu"))
    data = collect(env, policy)
    data["next", "observation"][1, 5] = float("nan")
    before = [buffer.clone() for buffer in (*policy.buffers(), *learner.reward_scale.buffers())]
    with pytest.raises(DivergedError, match=r"observation \(first in step 5 of the batch, environment 1\)"):
        learner.learn(data, 0)
    after = [*policy.buffers(), *learner.reward_scale.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("policy", ["reversible_flow", "gaussian", "genpo", "fpo", "policyflow"])
@pytest.mark.parametrize("task", ["pendulum", "half_cheetah"])
def test_every_policy_learns_from_a_batch_with_actions_in_the_tasks_units(policy, task):
    options = ["solver.num_steps=2"] if policy not in ("gaussian", "fpo", "policyflow") else []
    learner, moved = learn(f"policy={policy}", f"env={task}", *options)
    assert max(moved.values()) > 0
    assert ("raw_action" in learner.policy.out_keys) == (task == "pendulum")  # whose actions are in [-3, 3]


def test_a_gaussians_deviation_may_depend_on_the_state_and_begins_where_the_others_does():
    overrides = ("policy=gaussian", "policy.scale=state_dependent", "policy.initial_std=0.4", "policy.min_std=0.1")
    _, env, policy, *_ = make_parts(*overrides)
    normalizer, network = policy.module[:2]
    seen = normalizer(env.rollout(8))
    scale = network(seen)["scale"]
    torch.testing.assert_close(scale, torch.full_like(scale, 0.4), atol=0.02, rtol=0)
    _, moved = learn(*overrides)
    last = next(name for name in reversed(moved) if name.endswith("weight"))
    assert moved[last] > 0
    network.module[0][-1].bias.data.fill_(-50.0)
    torch.testing.assert_close(network(seen)["scale"], torch.full_like(scale, 0.1))


def test_a_state_dependent_deviation_without_a_floor_has_the_floor_of_the_others():
    _, env, policy, *_ = make_parts("policy=gaussian", "policy.scale=state_dependent", "policy.initial_std=0.005")
    normalizer, network = policy.module[:2]
    seen = normalizer(env.rollout(8))
    scale = network(seen)["scale"]
    torch.testing.assert_close(scale, torch.full_like(scale, 0.005), atol=3e-4, rtol=0)
    network.module[0][-1].bias.data.fill_(-50.0)
    torch.testing.assert_close(network(seen)["scale"], torch.full_like(scale, LEAST_STD))


@pytest.mark.parametrize("scale", ["learned", "covariance", "state_dependent"])
def test_a_deviation_at_its_floor_can_grow_again(scale):
    _, env, policy, *_ = make_parts("policy=gaussian", f"policy.scale={scale}", "policy.min_std=0.3")
    normalizer, network = policy.module[:2]
    seen = normalizer(env.rollout(8))

    def deviation():
        found = network(seen)
        return found["scale"] if scale != "covariance" else found["scale_tril"].diagonal(dim1=-2, dim2=-1)

    torch.testing.assert_close(deviation(), torch.full_like(deviation(), 0.5), atol=1e-3, rtol=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for wanted in (0.0, 2.0):
        for _ in range(1000):
            optimizer.zero_grad()
            (deviation() - wanted).square().mean().backward()
            optimizer.step()
            if (deviation() - max(wanted, 0.3)).abs().max() < 0.02:
                break
        else:
            pytest.fail(f"It stays at {deviation()}, {wanted} is wanted.")
    assert deviation().min() > 0.3


def test_a_gaussian_may_have_a_covariance_of_all_numbers_of_an_action():
    _, moved = learn("policy=gaussian", "policy.scale=covariance", "env=half_cheetah")
    assert moved["module.1.module.1.below"] > 0 and moved["module.1.module.1.log_diagonal"] > 0
    network = AddCovariance(3, 0.5, 1e-4)
    with torch.no_grad():
        network.below.normal_()
    loc, root = network(torch.zeros(100_000, 3))
    action = MultivariateNormal(loc, scale_tril=root).sample()
    torch.testing.assert_close(action.T.cov(), root[0] @ root[0].T, atol=0.02, rtol=0.02)


def test_an_action_in_the_tasks_units_is_the_scaled_one():
    _, env, policy, *_ = make_parts()
    data = collect(env, policy)
    torch.testing.assert_close(data["action"], 3 * data["raw_action"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.proximal_decay=0.9", "policy=fpo"], "needs a policy with a density; policy=fpo has none"),
        (["loss.entropy_coeff=0.01", "policy.scale=unit"], "the entropy of the pair is a constant"),
    ],
)
def test_what_an_objective_cannot_do_is_explained(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_parts(*overrides)
