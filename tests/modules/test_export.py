"""Exportable policies are the actor, normaliser and history included."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs import CatFrames, ClipTransform, ExplorationType, ObservationNorm, SignTransform
from torchrl.envs import set_exploration_type as exploration

from torchrl_genpo import ConsistentStart, IndependentStart, ReversibleFlowActor, ReversibleSolver, VelocityMLP
from torchrl_genpo.envs import freeze_normalization, make_env
from torchrl_genpo.models import gaussian_actor, make_actor
from torchrl_genpo.modules import EulerActor
from torchrl_genpo.modules.export import ExportablePolicy, Normalizer, ObservationPipeline

OBS, ACTION = 5, 3


def flow(start=None, solver=None):
    velocity = VelocityMLP(OBS, ACTION, hidden_sizes=(16, 16))
    for parameter in velocity.parameters():  # as trained: far from the small first layer
        nn.init.normal_(parameter, std=0.4)
    actor = ReversibleFlowActor(velocity, solver=solver, start=start)
    if start is not None:
        for parameter in start.parameters():
            nn.init.normal_(parameter, std=0.3)
    return actor


def gaussian():
    return gaussian_actor(nn.Linear(OBS, ACTION), ACTION)


ACTORS = {
    "paper": lambda: flow(),
    "learned scale": lambda: flow(IndependentStart("learned", ACTION)),
    "state-dependent scale": lambda: flow(IndependentStart("state_dependent", ACTION, context_dim=16)),
    "consistent": lambda: flow(ConsistentStart(0.2, learn_tau="shared")),
    "three-step": lambda: flow(solver=ReversibleSolver.three_step(num_steps=4)),
    "float64 state": lambda: flow(solver=ReversibleSolver(num_steps=20, sigma=0.6)),
    "reversible gradient": lambda: flow(solver=ReversibleSolver(gradient="reversible")),
    "gaussian": gaussian,
}


@pytest.mark.parametrize("name", ACTORS)
def test_the_zero_noise_action_is_the_actors(name):
    actor, observation = ACTORS[name](), torch.randn(7, OBS)
    (action,) = ExportablePolicy(actor, ObservationPipeline(OBS))(observation)
    with exploration(ExplorationType.DETERMINISTIC), torch.no_grad():
        expected = actor(TensorDict(observation=observation, batch_size=[7]))["action"]
    assert action.dtype == torch.float32 and action.abs().max() > 0.1
    torch.testing.assert_close(action, expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ACTORS)
def test_given_noise_makes_the_action_that_the_actor_draws_from_it(name):
    actor, observation = ACTORS[name](), torch.randn(7, OBS)
    policy = ExportablePolicy(actor, ObservationPipeline(OBS), noise_input=True)
    td = TensorDict(observation=observation, batch_size=[7])
    with exploration(ExplorationType.RANDOM), torch.no_grad():
        drawn = actor(td)
        dist = actor.get_dist(td)
        if isinstance(actor, ReversibleFlowActor):
            noise = torch.cat(dist.to_noise(drawn["action"], drawn["action_memory"]), -1)
        else:
            noise = (drawn["action"] - dist.mean) / dist.stddev
        (action,) = policy(observation, noise=noise.float())
    torch.testing.assert_close(action, drawn["action"].float(), rtol=0, atol=2e-4)  # of the inversion


def test_the_export_outlives_further_training():
    actor, observation = flow(), torch.randn(2, OBS)
    policy = ExportablePolicy(actor, ObservationPipeline(OBS))
    before = policy(observation)[0]
    nn.init.zeros_(actor.velocity.trunk[-1].weight)
    assert torch.equal(before, policy(observation)[0])
    assert not any(parameter.requires_grad for parameter in policy.parameters())


def pipeline_of(env):
    return ObservationPipeline.from_transforms(env.transform, env.observation_spec["observation"].shape[-1])


def test_raw_observations_are_normalised_as_by_the_environment():
    env, raw_env = (make_env("half_cheetah", 2, seed=0, normalize_observation=flag) for flag in (True, False))
    env.rollout(30)
    freeze_normalization(env)
    pipeline = pipeline_of(env)
    for each in (env, raw_env):
        each.set_seed(3)
    actions = torch.rand(5, 2, 6) - 0.5
    td, raw_td = env.reset(), raw_env.reset()
    for action in actions:
        torch.testing.assert_close(pipeline(raw_td["observation"])[0], td["observation"], rtol=0, atol=1e-5)
        td, raw_td = (each.step(t.set("action", action))["next"] for each, t in ((env, td), (raw_env, raw_td)))
    assert td["observation"].abs().max() > 1


def test_the_history_of_a_hand_is_stacked_as_by_its_environment():
    quiet = {"joint_bias": 0, "joint_noise": 0}
    env = make_env("xhand/nut_bolt", 2, seed=0, randomization=quiet, max_steps=6)
    env.rollout(30, break_when_any_done=False)
    freeze_normalization(env)
    pipeline = pipeline_of(env)
    assert pipeline.parts == ["joint_position", "joint_target"] and pipeline.num_frames == 3
    steps = env.rollout(12, break_when_any_done=False)  # two episodes
    raw = torch.cat([steps["joint_position"], steps["joint_target"]], -1)
    for step in range(12):
        if steps["step_count"][0, step] == 0:
            history = raw[:, step : step + 1].expand(-1, 2, -1)
        value, history = pipeline(raw[:, step], history)
        torch.testing.assert_close(value, steps["observation"][:, step], rtol=0, atol=1e-5)


def test_frames_may_be_normalised_before_they_are_stacked():
    loc, scale = torch.randn(4), 1 + torch.rand(4)
    norm = ObservationNorm(loc, scale, in_keys=["observation"], standard_normal=True)
    stack = CatFrames(N=3, dim=-1, in_keys=["observation"])
    pipeline = ObservationPipeline.from_transforms([norm, stack], 12)
    assert (pipeline.obs_dim, pipeline.num_frames, pipeline.stacked) == (4, 3, None)
    frames = torch.randn(6, 3, 4)
    value, history = pipeline(frames[:, -1], frames[:, :-1])
    torch.testing.assert_close(value, ((frames - loc) / scale).flatten(-2))
    assert torch.equal(history, frames[:, 1:])


def test_an_observation_norm_of_either_convention_is_read():
    loc, scale = torch.randn(4), 1 + torch.rand(4)
    for standard_normal in (True, False):
        norm = ObservationNorm(loc, scale, in_keys=["observation"], standard_normal=standard_normal)
        pipeline = ObservationPipeline.from_transforms([norm], 4)
        x = torch.randn(3, 4)
        torch.testing.assert_close(pipeline(x)[0], norm(TensorDict(observation=x, batch_size=[3]))["observation"])


def test_what_cannot_be_exported_is_refused_by_name():
    with pytest.raises(ValueError, match="SignTransform before 'observation' cannot be exported"):
        ObservationPipeline.from_transforms([SignTransform(in_keys=["observation"])], 4)
    with pytest.raises(ValueError, match="CatFrames"):
        ObservationPipeline.from_transforms([CatFrames(2, -1, ["observation"], padding="constant")], 8)
    with pytest.raises(ValueError, match="not finite"):
        Normalizer(torch.zeros(2), torch.tensor([1.0, float("nan")]))
    with pytest.raises(TypeError, match="not EulerActor"):
        ExportablePolicy(EulerActor(flow()), ObservationPipeline(OBS))


def test_the_names_are_those_of_the_inputs():
    env = make_env("pendulum", num_envs=1)
    policy = ExportablePolicy(make_actor(env), ObservationPipeline(2, num_frames=2), noise_input=True)
    inputs = policy.dummy_inputs(5)
    assert list(inputs) == policy.input_names == ["observation", "history", "noise"]
    assert {name: tuple(value.shape[1:]) for name, value in inputs.items()} == policy.input_shapes
    outputs = policy(**inputs)
    assert len(outputs) == len(policy.output_names) and outputs[1].shape == inputs["history"].shape


def test_an_observation_without_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"\[b, 5\], got \[5\]"):
        ExportablePolicy(flow(), ObservationPipeline(OBS))(torch.randn(OBS))


def test_two_clips_are_both_made():
    chain = [ObservationNorm(0.0, 0.5, in_keys=["observation"], standard_normal=True)]
    chain += [ClipTransform(["observation"], low=-bound, high=bound) for bound in (1.0, 10.0)]
    pipeline = ObservationPipeline.from_transforms(chain, OBS)
    assert pipeline(torch.full((1, OBS), 3.0))[0].tolist() == [[1.0] * OBS]
    assert "low=-1.0, high=1.0" in repr(pipeline) and pipeline.draw_frames(2).shape == (2, 1, OBS)
