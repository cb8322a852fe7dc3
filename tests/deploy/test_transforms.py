"""An exported policy gives a robot, number for number, what the base environment got.

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
    ClipTransform,
    Compose,
    DoubleToFloat,
    EnvBase,
    ExplorationType,
    FrameSkipTransform,
    InitTracker,
    ObservationNorm,
    RewardSum,
    StepCounter,
    Transform,
    TransformedEnv,
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


class Halved(Transform):
    """Changes the action and says nothing about its keys."""

    def _inv_call(self, tensordict):
        return tensordict.set("action", 0.5 * tensordict["action"])


class Doubled(Transform):
    def _inv_call(self, tensordict):
        return tensordict.set("action", 2 * tensordict["action"])


def clip(bound):
    return ClipTransform(in_keys_inv=["action"], low=-bound, high=bound)


CLIPS = {
    "clipped": (lambda: [clip(0.3)], {"bound": None}),
    "clipped twice": (lambda: [clip(0.8), RewardSum(), StepCounter(), clip(0.5)], {"bound": 3.0}),
    "clipped in a part": (lambda: [StepCounter(), Compose(RewardSum(), clip(0.3))], {"bound": None}),
    "cast": (lambda: [DoubleToFloat(), clip(1.0)], {"dtype": torch.float64}),
}


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("name", CLIPS)
def test_the_robot_gets_the_action_that_the_base_environment_got(name, batch, tmp_path):
    make, options = CLIPS[name]
    base = Plant(batch=batch, **options)
    exported = replay(flow(), TransformedEnv(base, Compose(*make())), base, tmp_path)
    bounds = {"clipped": 0.3, "clipped twice": 0.5, "clipped in a part": 0.3, "cast": 1.0}
    assert exported.high.tolist() == pytest.approx([bounds[name]] * 2)


def test_an_environment_without_transforms_is_exported(tmp_path):
    base = Plant(bound=None)
    replay(flow(), base, base, tmp_path)


@pytest.mark.parametrize("make", [ActionScaling, lambda: Compose(StepCounter(), ActionScaling()), Halved])
def test_a_transform_that_changes_the_action_is_refused(make):
    with pytest.raises(ValueError, match=r"between the policy and the simulator.*a module of the policy"):
        PolicyExporter(flow(), TransformedEnv(Plant(bound=2.0), make()))


def test_a_change_is_seen_where_the_policys_own_actions_are_at_their_bounds():
    policy = flow()
    nn.init.constant_(policy.velocity.trunk[-1].bias, 10.0)
    with pytest.raises(ValueError, match="between the policy and the simulator"):
        PolicyExporter(policy, TransformedEnv(Plant(), Doubled()))


def test_what_transforms_make_is_what_the_model_reads(tmp_path):
    """The description lists what a robot has to do itself."""
    norm = ObservationNorm(1.0, 2.0, ["observation"])
    frames = CatFrames(2, -1, ["observation"], ["frames"])
    env = TransformedEnv(Plant(bound=None), Compose(norm, frames, ClipTransform(["frames"], low=-2.0, high=2.0)))
    policy = flow(6, in_keys=["frames"])
    exported = ExportedPolicy(PolicyExporter(policy, env).save(tmp_path))
    assert exported.metadata["inputs"] == {"observation": [6]}
    made = exported.metadata["observation_transforms"]
    assert [each.partition("(")[0] for each in made] == ["ObservationNorm", "CatFrames", "ClipTransform"]


def test_the_period_is_that_of_an_action_that_is_held(tmp_path):
    env = TransformedEnv(Plant(bound=2.0), FrameSkipTransform(2))
    env.base_env.dt = 0.1
    assert PolicyExporter(flow(), env).metadata["dt"] == pytest.approx(0.2)


def test_two_observations_are_two_inputs(tmp_path):
    base = Plant({"observation": (3,), "goal": (2,)}, bound=None)
    exported = replay(flow(5, in_keys=["observation", "goal"]), base, base, tmp_path)
    assert exported.metadata["inputs"] == {"goal": [2], "observation": [3]}
    with pytest.raises(ValueError, match="reads observation, goal, got observation"):
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
