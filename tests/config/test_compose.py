"""Composition: every task with every policy, what depends on both, and what a command line may say."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from torchrl_genpo.commands.common import MISTAKES, refuse_unused
from torchrl_genpo.config.compose import compose, compose_config, known_to_hydra, validate
from torchrl_genpo.config.describe import alternatives
from torchrl_genpo.config.schema import TrainOptions

CONFIG = Path(__file__).parents[2] / "torchrl_genpo" / "config"
FILES = sorted(str(path.relative_to(CONFIG / "env").with_suffix("")) for path in (CONFIG / "env").rglob("*.yaml"))
TASKS = [name for name in FILES if not name.endswith("/base")]
POLICIES = [*alternatives(TrainOptions.model_fields["policy"].annotation), "transformer_flow"]
STARTS = ("paper", "steered", "independent", "consistent", "pretrained")
CHOICES = [
    *(f"start={name}" for name in STARTS),
    *(f"logger={name}" for name in ("csv", "tensorboard", "wandb")),
    *(f"collector={name}" for name in ("sync", "multi_sync", "multi_async")),
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_goes_with_every_policy(task, policy):
    options = compose([f"env={task}", f"policy={policy}"])
    assert options.env.name == task
    assert options.policy.name == policy.replace("transformer", "reversible")
    assert options.policy.solver in (None, options.solver.name)
    assert validate(options.model_dump()) == options


@pytest.mark.parametrize("choice", CHOICES)
def test_every_other_choice_is_valid(choice):
    group, _, name = choice.partition("=")
    section = getattr(compose([choice]), group)
    assert name in STARTS or name in (getattr(section, "kind", None), getattr(section, "backend", None))


@pytest.mark.parametrize("task", [name for name in TASKS if name.startswith("robomimic/")])
@pytest.mark.parametrize("policy", ["reversible_flow", "gaussian", "transformer_flow"])
def test_tasks_with_demonstrations_can_be_pretrained(task, policy):
    options = compose([f"env={task}", f"policy={policy}", "pretrain.iterations=3"], config_name="pretrain")
    assert options.env.name == task and options.pretrain.iterations == 3
    assert not hasattr(options, "loss"), "an option of the fine-tuning"


@pytest.mark.parametrize("family", ["gymnasium", "isaaclab/base", "robomimic/base"])
def test_a_task_without_a_file_needs_its_name(family):
    with pytest.raises(ValueError, match=r"^env\.name is missing"):
        compose([f"env={family}"])
    prefix = "" if family == "gymnasium" else family.removesuffix("base")
    assert compose([f"env={family}", f"env.name={prefix}Some-Task-v0"]).env.name == f"{prefix}Some-Task-v0"


@pytest.mark.parametrize(
    ("task", "option", "gaussian", "flow"),
    [
        ("isaaclab/g1_rough", "loss.entropy_coeff", 0.008, 0.0),
        ("isaaclab/open_drawer", "loss.entropy_coeff", 0.001, 0.0),
        ("isaaclab/ant", "loss.entropy_coeff", 0.0, 0.0),
        ("hopper", "optim.target_kl", 0.03, 0.03),
    ],
)
def test_what_depends_on_task_and_policy_gives_way_to_the_command_line(task, option, gaussian, flow):
    def value(*overrides):
        section, _, name = option.partition(".")
        return getattr(getattr(compose([f"env={task}", *overrides]), section), name)

    assert value("policy=gaussian") == gaussian
    for policy in ("reversible_flow", "genpo", "fpo"):
        assert value(f"policy={policy}") == flow
    assert value("policy=gaussian", f"{option}=0.5") == 0.5


def test_sizes_of_batches_follow_the_number_of_environments():
    options = compose(["env=isaaclab/ant", "env.num_envs=64"])
    assert options.collector.frames_per_batch == 64 * 32 and options.collector.total_frames == 64 * 32 * 1000
    assert (options.loss.mini_batch_size, options.checkpoint.interval) == (64 * 32 // 4, 64 * 32 * 50)
    assert compose(["env=isaaclab/ant", "collector.total_frames=100"]).collector.total_frames == 100


def test_isaac_labs_policies_have_the_layers_of_their_critics():
    options = compose(["env=isaaclab/h1_rough", "critic.hidden_sizes=[8]"])
    assert options.policy.hidden_sizes == (8,) and options.policy.activation == "elu"
    assert compose(["env=isaaclab/h1_rough", "policy.hidden_sizes=[4]"]).policy.hidden_sizes == (4,)


def test_torchrls_own_configurations_neither_disturb_nor_are_disturbed():
    import torchrl.trainers.algorithms.configs  # noqa: F401  registers collector/sync, logger/csv and others

    theirs = ConfigStore.instance().load("collector/sync.yaml").node
    before = ConfigStore.instance().repo
    options = compose(["collector=multi_sync", "logger=wandb", "env=pendulum"])
    assert options.collector.kind == "multi_sync" and options.logger.project == "torchrl_genpo"
    assert ConfigStore.instance().repo is before
    assert ConfigStore.instance().load("collector/sync.yaml").node == theirs
    with pytest.raises(RuntimeError), known_to_hydra():
        raise RuntimeError
    assert ConfigStore.instance().repo is before and not GlobalHydra.instance().is_initialized()


SMALL = ["env=pendulum", "env.num_envs=2", "collector.frames_per_batch=32", "loss.mini_batch_size=16"]
REFUSED = [
    "policy=reversible_flow solver=alternating_coupling",
    "policy=genpo solver=two_step",
    "policy=gaussian start=consistent",
    "policy=fpo solver.num_steps=8",
    "policy.initial_std=0",
    "policy=gaussian policy.min_std=2",
    "policy=fpo +policy.initial_std=1",
    "policy=transformer_flow policy.head_sizes=[8]",
    "start=paper +start.tau=1",
    "start=consistent start.tau=-1",
    "start=consistent start.tau=0",
    "start=consistent start.learn_tau=each",
    "policy.scale=huge",
    "solver=three_step",
    "solver.sigma=[0.5,0.5]",
    "solver.sigma=null",
    "solver.sigma=true",
    "solver.sigma=1.5",
    "solver.sigma=-1",
    "solver.gradient=none",
    "+solver.adapt.quantity=kl",
    "optim.min_lr=1 optim.max_lr=0.1",
    "policy=transformer_flow policy.transformer.width=10",
    "policy=transformer_flow policy.transformer.num_heads=0",
    "policy=transformer_flow +policy.transformer.depth=3",
    "policy=transformer_flow policy.hidden_sizes=[8]",
    "policy=fpo policy.options.num_steps=0",
    "policy=fpo policy.options.perturbation=-1",
    "policy=fpo +policy.options.sigma=1",
    "policy=fpo policy.loss.error_scale=max",
    "policy=fpo +policy.loss.nothing=1",
    "policy=policyflow policy.options.initial_scale=0",
    "policy=dummy_flow",
    "policy.time_embedding_dim=5",
    "policy.hidden_sizes=[]",
    "policy.hidden_sizes=[64,-64]",
    "policy.hidden_sizes=64",
    "policy.hidden_sizes=[64,sixty]",
    "policy.activation=mishh",
    "device=tpu9",
    "device=cpu:cpu",
    "device=meta",
    "device=tpu",
    "compile.mode=foo",
    "env=half_cheeta",
    "+env.options.speed=1",
    "env=xhand/nut_bolt env.options.nuts=[oval]",
    "env=xhand/nut_bolt env.options.nuts=[]",
    "env=xhand/nut_bolt env.options.history=0",
    "env=xhand/nut_bolt +env.options.randomization.mass=[1,2]",
    "env=xhand/nut_bolt +env.options.randomization.friction=[2,1]",
    "env=xhand/nut_bolt +env.options.randomization.friction=[1]",
    "env=xhand/nut_bolt +env.options.scene.side=top",
    "env=xhand/nut_bolt +env.options.rewards.pleasure=1",
    "logger.backend=paper",
    "logger=csv logger.project=x",
    "collector.frames_per_batch=1000000000",
    "collector.frames_per_batch=33",
    "collector.kind=threads",
    "collector.total_frames=null",
    "collector.frames_per_batch=${mul:16,x}",
    "loss.mini_batch_size=${div:16,0}",
    "env=isaaclab/ant env.num_envs=x",
    "collector=multi_sync collector.num_workers=0",
    "collector=multi_sync collector.num_workers=3",
    "collector=multi_async collector.max_staleness=-1",
    "collector=multi_sync collector.num_workers=5000",
    "loss.proximal_decay=2",
    "policy=fpo loss.proximal_decay=0.9",
    "~loss.epochs",
    "~loss",
    "~env",
    "~policy.name",
    "loss=null",
    "loss=3",
    "env=null",
    "collector=[]",
    "eval=null",
    "seed=${oc.env:NO_SUCH_VARIABLE}",
    "seed=${seed}",
    "seed=${quotient:1,0}",
    "seed=1.5",
    "seed='1'",
    "seed=99999999999999",
    "loss.epochs=[1",
    "+loss.epochs=3.5",
    "loss.clip_epsilonn=0.1",
]


def check(line):
    overridden = {option.split("=")[0].lstrip("+~") for option in line}
    overrides = [*(option for option in SMALL if option.split("=")[0] not in overridden), *line]
    refuse_unused(validate(compose_config(overrides)), overrides)


@pytest.mark.parametrize("line", REFUSED)
def test_an_invalid_command_line_is_refused_with_a_message(line):
    with pytest.raises(MISTAKES) as caught:
        check(line.split())
    assert isinstance(caught.value, (ValueError, HydraException, OmegaConfBaseException))
    assert len(str(caught.value)) > 10 and "pydantic" not in str(caught.value)


NUMBERS = ("seed", "loss.epochs", "loss.gamma", "optim.lr", "solver.num_steps", "eval.interval", "num_threads")
WRONG = (
    "abc",
    "[1,2]",
    "{a:1}",
    "null",
    "true",
    "nan",
    "inf",
    "-inf",
    "''",
    "'12'",
    "-1",
    "1e300",
    "99999999999999999999",
)


@pytest.mark.parametrize("case", range(40))
def test_random_mistakes_are_refused_by_name(case):
    rng = random.Random(case)
    option = rng.choice(NUMBERS)
    wrong = [value for value in WRONG if (option, value) != ("eval.interval", "null")]
    value = rng.choice(wrong)
    with pytest.raises(ValueError, match=rf"^{option}="):
        check([f"{option}={value}"])
