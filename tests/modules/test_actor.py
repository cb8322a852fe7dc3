"""The actor is a TorchRL probabilistic module whose stored likelihoods are exact."""

from __future__ import annotations

import pickle
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Bounded, Composite
from torchrl.envs import ExplorationType, GymEnv, SerialEnv, set_exploration_type

from torchrl_genpo import (
    ConsistentStart,
    IndependentStart,
    ReversibleFlow,
    ReversibleFlowActor,
    ReversibleSolver,
    VelocityMLP,
)


def make_actor(**kwargs):
    actor = ReversibleFlowActor(VelocityMLP(4, 2, (32, 32)), **kwargs)
    nn.init.normal_(actor.velocity.trunk[-1].weight, std=0.3)
    return actor


def make_gaussian():
    return nn.Sequential(nn.Linear(4, 2), AddStateIndependentNormalScale(2, init_value=-0.4))


def observations(*batch):
    return TensorDict(observation=torch.randn(*batch, 4), batch_size=batch)


def count_velocity_calls(actor):
    calls = []
    actor.velocity.register_forward_hook(lambda *args: calls.append(1))
    return calls


@pytest.mark.parametrize("batch", [(), (3,), (3, 2), (0,)])
def test_writes_action_memory_and_log_prob(batch):
    actor = make_actor()
    td = actor(observations(*batch))
    assert td["action"].shape == td["action_memory"].shape == (*batch, 2)
    assert td["action_log_prob"].shape == batch
    assert actor.out_keys == ["action", "action_memory", "action_log_prob"]


@pytest.mark.parametrize("start", [IndependentStart(), ConsistentStart(0.3, 2)])
def test_stored_and_recomputed_log_prob_agree_in_float32(start):
    actor = make_actor(start=start)
    td = torch.cat([actor(observations(16)) for _ in range(64)]).detach()  # collected in small batches
    assert (actor.log_prob(td) - td["action_log_prob"]).abs().max() < 1e-4


def test_collection_costs_one_velocity_evaluation_a_step_and_no_inversion():
    actor = make_actor(solver=ReversibleSolver(5))
    calls = count_velocity_calls(actor)
    actor(actor(observations(8)))  # the second time with the last step's pair in the tensordict
    assert len(calls) == 10


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gaussian": make_gaussian()},
        {"start": ConsistentStart(0.3), "solver": ReversibleSolver(num_steps=4, sigma=0.9)},
    ],
    ids=["paper", "gaussian", "consistent"],
)
def test_a_deterministic_action_costs_no_more_and_its_density_is_that_of_the_inversion(options):
    actor = make_actor(**options)
    calls = count_velocity_calls(actor)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        td = actor(observations(8))
    assert len(calls) == actor.solver.num_steps
    torch.testing.assert_close(td["action_log_prob"], actor.log_prob(td), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "exploration",
    [ExplorationType.DETERMINISTIC, ExplorationType.MODE, ExplorationType.MEAN, ExplorationType.MEDIAN],
)
def test_every_deterministic_exploration_type_is_zero_noise(exploration):
    actor = make_actor()
    td = observations(8)
    with set_exploration_type(exploration):
        first, second = actor(td.clone()), actor(td.clone())
    torch.testing.assert_close(first["action"], second["action"], atol=0, rtol=0)
    noise = actor.get_dist(td).to_noise(first["action"], first["action_memory"])
    assert max(half.abs().max() for half in noise) < 1e-5
    torch.testing.assert_close(first["action_log_prob"], actor.log_prob(first))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64])
def test_noise_and_density_have_the_dtype_of_the_network_not_of_the_observation(dtype):
    class Casting(VelocityMLP):
        def condition(self, observation):
            return super().condition(observation.float())

    actor = ReversibleFlowActor(Casting(4, 2, (32,)))
    td = actor(TensorDict(observation=torch.randint(5, (8, 4)).to(dtype), batch_size=[8]))
    assert td["action"].dtype == td["action_log_prob"].dtype == torch.float32
    torch.testing.assert_close(td["action_log_prob"], actor.log_prob(td), rtol=0, atol=1e-4)


def test_random_exploration_draws_new_noise():
    actor = make_actor()
    td = observations(8)
    assert not torch.equal(actor(td.clone())["action"], actor(td.clone())["action"])


def test_get_dist_scores_the_stored_pair_and_only_that():
    actor = make_actor()
    td = actor(observations(8)).detach()
    dist = actor.get_dist(td)
    assert isinstance(dist, ReversibleFlow)
    torch.testing.assert_close(dist.log_prob(td["action"]), actor.log_prob(td))
    with pytest.raises(ValueError, match="another action"):
        dist.log_prob(td["action"] + 1)
    with pytest.raises(ValueError, match="pass log_prob\\(action, memory\\)"):
        actor.get_dist(td.select("observation")).log_prob(td["action"])


def test_nested_keys():
    actor = make_actor(
        in_keys=[("agent", "observation")],
        action_key=("agent", "action"),
        memory_key=("agent", "memory"),
        log_prob_key=("agent", "log_prob"),
    )
    td = actor(TensorDict(agent=TensorDict(observation=torch.randn(8, 4), batch_size=[8]), batch_size=[8]))
    assert td["agent", "action"].shape == td["agent", "memory"].shape == (8, 2)
    torch.testing.assert_close(actor.log_prob(td), td["agent", "log_prob"], atol=1e-4, rtol=0)


def test_a_gaussian_sees_several_observations_as_one():
    actor = make_actor(in_keys=["position", ("goal", "xy")], gaussian=make_gaussian())
    td = TensorDict(position=torch.randn(8, 2), goal=TensorDict(xy=torch.randn(8, 2), batch_size=[8]), batch_size=[8])
    both = torch.cat([td["position"], td["goal", "xy"]], -1)
    torch.testing.assert_close(actor.get_dist(td).loc, actor.gaussian(both)[0])
    torch.testing.assert_close(actor.log_prob(actor(td)), td["action_log_prob"], atol=1e-4, rtol=0)


def test_keyword_call():
    action, memory, log_prob = make_actor()(observation=torch.randn(8, 4))
    assert action.shape == memory.shape == (8, 2) and log_prob.shape == (8,)


def test_parameters_include_those_of_its_parts():
    actor = make_actor(start=ConsistentStart(0.3, 2), gaussian=make_gaussian())
    names = {name.split(".")[0] for name, _ in actor.named_parameters()}
    assert names == {"velocity", "start", "gaussian"}


def test_pickles_and_keeps_its_function():
    actor = make_actor()
    td = actor(observations(8)).detach()
    torch.testing.assert_close(pickle.loads(pickle.dumps(actor)).log_prob(td), actor.log_prob(td))


def test_float64_state_keeps_an_ill_conditioned_inversion_exact():
    actor = make_actor(solver=ReversibleSolver(20, 0.5))
    td = actor(observations(64)).detach()
    assert td["action"].dtype == torch.float64 and td["action_log_prob"].dtype == torch.float32
    assert (actor.log_prob(td) - td["action_log_prob"]).abs().max() < 1e-3


def test_collector_data_is_scored_exactly():
    env = SerialEnv(4, partial(GymEnv, "Pendulum-v1"))
    actor = ReversibleFlowActor(VelocityMLP(3, 1, (32, 32)))
    collector = Collector(env, actor, frames_per_batch=200, total_frames=400, auto_register_policy_transforms=False)
    for data in collector:
        assert (actor.log_prob(data) - data["action_log_prob"]).abs().max() < 1e-4
    collector.shutdown()


def test_compiles():
    actor = make_actor()
    td = actor(observations(8)).detach()
    compiled = torch.compile(actor.log_prob, backend="aot_eager")
    torch.testing.assert_close(compiled(td), actor.log_prob(td), atol=1e-4, rtol=0)


def test_safe_is_refused():
    with pytest.raises(ValueError, match="safe=True would project"):
        make_actor(safe=True)


def test_spec_is_recorded_and_checked():
    actor = make_actor(spec=Bounded(-1, 1, (2,)))
    assert actor.spec["action"].shape == (2,)
    with pytest.raises(ValueError, match="size 3"):
        make_actor(spec=Bounded(-1, 1, (3,)))
    assert make_actor(spec=Composite(action=Bounded(-1, 1, (7, 2)), shape=(7,))).spec["action"].shape == (7, 2)


def test_mismatched_sizes_are_refused():
    with pytest.raises(ValueError, match="action_dim=3, the velocity action_dim=2"):
        make_actor(start=ConsistentStart(0.3, 3))
    actor = make_actor()
    td = observations(8)
    with pytest.raises(ValueError, match="actions of size 2, got 3"):
        actor.get_dist(td).log_prob(torch.randn(8, 3), torch.randn(8, 3))
    with pytest.raises(ValueError, match="same shape"):
        actor.get_dist(td).log_prob(torch.randn(8, 2), torch.randn(8, 3))


def test_missing_memory_names_the_key():
    actor = make_actor()
    td = actor(observations(8)).exclude("action_memory")
    with pytest.raises(KeyError, match="no 'action_memory'"):
        actor.log_prob(td)


def test_a_module_that_is_no_velocity_is_refused():
    with pytest.raises(TypeError, match="got Linear"):
        ReversibleFlowActor(nn.Linear(4, 2))


def test_a_policy_of_half_precision_has_densities_of_single_precision():
    actor = make_actor().bfloat16()
    data = actor(TensorDict(observation=torch.randn(256, 4).bfloat16(), batch_size=[256])).detach()
    assert {data[key].dtype for key in ("action", "action_memory", "action_log_prob")} == {torch.float32}
    noise = actor.get_dist(data.select("observation")).to_noise(data["action"], data["action_memory"])
    constant = data["action_log_prob"] + sum(half.square().sum(-1) for half in noise) / 2
    assert constant.max() - constant.min() < 1e-4  # steps of bfloat16 are 2e-2 here
    torch.testing.assert_close(actor.log_prob(data), data["action_log_prob"], rtol=0, atol=1e-4)
    assert actor.get_dist(data).entropy().dtype == torch.float32
