# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The tanh behind an actor bounds its actions, and the density stays exact."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale, ProbabilisticTensorDictSequential
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP
from torchrl_genpo.config.compose import compose
from torchrl_genpo.modules import ActionScale, Squash, flow_of
from torchrl_genpo.training.build import build_env, build_models

OBS, D = 3, 2
LOW, HIGH = torch.tensor([-2.0, 0.0]), torch.tensor([1.0, 0.5])


def make_policy(seed=0):
    torch.manual_seed(seed)
    velocity = VelocityMLP(OBS, D, (16, 16))
    torch.nn.init.normal_(velocity.trunk[-1].weight, std=0.5)  # a flow that bends
    gaussian = torch.nn.Sequential(torch.nn.Linear(OBS, D), AddStateIndependentNormalScale(D, init_value=0.4))
    actor = ReversibleFlowActor(velocity, gaussian=gaussian, action_key="raw_action")
    return ProbabilisticTensorDictSequential(actor, Squash(LOW, HIGH)).double()


@pytest.mark.parametrize("kind", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
def test_actions_lie_between_the_bounds_with_and_without_noise(kind):
    policy = make_policy()
    with set_exploration_type(kind):
        td = policy(TensorDict(observation=torch.randn(256, OBS).double(), batch_size=[256]))
    assert (td["action"] >= LOW).all() and (td["action"] <= HIGH).all()
    expected = (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * td["raw_action"].tanh()
    torch.testing.assert_close(td["action"], expected)


def test_the_density_of_the_bounded_pair_is_that_of_an_autograd_jacobian():
    policy = make_policy(1)
    actor, squash = policy.module[0], policy.module[1]
    td = policy(TensorDict(observation=torch.randn(1, OBS).double(), batch_size=[1]))
    dist = actor.get_dist(td.select("observation"))
    noise = torch.cat(dist.to_noise(td["raw_action"], td["action_memory"]), -1)[0]

    def push(noise):
        x, memory = dist.from_noise(*(part.unsqueeze(0) for part in noise.chunk(2)))
        return torch.cat([squash.denormalize(x), memory], -1)[0]

    jacobian = torch.autograd.functional.jacobian(push, noise)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum()
    exact = normal - torch.linalg.slogdet(jacobian).logabsdet
    squashed = td["action_log_prob"] - squash.log_abs_det(td["raw_action"])
    torch.testing.assert_close(squashed[0], exact)


def test_a_demonstration_is_unsquashed_and_one_at_a_bound_stays_finite():
    squash = Squash(LOW, HIGH)
    raw = torch.randn(50, D)
    torch.testing.assert_close(squash.normalize(squash.denormalize(raw)), raw, rtol=1e-3, atol=1e-3)
    assert torch.isfinite(squash.normalize(torch.stack([LOW, HIGH]))).all()


@pytest.mark.parametrize("make", [Squash, ActionScale])
def test_the_bounds_of_a_batched_environment_are_refused(make):
    with pytest.raises(ValueError, match="take the first"):
        make(torch.ones(4, D), torch.full((4, D), 2.0))


def test_the_log_determinant_is_exact_far_out_where_a_tanh_is_flat():
    squash = Squash(LOW, HIGH)
    x = torch.tensor([20.0, -20.0])
    slope = 4 * torch.exp(-2 * x.double().abs()) / (1 + torch.exp(-2 * x.double().abs())) ** 2
    exact = (slope * ((HIGH - LOW) / 2).double()).log().sum()
    torch.testing.assert_close(squash.log_abs_det(x).double(), exact, rtol=1e-6, atol=1e-6)


def test_a_squashed_policy_trains_by_the_loss_with_ratios_of_one_at_first():
    policy = make_policy(2).float()
    data = policy(TensorDict(observation=torch.randn(64, OBS), batch_size=[64])).detach()
    data["advantage"] = torch.randn(64, 1)
    loss = GenPOLoss(policy, None, critic_coeff=None)
    out = loss(data)
    assert (out["max_ratio"] - 1).abs() < 1e-4
    out["loss_objective"].backward()
    assert all(p.grad is not None for p in loss.parameters())


@pytest.mark.parametrize("low, high", [([0.0], [float("inf")]), ([1.0], [1.0]), ([0.0], [1.0, 2.0])])
def test_bounds_without_a_width_are_refused(low, high):
    with pytest.raises(ValueError, match="bound"):
        Squash(torch.tensor(low), torch.tensor(high))


@pytest.mark.parametrize("policy", ["reversible_flow", "gaussian", "fpo"])
def test_the_option_squashes_every_kind_of_policy_to_the_bounds_of_the_task(policy):
    options = compose([f"policy={policy}", "policy.squash=true", "env.name=Pendulum-v1", "env.num_envs=2"])
    env = build_env(options, 2, 0)
    policy, _, _ = build_models(options, env)
    assert isinstance(policy.module[-1], Squash)
    actions = env.rollout(20, policy)["action"]
    assert (actions.abs() < 2).all() and actions.abs().max() > 0.5


def test_the_option_is_refused_where_a_tanh_cannot_be_undone():
    with pytest.raises(ValueError, match=r"policy\.squash"):
        compose(["env=robomimic/can", "policy.squash=true"])


def test_flow_of_finds_the_actor_before_a_squash():
    assert isinstance(flow_of(make_policy()), ReversibleFlowActor)
