"""An exportable policy is the policy: every module of it, and noise where the policy would draw."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale, NormalParamExtractor, TensorDictModule, TensorDictSequential
from tensordict.nn import ProbabilisticTensorDictSequential as Sequence
from torch import nn
from torchrl.envs import ExplorationType
from torchrl.envs import set_exploration_type as exploration
from torchrl.modules import GRUModule, IndependentNormal, ProbabilisticActor, TanhNormal

from torchrl_genpo import (
    ConsistentStart,
    IndependentStart,
    ReversibleFlowActor,
    ReversibleSolver,
    SteeredStart,
    VelocityMLP,
)
from torchrl_genpo.modules import ActionScale, EulerActor, ExportablePolicy, RunningNormalizer, encode, flow_of

OBS, ACTION = 5, 3


def flow(start=None, solver=None, obs_dim=OBS, **keys):
    velocity = VelocityMLP(obs_dim, ACTION, num_cells=(16, 16))
    for parameter in velocity.parameters():  # as trained: far from the small first layer
        nn.init.normal_(parameter, std=0.4)
    actor = ReversibleFlowActor(velocity, solver=solver, start=start, **keys)
    if start is not None:
        for parameter in start.parameters():
            nn.init.normal_(parameter, std=0.3)
    return actor


def gaussian(in_key="observation", extractor=None, distribution=IndependentNormal):
    if extractor is None:
        net = nn.Sequential(nn.Linear(OBS, ACTION), AddStateIndependentNormalScale(ACTION))
    else:
        net = nn.Sequential(nn.Linear(OBS, 2 * ACTION), extractor)
    return ProbabilisticActor(
        TensorDictModule(net, [in_key], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=distribution,
        return_log_prob=True,
    )


def normalizer():
    module = RunningNormalizer(OBS)
    module.update(3 + 2 * torch.randn(50, OBS))
    return module


def encoder():
    return TensorDictModule(nn.Sequential(nn.Linear(OBS, 7), nn.Tanh()), ["normalized_observation"], ["features"])


def scale():
    return ActionScale(torch.randn(ACTION), 0.5 + torch.rand(ACTION))


POLICIES = {
    "bare": lambda: flow(),
    "steered": lambda: flow(SteeredStart(IndependentStart(), ACTION, 16)),
    "consistent": lambda: flow(ConsistentStart(0.2, ACTION)),
    "float64 state": lambda: flow(solver=ReversibleSolver(num_steps=20, sigma=0.6)),
    "reversible gradient": lambda: flow(solver=ReversibleSolver(gradient="reversible")),
    "normalised": lambda: Sequence(normalizer(), flow(in_keys=["normalized_observation"])),
    "scaled": lambda: Sequence(
        normalizer(), flow(in_keys=["normalized_observation"], action_key="raw_action"), scale()
    ),
    "encoded": lambda: Sequence(normalizer(), encoder(), flow(obs_dim=7, in_keys=["features"])),
    "two encoded inputs": lambda: TensorDictSequential(
        normalizer(), Sequence(encoder(), flow(obs_dim=12, in_keys=["features", "normalized_observation"]))
    ),
    "nested key": lambda: flow(in_keys=[("agent", "observation")]),
    "gaussian": gaussian,
    "normalised gaussian": lambda: TensorDictSequential(normalizer(), gaussian("normalized_observation")),
    "gaussian with a scale of its own": lambda: gaussian(extractor=NormalParamExtractor()),
}


def observed(policy, observation):
    return TensorDict({policy.in_keys[0]: observation}, [len(observation)])


def exportable(policy, **options):
    return ExportablePolicy(policy, observed(policy, torch.zeros(1, OBS)), **options)


def deterministic(policy, observation):
    with exploration(ExplorationType.DETERMINISTIC), torch.no_grad():
        return policy(observed(policy, observation))["action"]


@pytest.mark.parametrize("name", POLICIES)
def test_the_zero_noise_action_is_the_policys(name):
    policy, observation = POLICIES[name](), 3 * torch.randn(7, OBS)
    (action,) = exportable(policy)(observation)
    assert action.dtype == torch.float32 and action.abs().max() > 0.1
    torch.testing.assert_close(action, deterministic(policy, observation).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", POLICIES)
def test_given_noise_makes_the_action_that_the_policy_draws_from_it(name):
    policy, observation = POLICIES[name](), 3 * torch.randn(7, OBS)
    exported = exportable(policy, noise_input=True)
    td = observed(policy, observation)
    with exploration(ExplorationType.RANDOM), torch.no_grad():
        drawn = policy(td.clone())
        if "action_memory" in drawn:
            actor, seen = encode(policy, td)
            raw = drawn[flow_of(policy).action_key]
            noise = torch.cat(actor.get_dist(seen).to_noise(raw, drawn["action_memory"]), -1)
        else:
            noise = (drawn["action"] - drawn["loc"]) / drawn["scale"]
        (action,) = exported(observation, noise.float())
    torch.testing.assert_close(action, drawn["action"].float(), rtol=0, atol=2e-4)  # of the inversion


def test_the_export_outlives_further_training():
    policy, observation = POLICIES["scaled"](), torch.randn(2, OBS)
    exported = exportable(policy)
    before = exported(observation)[0]
    nn.init.zeros_(policy[1].velocity.trunk[-1].weight)
    policy[0].update(torch.randn(100, OBS))
    policy[2].scale.mul_(2)
    assert torch.equal(before, exported(observation)[0])
    assert not any(parameter.requires_grad for parameter in exported.parameters())


def test_the_policy_is_left_as_it_was():
    policy = flow(solver=ReversibleSolver(gradient="reversible")).double()
    ExportablePolicy(policy, observed(policy, torch.zeros(1, OBS).double()))
    assert policy.training and policy.solver.gradient == "reversible"
    assert all(parameter.requires_grad and parameter.dtype == torch.float64 for parameter in policy.parameters())


def test_dropout_is_off():
    net = nn.Sequential(nn.Linear(OBS, 7), nn.Dropout(0.5))
    policy = Sequence(TensorDictModule(net, ["observation"], ["features"]), flow(obs_dim=7, in_keys=["features"]))
    exported, observation = exportable(policy), torch.randn(4, OBS)
    assert torch.equal(exported(observation)[0], exported(observation)[0])


def test_any_distribution_is_exported_whose_deterministic_action_is_known():
    policies = [
        gaussian(extractor=NormalParamExtractor(), distribution=TanhNormal),
        EulerActor(VelocityMLP(OBS, ACTION)),
    ]
    policies += [TensorDictModule(nn.Linear(OBS, ACTION), ["observation"], ["action"])]
    observation = torch.randn(4, OBS)
    for policy in policies:
        (action,) = exportable(policy)(observation)
        torch.testing.assert_close(action, deterministic(policy, observation), rtol=0, atol=1e-6)


def test_what_cannot_be_exported_is_refused_by_name():
    noisy = TensorDictModule(lambda x: x + torch.randn_like(x), ["observation"], ["action"])
    with pytest.raises(TypeError, match="draws under"):
        exportable(noisy)
    with pytest.raises(TypeError, match="that draw: SafeProbabilisticModule"):
        exportable(gaussian(extractor=NormalParamExtractor(), distribution=TanhNormal), noise_input=True)
    with pytest.raises(TypeError, match="that draw: none"):
        exportable(TensorDictModule(nn.Linear(OBS, ACTION), ["observation"], ["action"]), noise_input=True)
    with pytest.raises(TypeError, match="ReversibleFlowActor, ReversibleFlowActor"):
        exportable(Sequence(flow(action_key="first"), flow()), noise_input=True)
    with pytest.raises(KeyError, match="'goal'"):
        exportable(flow(in_keys=["observation", "goal"], obs_dim=7))
    with pytest.raises(ValueError, match="must write 'action'"):
        exportable(flow(action_key="raw_action"))
    with pytest.raises(ValueError, match="need different names"):
        example = TensorDict({"noise": torch.zeros(1, 2), "observation": torch.zeros(1, OBS)}, [1])
        ExportablePolicy(flow(in_keys=["observation", "noise"], obs_dim=7), example, noise_input=True)


def test_several_observations_and_a_nested_action_are_named_by_their_keys():
    keys = ["observation", ("goal", "position")]
    policy = flow(in_keys=keys, obs_dim=7, action_key=("arm", "action"))
    example = TensorDict({"observation": torch.randn(4, OBS), ("goal", "position"): torch.randn(4, 2)}, [4])
    exported = ExportablePolicy(policy, example, action_key=("arm", "action"))
    assert exported.input_shapes == {"observation": (OBS,), "goal.position": (2,)}
    (action,) = exported(*(example[key] for key in keys))
    with exploration(ExplorationType.DETERMINISTIC), torch.no_grad():
        torch.testing.assert_close(action, policy(example)["arm", "action"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "size"), [("scaled", 2 * ACTION), ("normalised gaussian", ACTION)])
def test_the_names_are_those_of_the_inputs(name, size):
    exported = exportable(POLICIES[name](), noise_input=True)
    assert exported.input_shapes == {"observation": (OBS,), "noise": (size,)}
    inputs = exported.example_inputs()
    assert [tuple(value.shape[1:]) for value in inputs] == list(exported.input_shapes.values())
    outputs = exported(*inputs)
    assert len(outputs) == len(exported.output_names) and outputs[0].shape == (len(inputs[0]), ACTION)


def test_a_recurrent_policy_has_its_state_as_input_and_output():
    memory = GRUModule(OBS, 7, in_keys=["observation", "hidden"], out_keys=["features", ("next", "hidden")])
    policy = Sequence(memory, flow(obs_dim=7, in_keys=["features"]))
    data = TensorDict(observation=torch.randn(1, OBS), hidden=torch.zeros(1, 1, 7), is_init=torch.ones(1, 1).bool())
    data.batch_size = [1]
    exported = ExportablePolicy(policy, data)
    assert exported.input_shapes == {"observation": (OBS,), "hidden": (1, 7)}
    assert exported.output_names == ["action", "next.hidden"] and exported.batch_size == 1
    state = data["hidden"]
    for _ in range(3):
        with exploration(ExplorationType.DETERMINISTIC), torch.no_grad():
            data = policy(data)
        action, state = exported(data["observation"], state)
        torch.testing.assert_close(action, data["action"], rtol=0, atol=1e-6)
        torch.testing.assert_close(state, data["next", "hidden"], rtol=0, atol=1e-6)
        data.update({"hidden": state, "is_init": torch.zeros(1, 1).bool(), "observation": torch.randn(1, OBS)})


def test_an_observation_without_a_batch_or_of_another_size_is_refused():
    for shape in ((OBS,), (2, OBS + 1)):
        with pytest.raises(ValueError, match=r"must be \[b, 5\], got \["):
            exportable(flow())(torch.randn(shape))
