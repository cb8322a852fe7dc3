"""An exported policy gives a robot, number for number, what the base environment got, whatever transforms are between.

The environment here writes down what it observes and what it is given, below all transforms.
"""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential as Sequence
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import (
    ActionScaling,
    CatFrames,
    CatTensors,
    ClipTransform,
    Compose,
    DoubleToFloat,
    EnvBase,
    ExplorationType,
    FlattenAction,
    FlattenObservation,
    FrameSkipTransform,
    InitTracker,
    MultiAction,
    ObservationNorm,
    ParallelEnv,
    RenameTransform,
    RewardSum,
    SerialEnv,
    StepCounter,
    TransformedEnv,
    UnsqueezeTransform,
    VecNormV2,
    set_exploration_type,
)
from torchrl.modules import MLP, GRUModule, LSTMModule, NormalParamExtractor, ProbabilisticActor, TanhNormal

from torchrl_genpo import ReversibleFlowActor, VelocityMLP
from torchrl_genpo.deploy import ExportedPolicy, PolicyExporter
from torchrl_genpo.modules import ActionScale, RunningNormalizer

pytestmark = pytest.mark.extras("deploy")

HORIZON = 7


class Plant(EnvBase):
    """Observes noise about its last action, and writes down what it gives and gets."""

    def __init__(self, observations=None, action=(2,), bound=1.0, dtype=torch.float32, batch=(), key="action"):
        super().__init__(batch_size=batch)
        shapes = observations or {"observation": (3,)}
        self.observation_spec = Composite(
            {name: Unbounded((*batch, *shape), dtype=dtype) for name, shape in shapes.items()}, shape=batch
        )
        spec = Bounded(-bound, bound, (*batch, *action), dtype=dtype) if bound else Unbounded((*batch, *action))
        self.action_spec = Composite(shape=batch).set(key, spec)
        self.reward_spec = Unbounded((*batch, 1))
        self.key, self.seen, self.received, self.step_index = key, [], [], 0
        self.set_seed(0)

    def _set_seed(self, seed):
        self.generator = torch.Generator().manual_seed(seed or 0)

    def _observe(self):
        leaves = self.observation_spec.items(True, True)
        noise = {key: torch.randn(spec.shape, generator=self.generator, dtype=spec.dtype) for key, spec in leaves}
        observed = TensorDict({key: 1 + 3 * value for key, value in noise.items()}, self.batch_size)
        self.seen.append(observed.clone())
        return observed

    def _reset(self, tensordict):
        self.step_index, self.seen, self.received = 0, [], []
        return self._observe()

    def _step(self, tensordict):
        self.received.append(tensordict.get(self.key).clone())
        self.step_index += 1
        done = torch.full((*self.batch_size, 1), self.step_index == HORIZON)
        return self._observe().update({"reward": torch.zeros(*self.batch_size, 1), "done": done, "terminated": done})


def flow(obs_dim=3, action_dim=2, in_keys=("observation",), **options):
    torch.manual_seed(0)
    actor = ReversibleFlowActor(VelocityMLP(obs_dim, action_dim, num_cells=(16,)), in_keys=list(in_keys), **options)
    nn.init.normal_(actor.velocity.trunk[-1].weight, std=0.4)  # actions of order one, as trained
    return actor


def replay(policy, env, base, folder, **options):
    """Exports, plays two episodes and compares each action that the base environment got; returns the policy."""
    exported = ExportedPolicy(PolicyExporter(policy, env, **options).save(folder))
    names = [name for name in exported.metadata["inputs"] if name not in exported.state_names]
    largest = 0.0
    for _ in range(2):
        with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
            assert env.rollout(100, policy).shape[-1] == HORIZON
        exported.reset()
        for seen, received in zip(base.seen, base.received, strict=False):
            seen, received = seen.reshape(-1)[0], received.reshape(-1, *exported.low.shape)[0]
            given = {name: seen[tuple(name.split("."))].numpy() for name in names if len(names) > 1}
            action = exported(given or next(iter(seen.values(True, True))).numpy())
            assert action.dtype == "float32" and action.shape == received.shape
            torch.testing.assert_close(torch.as_tensor(action), received.float(), rtol=1e-5, atol=1e-5)
            largest = max(largest, abs(action).max())
        assert len(base.received) == HORIZON
    assert largest > 0.05
    return exported


def clip(bound):
    return ClipTransform(in_keys_inv=["action"], low=-bound, high=bound)


ACTIONS = {
    "scaled": (lambda: [ActionScaling(), clip(1.0)], {"bound": 2.0}),
    "clipped": (lambda: [clip(0.3)], {"bound": None}),
    "clipped before and behind": (lambda: [clip(0.5), ActionScaling(), clip(0.8)], {"bound": 3.0}),
    "cast": (lambda: [DoubleToFloat(), clip(1.0)], {"dtype": torch.float64}),
    "flattened": (lambda: [clip(1.0), FlattenAction()], {"action": (2, 1)}),
    "all of them": (
        lambda: [DoubleToFloat(), RewardSum(), ActionScaling(), StepCounter(), FlattenAction(), clip(1.0)],
        {"action": (2, 1), "bound": 2.0, "dtype": torch.float64},
    ),
    "renamed": (lambda: [RenameTransform([], [], ["target"], ["action"]), clip(1.0)], {"key": "target"}),
    "normalised": (
        lambda: [ObservationNorm(0.5, 2.0, ["observation"], in_keys_inv=["action"], standard_normal=True), clip(1.0)],
        {"bound": 9.0},
    ),
}


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("name", ACTIONS)
def test_the_robot_gets_the_action_that_the_base_environment_got(name, batch, tmp_path):
    make, options = ACTIONS[name]
    base = Plant(batch=batch, **options)
    replay(flow(), TransformedEnv(base, Compose(*make())), base, tmp_path)


def test_one_transform_needs_no_compose(tmp_path):
    base = Plant(bound=None)
    replay(flow(), TransformedEnv(base, clip(0.3)), base, tmp_path)


def test_an_environment_without_transforms_is_exported(tmp_path):
    base = Plant(bound=None)
    replay(flow(), base, base, tmp_path)


OBSERVATIONS = {
    "concatenated": (
        lambda: [CatTensors(["angle", "speed"], "observation")],
        {"observations": {"angle": (1,), "speed": (2,)}},
        {"angle": [1], "speed": [2]},
    ),
    "normalised": (lambda: [ObservationNorm(torch.ones(3), torch.full((3,), 0.5), ["observation"])], {}, None),
    "normalised in double precision": (
        lambda: [ObservationNorm(torch.ones(3).double(), torch.ones(3).double(), ["observation"]), DoubleToFloat()],
        {"dtype": torch.float64},
        None,
    ),
    "cast, renamed, flattened": (
        lambda: [
            DoubleToFloat(),
            RenameTransform(["grid"], ["observation"]),
            FlattenObservation(-2, -1, ["observation"]),
        ],
        {"observations": {"grid": (3, 1)}, "dtype": torch.float64},
        {"observation": [3, 1]},
    ),
    "unsqueezed and clipped": (
        lambda: [
            UnsqueezeTransform(-1, in_keys=["observation"], out_keys=["column"]),
            ClipTransform(["column"], ["column"], low=-1.0, high=1.0),
            FlattenObservation(-2, -1, ["column"], ["observation"]),
        ],
        {},
        None,
    ),
}


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_the_model_reads_what_the_base_environment_observes(name, batch, tmp_path):
    make, options, inputs = OBSERVATIONS[name]
    base = Plant(batch=batch, bound=None, **options)
    exported = replay(flow(), TransformedEnv(base, Compose(*make())), base, tmp_path)
    assert exported.metadata["inputs"] == (inputs or {"observation": [3]})
    assert exported.metadata["observation_transforms"] == []


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_running_statistics_of_the_environment_are_in_the_model(batch, reduce, tmp_path):
    """Those of the first environment where each has its own."""
    base = Plant(batch=batch, bound=None)
    norm = VecNormV2(["observation", "reward"], decay=0.9, reduce_batch_dims=reduce)
    env = TransformedEnv(base, norm)
    env.rollout(HORIZON)
    before = norm._loc.clone()
    PolicyExporter(flow(), env)
    assert (norm._loc == before).all()
    norm.freeze()
    replay(flow(), env, base, tmp_path)


def test_environments_of_a_serial_batch_are_looked_into(tmp_path):
    plants = []

    def make():
        plants.append(Plant(bound=2.0))
        return TransformedEnv(plants[-1], ActionScaling())

    env = TransformedEnv(SerialEnv(2, make), clip(0.4))
    env.reset()
    replay(flow(), env, plants[-2], tmp_path)


def test_environments_in_other_processes_are_refused():
    env = ParallelEnv(2, lambda: TransformedEnv(Plant(bound=2.0), ActionScaling()))
    try:
        with pytest.raises(ValueError, match="without workers"):
            PolicyExporter(flow(), env)
    finally:
        env.close(raise_if_closed=False)


def test_what_a_memory_makes_is_what_the_model_reads(tmp_path):
    """The description lists what a robot has to do itself."""
    norm = ObservationNorm(1.0, 2.0, ["observation"])
    frames = CatFrames(2, -1, ["observation"], ["frames"])
    env = TransformedEnv(Plant(bound=None), Compose(norm, frames, ClipTransform(["frames"], low=-2.0, high=2.0)))
    policy = flow(6, in_keys=["frames"])
    exported = ExportedPolicy(PolicyExporter(policy, env).save(tmp_path))
    assert exported.metadata["inputs"] == {"observation": [6]}
    made = exported.metadata["observation_transforms"]
    assert [each.partition("(")[0] for each in made] == ["ObservationNorm", "CatFrames"]
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        expected = policy(TensorDict(frames=torch.full((6,), 2.0)))["action"]
    torch.testing.assert_close(torch.as_tensor(exported(torch.full((6,), 5.0).numpy())), expected, rtol=0, atol=1e-5)


class Drift(ObservationNorm):
    """A transform that nobody knows."""

    def _inv_apply_transform(self, state):
        return 0.5 * state


def test_a_transform_of_the_action_that_a_model_cannot_hold_is_refused_by_name():
    unknown = Drift(0.0, 1.0, ["observation"], in_keys_inv=["action"])
    env = TransformedEnv(Plant(), unknown)
    with pytest.raises(ValueError, match="Drift changes the action"):
        PolicyExporter(flow(), env)
    env = TransformedEnv(Plant(), Compose(UnsqueezeTransform(-2, in_keys_inv=["action"], in_keys=[]), MultiAction()))
    with pytest.raises(ValueError, match="MultiAction changes the action"):
        PolicyExporter(flow(), env)


def test_an_action_that_is_held_for_several_steps_is_the_same_in_each(tmp_path):
    """TorchRL inverts the transforms below a frame skip again in every step that it adds."""
    base = Plant(bound=2.0)
    env = TransformedEnv(base, Compose(FrameSkipTransform(2), ActionScaling()))
    policy = flow()
    exporter = PolicyExporter(policy, env)
    assert exporter._view.frame_skip == 2
    exporter.save(tmp_path)
    env = TransformedEnv(Plant(bound=2.0), Compose(ActionScaling(), FrameSkipTransform(2)))
    with pytest.raises(RuntimeError, match="differ from"):
        PolicyExporter(policy, env).save(tmp_path / "twice")


def test_two_observations_are_two_inputs(tmp_path):
    base = Plant({"observation": (3,), "goal": (2,)}, bound=None)
    exported = replay(flow(5, in_keys=["observation", "goal"]), base, base, tmp_path)
    assert exported.metadata["inputs"] == {"goal": [2], "observation": [3]}
    with pytest.raises(ValueError, match="reads goal, observation, got observation"):
        exported(torch.zeros(3).numpy())


def test_nested_keys_and_actions_of_several_agents_are_exported(tmp_path):
    base = Plant({("agents", "observation"): (4, 3)}, (4, 2), None, batch=(2,), key=("agents", "action"))
    policy = flow(in_keys=[("agents", "observation")], action_key=("agents", "action"))
    exported = replay(policy, base, base, tmp_path)
    assert exported.metadata["inputs"] == {"observation": [4, 3]} and exported.low.shape == (4, 2)


POLICIES = {
    "an encoder": lambda: Sequence(
        RunningNormalizer(3),
        TensorDictModule(MLP(3, 5, num_cells=[8]), ["normalized_observation"], ["features"]),
        flow(5, in_keys=["features"]),
    ),
    "units": lambda: Sequence(flow(action_key="raw_action"), ActionScale(torch.zeros(2), torch.full((2,), 3.0))),
    "a module behind": lambda: TensorDictSequential(
        flow(action_key="raw_action"), TensorDictModule(torch.tanh, ["raw_action"], ["action"])
    ),
    "another distribution": lambda: ProbabilisticActor(
        TensorDictModule(nn.Sequential(nn.Linear(3, 4), NormalParamExtractor()), ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
    ),
}


@pytest.mark.parametrize("name", POLICIES)
def test_whatever_is_before_and_behind_the_actor_is_exported(name, tmp_path):
    torch.manual_seed(0)
    base = Plant(bound=None)
    replay(POLICIES[name](), base, base, tmp_path)


def test_a_policy_of_double_precision_is_exported_as_it_is(tmp_path):
    base = Plant(bound=None, dtype=torch.float64)
    replay(flow().double(), base, base, tmp_path)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_recurrent_policy_remembers_from_step_to_step_and_forgets_at_a_reset(kind, tmp_path):
    torch.manual_seed(0)
    names = ["hidden"] if kind == "gru" else ["hidden", "cell"]
    keys = {"in_keys": ["observation", *names], "out_keys": ["features", *(("next", name) for name in names)]}
    memory = (GRUModule if kind == "gru" else LSTMModule)(3, 5, num_layers=2, **keys)
    base = Plant(bound=None)
    env = TransformedEnv(base, Compose(InitTracker(), memory.make_tensordict_primer()))
    exported = replay(Sequence(memory, flow(5, in_keys=["features"])), env, base, tmp_path)
    assert exported.state_names == tuple(names)
    assert exported.metadata["observation_transforms"] == []  # the state is no work of the robot's
    observation = torch.ones(3).numpy()
    exported.reset()
    first, second = exported(observation), exported(observation)
    exported.reset()
    assert abs(first - second).max() > 1e-3 and (exported(observation) == first).all()


def test_a_policy_that_does_not_act_in_the_environment_is_refused():
    with pytest.raises(ValueError, match="takes 'target'; the policy writes"):
        PolicyExporter(flow(), Plant(key="target"))
    with pytest.raises(KeyError, match="'goal'"):
        PolicyExporter(flow(in_keys=["goal"]), Plant())
