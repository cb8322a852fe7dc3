"""The schema: every bound of every option, what follows from other options, and how mistakes are named."""

from __future__ import annotations

import math
import typing
from copy import deepcopy

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt

from torchrl_genpo.config import describe
from torchrl_genpo.config.compose import SCHEMAS, validate
from torchrl_genpo.config.schema import PretrainOptions, TrainOptions
from torchrl_genpo.envs.xhand import NUTS

NAMES = {"gymnasium": "hopper", "isaaclab": "isaaclab/ant", "robomimic": "robomimic/can", "xhand": "xhand/nut_bolt"}
KEYS = {"collector": "kind", "logger": "backend"}
POLICIES = {"alternating_coupling": "genpo"}
SOLVERS = {"genpo": "alternating_coupling", "genpo_jacobian": "alternating_coupling"}
ANCHOR = {"anchor.coeff": 0.1, "anchor.dataset": "demonstrations.hdf5", "policy.head_sizes": []}
BESIDE = {  # what has to change with an option so that nothing else refuses it
    "loss.reference_coeff": {"policy.init": "a/checkpoint.pt"},
    "loss.reference_target": {"policy.init": "a/checkpoint.pt", "loss.reference_coeff": 0.1},
    **{f"anchor.{name}": ANCHOR for name in ("coeff", "dataset", "filter_key", "num_demonstrations", "own_chunks")},
    "collector.frames_per_batch": {"env.num_envs": 1},
    "env.num_envs": {"collector.frames_per_batch": 2**17},
    "optim.min_lr": {"optim.max_lr": 1e6},
    "optim.max_lr": {"optim.min_lr": 0.0},
    "loss.proximal_decay": {"policy.name": "gaussian"},
    "policy.min_std": {"policy.initial_std": 1e6},
    "policy.transformer.width": {"policy.transformer.num_heads": 1},
    "policy.transformer.num_heads": {"policy.transformer.width": 10**4},
    "collector.num_workers": {"env.num_envs": 4096, "collector.frames_per_batch": 4096},
}
MEMORY = ("collector.frames_per_batch",)  # the largest number of frames may be too many for this machine


def put(values, name, value):
    *parents, key = name.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[key] = value


def with_option(option, value):
    """Options as a command line gives them, in which one has this value, in a section that has it."""
    values = {}
    group, _, choice = option.choice.partition("=")
    if group == "env":
        put(values, "env.name", NAMES[choice])
        if choice != "gymnasium":
            put(values, "collector.frames_per_batch", 2048 if choice == "xhand" else 81920)
    elif group:
        put(values, f"{group}.{KEYS.get(group, 'name')}", choice)
    if group == "solver" and choice in POLICIES:
        put(values, "policy.name", POLICIES[choice])
    if group == "policy" and choice in SOLVERS:
        put(values, "solver.name", SOLVERS[choice])
    if "env.num_envs" in BESIDE.get(option.name, {}):
        put(values, "env.name", "hopper")
    if option.name == "collector.frames_per_batch" and choice != "sync":
        put(values, "collector.num_workers", 1)
    for other, needed in BESIDE.get(option.name, {}).items():
        put(values, other, needed)
    put(values, option.name, value)
    return values


def edges(option):
    """For each bound of a number: the last value within it, and the first one outside."""
    kinds = [kind for _, kind in describe.members(option.field.annotation)]
    is_whole = int in kinds
    limits = describe.limits_of(option.field)
    step = next((limit.multiple_of for limit in limits if hasattr(limit, "multiple_of")), 1)
    for limit in limits:
        for kind, sign, is_open in ((Ge, -1, False), (Gt, -1, True), (Le, 1, False), (Lt, 1, True)):
            if isinstance(limit, kind):
                bound = getattr(limit, kind.__name__.lower())
                if is_whole:
                    yield bound, bound + sign * step
                else:
                    beyond = math.nextafter(bound, sign * math.inf)
                    yield (math.nextafter(bound, -sign * math.inf), float(bound)) if is_open else (float(bound), beyond)


ALL = [(name, option) for name, schema in SCHEMAS.items() for option in describe.options_of(schema)]
IDS = [f"{name}-{option.choice}-{option.name}" for name, option in ALL]
TABLES = {name: describe.options_table(schema) for name, schema in SCHEMAS.items()}
NUMBERS = [
    (name, option, inside, outside)
    for name, option in ALL
    if name == "genpo" or option.name.startswith(("pretrain.", "eval."))
    for inside, outside in edges(option)
]


@pytest.mark.parametrize(
    ("schema", "option", "inside", "outside"),
    NUMBERS,
    ids=[f"{option.choice}-{option.name}-{outside}" for _, option, _, outside in NUMBERS],
)
def test_a_number_is_accepted_up_to_its_bound_and_refused_beyond_it(schema, option, inside, outside):
    if option.name not in MEMORY or inside < 10**6:
        accepted = validate(with_option(option, inside), SCHEMAS[schema])
        for key in option.name.split("."):
            accepted = getattr(accepted, key)
        assert accepted == inside or option.name in (
            "collector.steps_per_env",
            "collector.iterations",
            "loss.mini_batches",
        )
    with pytest.raises(ValueError, match="Input should be") as caught:
        validate(with_option(option, outside), SCHEMAS[schema])
    assert str(caught.value).startswith(f"{option.name}=")


def test_most_options_have_bounds_so_that_the_test_above_proves_something():
    assert len(NUMBERS) > 150


@pytest.mark.parametrize(("schema", "option"), ALL, ids=IDS)
def test_each_option_refuses_values_of_other_types(schema, option):
    kinds = {typing.get_origin(kind) or kind for _, kind in describe.members(option.field.annotation)}
    wrong = [object()]
    if int in kinds or float in kinds:
        wrong += [True, "1", math.nan, math.inf, -math.inf, [1]]
    if int in kinds:
        wrong += [1.5, 1.0]
    if bool in kinds:
        wrong += [1, 0, "yes"]
    if str in kinds:
        wrong += ["", "\0", 3, True, ["a"]]
    if tuple in kinds:
        wrong += ["abc", [[]], [None], 3]
        wrong += [] if "[]" in option.description else [[]]
    if dict in kinds:
        wrong += [[], "abc", 3, None]
    if typing.Literal in kinds:
        wrong += ["no such value", 3, True]
    if type(None) not in kinds and option.default is not None and "null" not in option.description:
        wrong += [None]
    for value in wrong:
        if option.name.rpartition(".")[2] in ("name", "kind", "backend") and value is None:
            continue
        with pytest.raises(ValueError) as caught:
            validate(with_option(option, value), SCHEMAS[schema])
        message = str(caught.value)
        assert message.startswith(option.name), (value, message)
        assert "pydantic" not in message and "[type=" not in message and "http" not in message


@pytest.mark.parametrize(("schema", "option"), ALL, ids=IDS)
def test_each_option_says_what_it_is_for(schema, option):
    assert option.description[0].isupper() or option.description[0] in "`+F", option.description
    assert option.description.rstrip().endswith((".", "..")) and len(option.description.split()) >= 3
    assert option.type and f"`{option.name}`" in TABLES[schema]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"losss": {}}, "losss: There is no such option. Did you mean loss?"),
        (
            {"loss": {"clip_epsilonn": 0.1}},
            "loss.clip_epsilonn=0.1: There is no such option. Did you mean clip_epsilon?",
        ),
        ({"policy": {"name": "gausian"}}, "policy.name=gausian: Input should be .* Did you mean gaussian?"),
        (
            {"policy": {"name": "fpo", "options": {"num_step": 3}}},
            "policy.options.num_step=3: .* Did you mean num_steps?",
        ),
        ({"policy": {"name": "gaussian", "time_embedding_dim": 32}}, "policy.time_embedding_dim=32: There is no such"),
        ({"optim": {"schedule": "linera"}}, "optim.schedule=linera: Input should be .* Did you mean linear?"),
        ({"start": {"name": "independent", "tau": 0.1}}, "start.tau=0.1: There is no such option"),
        ({"env": {"name": "xhand/nut_bolt", "options": {"scene": {"sid": "left"}}}}, "scene.sid=left: .*mean side?"),
        (
            {"env": {"name": "xhand/nut_bolt", "options": {"scene": {"side": "top"}}}},
            "env.options.scene.side=top: .*'right' or 'left'",
        ),
        (
            {"env": {"name": "xhand/nut_bolt", "options": {"scene": {"timestep": "1"}}}},
            "env.options.scene.timestep=1: Inp",
        ),
        (
            {"env": {"name": "xhand/nut_bolt", "options": {"scene": {"nut": "round"}}}},
            "env.options.scene=.*nut is set by an option of its own",
        ),
        (
            {"env": {"name": "xhand/nut_bolt", "options": {"randomization": {"friction": [2, 1]}}}},
            "randomization.friction=.*a lowest and a highest value",
        ),
        ({"env": {"name": "xhand/nut_bolt", "options": {"rewards": {"turning": math.nan}}}}, "turning=nan: .* finite"),
        ({"env": {"name": "hopper", "options": {}}}, "env.options: There is no such option"),
        ({"device": "tpu"}, "device=tpu: use cpu, cuda, cuda:<number>, xpu or xpu:<number>"),
        ({"device": "cuda:1:2"}, "use cpu, cuda"),
        ({"loss": 3}, "loss=3: loss must be a mapping"),
        ({"env": None}, "env=null: env must be a mapping"),
        ([], "must be a mapping"),
        ({"policy": {"hidden_sizes": [64, 0]}}, r"policy.hidden_sizes=\[64, 0\]: Input should be greater than"),
        ({"policy": {"hidden_sizes": [100_000] * 50}}, "policy.hidden_sizes=.* GiB of memory"),
        ({"critic": {"hidden_sizes": [100_000] * 50}}, "critic.hidden_sizes=.* GiB of memory"),
        ({"env": {"name": "a", "num_envs": 1}, "collector": {"frames_per_batch": 10**9}}, "frames_per_batch=.* GiB"),
        ({"compile": {"cudagraphs": True}}, "compile.cudagraphs=true needs a CUDA device, not device=cpu"),
        ({"optim": {"min_lr": 1.0, "max_lr": 0.1}}, "optim.min_lr=1 is above optim.max_lr=0.1"),
        ({"solver": {"sigma": 0}}, "solver.sigma=0: sigma must not be 0"),
        ({"solver": {"name": "alternating_coupling"}}, "policy=reversible_flow needs solver=two_step"),
        ({"policy": {"name": "genpo"}}, "policy=genpo needs solver=alternating_coupling"),
        ({"policy": {"name": "gaussian"}, "loss": {"ratio": "action"}}, "loss.ratio=action needs a flow with a memory"),
        (
            {"policy": {"name": "fpo"}, "loss": {"proximal_decay": 0.9}},
            "loss.proximal_decay=0.9 needs a policy with a den",
        ),
        (
            {"policy": {"transformer": {}, "head_sizes": [64]}},
            "policy.head_sizes=.* has no effect on a transformer",
        ),
        ({"policy": {"head_sizes": [10**5] * 4}}, "policy.head_sizes=.* GiB"),
        ({"policy": {"min_std": 0.9}}, "policy.min_std=0.9 is above policy.initial_std=0.5"),
        ({"policy": {"transformer": {"width": 10}}}, "policy.transformer.width=10 must be a multiple"),
        (
            {"collector": {"kind": "multi_sync", "num_workers": 3}},
            "env.num_envs=16 must be a multiple of collector.num_w",
        ),
        ({"collector": {"frames_per_batch": 100}}, "frames_per_batch=100 is no multiple .*: use 96 or 112"),
        ({"collector": {"frames_per_batch": 10}}, "frames_per_batch=10 is no multiple .*: use 16"),
        ({"collector": {"frames_per_batch": None}}, "follows from collector.steps_per_env, which is null as well"),
        ({"collector": {"total_frames": None}}, "follows from collector.iterations, which is null as well"),
        ({"loss": {"mini_batch_size": None}}, "follows from loss.mini_batches, which is null as well"),
        (
            {"loss": {"mini_batch_size": None, "mini_batches": 4096}},
            "loss.mini_batches=4096: .* 2048 frames cannot be split",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_named_with_its_option_and_its_remedy(values, message):
    with pytest.raises(ValueError, match=message) as caught:
        validate(values)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_named_at_once():
    with pytest.raises(ValueError) as caught:
        validate({"seed": -1, "loss": {"gamma": 2}})
    assert len(str(caught.value).splitlines()) == 2


def test_numbers_that_follow_from_others_are_filled_in():
    isaac = {
        "env": {"name": "isaaclab/ant", "num_envs": 64},
        "collector": {"frames_per_batch": None, "steps_per_env": 32, "total_frames": None, "iterations": 10},
        "loss": {"mini_batch_size": None, "mini_batches": 4},
        "eval": {"interval": None},
        "checkpoint": {"interval": None},
    }
    options = validate(isaac)
    assert (options.collector.frames_per_batch, options.collector.total_frames) == (2048, 20480)
    assert (options.loss.mini_batch_size, options.eval.interval) == (512, 20480)
    assert options.checkpoint.interval == 50 * 2048
    given = deepcopy(isaac)
    given["collector"] |= {"frames_per_batch": 128, "total_frames": 1000}
    options = validate(given)
    assert (options.collector.frames_per_batch, options.collector.steps_per_env) == (128, 2)
    assert (options.collector.total_frames, options.collector.iterations) == (1000, 8)


@pytest.mark.parametrize(("env", "size"), [({"name": "hopper"}, 1), ({"name": "robomimic/can"}, 4)])
def test_a_transformer_has_the_chunks_of_the_task(env, size):
    frames = {"frames_per_batch": 2000}
    assert (
        validate({"env": env, "policy": {"transformer": {}}, "collector": frames}).policy.transformer.chunk_size == size
    )
    own = {"transformer": {"chunk_size": 8}}
    assert validate({"env": env, "policy": own, "collector": frames}).policy.transformer.chunk_size == 8


@pytest.mark.parametrize("schema", [TrainOptions, PretrainOptions])
def test_options_come_back_from_yaml_as_they_were(schema):
    options = validate({"seed": 7, "policy": {"transformer": {}}}, schema)
    assert validate(yaml.safe_load(yaml.safe_dump(options.model_dump())), schema) == options


def test_options_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="frozen"):
        validate({}).loss.gamma = 0.5


def test_each_nut_can_be_chosen():
    assert validate({"env": {"name": "xhand/nut_bolt", "options": {"nuts": list(NUTS)}}}).env.options.nuts == tuple(
        NUTS
    )
