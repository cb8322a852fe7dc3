"""PairLoss passes the checks that TorchRL's own losses must pass, and is exact."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale, set_composite_lp_aggregate
from torch import nn
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE, TD1Estimator, TDLambdaEstimator

from torchrl_genpo import ReversibleFlowActor, VelocityMLP
from torchrl_genpo.objectives import PairLoss

from ._objectives_common import LossModuleTestBase

LOSS_KEYS = ("loss_objective", "loss_critic")


def make_gaussian():
    return nn.Sequential(nn.Linear(4, 2), AddStateIndependentNormalScale(2))


def make_models(start=None, **keys):
    actor = ReversibleFlowActor(VelocityMLP(4, 2, (32, 32)), start=start, **keys)
    nn.init.normal_(actor.velocity.trunk[-1].weight, std=0.3)
    obs_keys = keys.get("in_keys", ["observation"])
    return actor, ValueOperator(MLP(in_features=4, out_features=1, num_cells=[32]), in_keys=obs_keys)


def make_data(actor, batch=(8,)):
    td = actor(TensorDict(observation=torch.randn(*batch, 4), batch_size=batch)).detach()
    td["advantage"], td["value_target"] = torch.randn(2, *batch, 1)
    return td


def make_trajectories(actor):
    td = actor(TensorDict(observation=torch.randn(4, 10, 4), batch_size=[4, 10], names=[None, "time"])).detach()
    done = torch.zeros(4, 10, 1, dtype=torch.bool)
    td["next"] = TensorDict(
        observation=torch.randn(4, 10, 4), reward=torch.randn(4, 10, 1), done=done, terminated=done, batch_size=[4, 10]
    )
    return td


def perturb(module, std=0.02):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn_like(parameter))


def gradients(loss, td, keys=LOSS_KEYS):
    loss.zero_grad()
    out = loss(td)
    sum(out[key] for key in keys).backward()
    return {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}


class TestPairLoss(LossModuleTestBase):
    """What TorchRL asks of ClipPPOLoss, asked of a loss of a pair."""

    # key: (the value estimator's name for it, another one)
    ADVANTAGE_KEYS = {  # noqa: RUF012
        "advantage": ("advantage", "advantage_new"),
        "value_target": ("value_target", "value_target_new"),
        "value": ("value", "value_new"),
        "reward": ("reward", "reward_new"),
        "done": ("done", ("done", "new")),
        "terminated": ("terminated", ("terminated", "new")),
    }

    @pytest.mark.parametrize("delay_actor", [False, True])
    def test_reset_parameters_recursive(self, delay_actor):
        self.reset_parameters_recursive_test(PairLoss(*make_models(), delay_actor=delay_actor))

    @pytest.mark.parametrize("functional", [True, False])
    @pytest.mark.parametrize("estimator", [None, *PairLoss.SUPPORTED_VALUE_ESTIMATORS])
    @pytest.mark.parametrize("advantage", [None, GAE, TD1Estimator, TDLambdaEstimator])
    def test_objective_and_value_loss_train_their_own_network(self, advantage, estimator, functional):
        actor, critic = make_models(gaussian=make_gaussian())
        td = make_trajectories(actor)
        loss = PairLoss(actor, critic, functional=functional)
        if estimator is not None:
            loss.make_value_estimator(estimator)
        if advantage is not None:
            options = {GAE: {"lmbda": 0.9}, TDLambdaEstimator: {"lmbda": 0.9}}
            advantage(gamma=0.9, value_network=critic, **options.get(advantage, {}))(td)
        elif estimator is not None:
            loss.value_estimator(td, params=loss.critic_network_params, target_params=loss.target_critic_network_params)
        before = td.clone()
        out = loss(td)
        assert out["inversion_error"] < 1e-4
        for key, network in zip(LOSS_KEYS, (actor, critic), strict=True):
            loss.zero_grad()
            out[key].backward(retain_graph=True)
            trained = {id(p) for p in loss.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
            assert trained == {id(p) for p in network.parameters()}
        for key in before.keys(True, True):
            torch.testing.assert_close(td[key], before[key], atol=0, rtol=0)

    def test_state_dict(self):
        actor, critic = make_models(gaussian=make_gaussian())
        loss = PairLoss(actor, critic)
        state = copy.deepcopy(loss.state_dict())
        td = make_data(actor)
        expected = loss(td)
        perturb(loss)
        other = PairLoss(*make_models(gaussian=make_gaussian()))
        other.load_state_dict(state)
        for key in LOSS_KEYS:
            torch.testing.assert_close(other(td)[key], expected[key])

    @pytest.mark.parametrize("estimator", PairLoss.SUPPORTED_VALUE_ESTIMATORS)
    def test_tensordict_keys(self, estimator):
        loss = PairLoss(*make_models())
        defaults = {key: key for key in ("advantage", "value_target", "action", "action_memory", "reward", "done")}
        defaults |= {"value": "state_value", "sample_log_prob": "action_log_prob", "terminated": "terminated"}
        self.tensordict_keys_test(loss, default_keys=defaults, td_est=estimator)
        actor, _ = make_models()
        critic = ValueOperator(MLP(in_features=4, out_features=1, num_cells=[32]), out_keys=["value_new"])
        self.set_advantage_keys_through_loss_test(PairLoss(actor, critic), estimator, self.ADVANTAGE_KEYS)

    @pytest.mark.parametrize("estimator", PairLoss.SUPPORTED_VALUE_ESTIMATORS)
    def test_renamed_keys_give_the_same_numbers(self, estimator):
        actor, critic = make_models()
        td = make_trajectories(actor)
        renamed = td.clone()
        names = {"action": "a", "action_memory": ("flow", "memory"), "sample_log_prob": ("flow", "log_prob")}
        names |= {"reward": "r", "done": "d", "terminated": ("t", "new"), "advantage": "adv", "value_target": "target"}
        for name in ("action", "action_memory"):
            renamed.rename_key_(name, names[name])
        renamed.rename_key_("action_log_prob", names["sample_log_prob"])
        for name in ("reward", "done", "terminated"):
            renamed["next"].rename_key_(name, names[name])
        outs = []
        for data, keys in ((td, {}), (renamed, names)):
            loss = PairLoss(actor, critic)
            loss.set_keys(**keys)
            loss.make_value_estimator(estimator)
            outs.append(loss(data))
        for key in outs[0].keys():
            torch.testing.assert_close(outs[1][key], outs[0][key])

    @pytest.mark.parametrize("names", [{}, {"action": "a", "action_memory": "m", "reward": "r", "terminated": "t"}])
    def test_keywords_instead_of_a_tensordict(self, names):
        actor, critic = make_models()
        td = make_trajectories(actor)
        expected = PairLoss(actor, critic)(td)
        loss = PairLoss(actor, critic)
        loss.set_keys(**names)
        for old, new in names.items():
            (td if old in td.keys() else td["next"]).rename_key_(old, new)
        kwargs = dict(zip(self._flatten_in_keys(loss.in_keys), (td.get(key) for key in loss.in_keys), strict=True))
        loss.select_out_keys("loss_objective", "inversion_error")
        for out, key in zip(loss(**kwargs), loss.out_keys, strict=True):
            torch.testing.assert_close(out, expected[key])

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum", None])
    def test_reduction(self, reduction):
        actor, critic = make_models()
        td = make_data(actor)
        out = PairLoss(actor, critic, reduction=reduction)(td)
        each = PairLoss(actor, critic, reduction="none")(td)
        for key in LOSS_KEYS:
            assert each[key].shape == (8,) or each[key].shape == (8, 1)
            expected = each[key] if reduction == "none" else getattr(each[key], reduction or "mean")()
            torch.testing.assert_close(out[key], expected)

    @pytest.mark.parametrize("clip_value", [True, 0.1])
    def test_value_clipping(self, clip_value):
        actor, critic = make_models()
        td = make_data(actor).set("state_value", torch.randn(8, 1))
        value = critic(td.clone())["state_value"]
        epsilon = 0.2 if clip_value is True else clip_value
        clipped = td["state_value"] + (value - td["state_value"]).clamp(-epsilon, epsilon)
        errors = [nn.functional.smooth_l1_loss(v, td["value_target"], reduction="none") for v in (value, clipped)]
        out = PairLoss(actor, critic, clip_value=clip_value, critic_coeff=1.0)(td)
        torch.testing.assert_close(out["loss_critic"], torch.max(*errors).mean())

    @pytest.mark.parametrize("aggregate", [False, True])
    def test_the_composite_setting_makes_no_difference(self, aggregate):
        with set_composite_lp_aggregate(aggregate):
            actor, critic = make_models()
            td = make_data(actor)
            out = PairLoss(actor, critic)(td)
        assert td["action_log_prob"].shape == (8,) and out["inversion_error"] < 1e-4

    def test_vmap_randomness(self):
        assert PairLoss(*make_models()).vmap_randomness == "error"  # no module of it is random


@pytest.mark.parametrize("scale", ["unit", "learned"])
def test_ratio_is_one_before_the_first_step(scale):
    actor, critic = make_models(gaussian=make_gaussian() if scale == "learned" else None)
    out = PairLoss(actor, critic)(make_data(actor, (512,)))
    assert (out["max_ratio"] - 1).abs() < 1e-4 and (out["mean_ratio"] - 1).abs() < 1e-4
    assert out["inversion_error"] < 1e-4 and out["clip_fraction"] == 0


def test_ratio_is_the_closed_form_in_the_recovered_noise():
    actor, critic = make_models()
    loss = PairLoss(actor, critic, reduction="none", clip_epsilon=0.9)
    td = make_data(actor)
    old = actor.get_dist(td).to_noise(td["action"], td["action_memory"])
    perturb(actor.velocity)
    new = actor.get_dist(td).to_noise(td["action"], td["action_memory"])
    energy = [sum(half.square().sum(-1) for half in noise) for noise in (old, new)]
    ratio = (0.5 * (energy[0] - energy[1])).exp()
    advantage = td["advantage"].squeeze(-1)
    expected = -torch.min(ratio * advantage, ratio.clamp(0.1, 1.9) * advantage)
    torch.testing.assert_close(loss(td)["loss_objective"].squeeze(-1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gaussian", [None, make_gaussian()])
def test_stock_clip_ppo_gives_the_same_numbers(gaussian):
    actor, critic = make_models(gaussian=gaussian)
    td = make_data(actor)
    ours, stock = PairLoss(actor, critic), ClipPPOLoss(actor, critic, entropy_bonus=False)
    perturb(actor)
    out, expected = ours(td), stock(td)
    assert out["max_ratio"] != 1
    for key in expected.keys():
        torch.testing.assert_close(out[key], expected[key], atol=1e-6, rtol=1e-5)
    assert set(out.keys()) == set(expected.keys()) | {"inversion_error"}
    for (name, g), (other, h) in zip(gradients(ours, td).items(), gradients(stock, td).items(), strict=True):
        assert name == other
        torch.testing.assert_close(g, h, atol=1e-6, rtol=1e-4)


def test_every_parameter_of_actor_and_critic_gets_a_gradient():
    actor, critic = make_models(gaussian=make_gaussian())
    loss = PairLoss(actor, critic)
    grads = gradients(loss, make_data(actor))
    assert set(grads) == {name for name, p in loss.named_parameters() if p.requires_grad}
    assert all(g.abs().sum() > 0 for g in grads.values())


def test_nested_keys():
    keys = {name: ("agent", name) for name in ("action", "memory", "log_prob")}
    actor, critic = make_models(
        in_keys=[("agent", "observation")],
        action_key=keys["action"],
        memory_key=keys["memory"],
        log_prob_key=keys["log_prob"],
    )
    loss = PairLoss(actor, critic)
    assert loss.tensor_keys.action_memory == ("agent", "memory")
    obs = TensorDict(observation=torch.randn(8, 4), batch_size=[8])
    td = actor(TensorDict(agent=obs, batch_size=[8])).detach()
    td["advantage"], td["value_target"] = torch.randn(2, 8, 1)
    assert loss(td)["inversion_error"] < 1e-4
    assert ("agent", "memory") in loss.in_keys


def test_delayed_actor_uses_the_target_parameters():
    actor, critic = make_models()
    loss = PairLoss(actor, critic, delay_actor=True, clip_epsilon=0.2)
    td = make_data(actor, (256,))
    with torch.no_grad():
        for parameter in loss.actor_network_params.values(True, True):
            parameter.add_(0.05 * torch.randn_like(parameter))
    out = loss(td)
    # the proximal policy is the unchanged one, so the ratio that is clipped must have moved
    assert out["clip_fraction"] > 0 and (out["kl_approx"].abs() > 1e-3)
    with torch.no_grad():
        for name, target in loss.target_actor_network_params.items(True, True):
            target.data.copy_(loss.actor_network_params.get(name))
    assert loss(td)["clip_fraction"] == 0 and loss(td)["kl_approx"].abs() < 1e-5


def test_shared_and_separate_losses_of_functional_and_plain_modules():
    actor, critic = make_models()
    td = make_data(actor)
    functional = PairLoss(actor, critic)(td)
    plain = PairLoss(actor, critic, functional=False)(td)
    for key in LOSS_KEYS:
        torch.testing.assert_close(plain[key], functional[key])


def test_vmap_over_parameters():
    actor, critic = make_models()
    loss = PairLoss(actor, critic, reduction="none")
    td = make_data(actor)
    params = TensorDict.from_module(loss)
    stacked = torch.stack([params.data, params.data * 1.01])

    def call(params, td):
        with params.to_module(loss):
            return loss(td)["loss_objective"]

    out = torch.vmap(call, (0, None))(stacked, td)
    torch.testing.assert_close(out[0], loss(td)["loss_objective"], atol=1e-5, rtol=1e-4)
    assert not torch.equal(out[1], out[0])


@pytest.mark.parametrize("scale", ["unit", "learned"])
def test_compiled_loss_equals_eager(scale):
    actor, critic = make_models(gaussian=make_gaussian() if scale == "learned" else None)
    loss = PairLoss(actor, critic, entropy_bonus=scale == "learned")
    td = make_data(actor)
    perturb(actor)
    expected = loss(td)
    out = torch.compile(loss, backend="aot_eager")(td)  # Inductor compiles the whole update in tests/training
    for key in (*LOSS_KEYS, "inversion_error"):
        torch.testing.assert_close(out[key], expected[key], atol=1e-4, rtol=1e-4)


def test_out_keys_name_what_is_written():
    actor, critic = make_models(gaussian=make_gaussian())
    loss = PairLoss(actor, critic, entropy_bonus=True, clip_value=0.2)
    out = loss(make_data(actor).set("state_value", torch.randn(8, 1)))
    assert set(loss.out_keys) <= set(out.keys())
    assert {"inversion_error", "entropy", "loss_entropy", "value_clip_fraction"} <= set(loss.out_keys)


def test_entropy_bonus_has_the_gradient_of_the_closed_form():
    actor, critic = make_models(gaussian=make_gaussian())
    loss = PairLoss(actor, critic, entropy_bonus=True, entropy_coeff=0.1)
    td = make_data(actor)
    torch.testing.assert_close(loss(td)["entropy"], actor.get_dist(td).entropy().mean())
    grads = gradients(loss, td, keys=("loss_entropy",))
    (gradient,) = (g for name, g in grads.items() if "state_independent_scale" in name)
    torch.testing.assert_close(gradient, torch.full((2,), -0.1))


def test_entropy_bonus_with_a_fixed_scale_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"entropy of the pair .* is a constant"):
        PairLoss(*make_models(), entropy_bonus=True)


def test_missing_memory_names_the_key():
    actor, critic = make_models()
    with pytest.raises(KeyError, match="action_memory"):
        PairLoss(actor, critic)(make_data(actor).exclude("action_memory"))


def test_other_policies_are_refused():
    _, critic = make_models()
    with pytest.raises(TypeError, match="ReversibleFlowActor"):
        PairLoss(critic, critic)


def test_in_keys_include_the_memory():
    assert "action_memory" in PairLoss(*make_models()).in_keys


@pytest.mark.parametrize("key", ["action", "observation"])
def test_data_without_a_key_is_named(key):
    actor, critic = make_models()
    with pytest.raises(KeyError, match=key):
        PairLoss(actor, critic)(make_data(actor).exclude(key))
