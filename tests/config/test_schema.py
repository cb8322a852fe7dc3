"""The schema: what each option refuses, what follows from other options, and how mistakes are named."""

from __future__ import annotations

import math

import pytest
import yaml

from torchrl_genpo.config import describe
from torchrl_genpo.config.compose import SCHEMAS, validate
from torchrl_genpo.config.fields import Options
from torchrl_genpo.config.schema import PretrainOptions, TrainOptions
from torchrl_genpo.envs.xhand import NUTS

ALL = [(name, option) for name, schema in SCHEMAS.items() for option in describe.options_of(schema)]
TABLES = {name: describe.options_table(schema) for name, schema in SCHEMAS.items()}


def sections(schema):
    """The schema and every section that a field of it, or of a section, may hold."""
    yield schema
    for field in schema.model_fields.values():
        for _, kind in describe.members(field.annotation):
            if isinstance(kind, type) and issubclass(kind, Options):
                yield from sections(kind)


@pytest.mark.parametrize("schema", [TrainOptions, PretrainOptions])
def test_every_section_is_strict_about_names_and_types(schema):
    found = set(sections(schema))
    assert len(found) > 5
    for section in found:
        config = section.model_config
        assert config["strict"] and config["extra"] == "forbid" and not config["allow_inf_nan"], section


@pytest.mark.parametrize(
    ("section", "name", "wrong"),
    [
        ("optim", "lr", [0, -1e-3, math.nan, math.inf, "1e-3", True, [1e-3], None]),
        ("optim", "min_lr", [0, 1.0]),
        ("optim", "schedule", ["linera", 3, None]),
        ("loss", "gamma", [1.1, -0.1]),
        ("loss", "epochs", [0, 1.5, 1.0, "2", True]),
        ("loss", "normalize_advantage", [1, "yes", None]),
        ("solver", "sigma", [0, -1, 1.01]),
        ("solver", "num_steps", [0, 10**6 + 1]),
        ("critic", "hidden_sizes", ["abc", [0], [[]], [None], 3]),
        ("env", "name", ["", "\0", 3, ["a"]]),
    ],
)
def test_an_option_refuses_what_it_cannot_be_by_its_name(section, name, wrong):
    for value in wrong:
        with pytest.raises(ValueError) as caught:
            validate({section: {name: value}})
        message = str(caught.value)
        assert message.startswith(f"{section}.{name}="), (value, message)
        assert "pydantic" not in message and "[type=" not in message and "http" not in message


@pytest.mark.parametrize(("schema", "option"), ALL, ids=lambda value: getattr(value, "name", value))
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
        ({"device": "tpu"}, "device=tpu: use cpu, cuda or cuda:<number>"),
        ({"device": "cuda:1:2"}, "use cpu, cuda"),
        ({"loss": 3}, "loss=3: loss must be a mapping"),
        ({"env": None}, "env=null: env must be a mapping"),
        ([], "must be a mapping"),
        ({"policy": {"hidden_sizes": [64, 0]}}, r"policy.hidden_sizes=\[64, 0\]: Input should be greater than"),
        ({"policy": {"hidden_sizes": [100_000]}}, r"policy.hidden_sizes=\[100000\]: Input should be less than"),
        (
            {"policy": {"encoder": "gru", "scale": "unit", "head_sizes": []}, "anchor": {"coeff": 0.1, "dataset": "a"}},
            "anchor.coeff=0.1 is for a flow with a memory.*policy.encoder=gru",
        ),
        ({"optim": {"min_lr": 1.0, "max_lr": 0.1}}, "optim.min_lr=1 is above optim.max_lr=0.1"),
        ({"solver": {"sigma": 0}}, "solver.sigma=0: sigma must not be 0"),
        ({"solver": {"name": "alternating_coupling"}}, "policy=reversible_flow needs solver=two_step"),
        ({"policy": {"name": "genpo"}}, "policy=genpo needs solver=alternating_coupling"),
        (
            {"policy": {"name": "fpo"}, "loss": {"proximal_decay": 0.9}},
            "loss.proximal_decay=0.9 needs a policy with a den",
        ),
        (
            {"policy": {"transformer": {}, "head_sizes": [64]}},
            "policy.head_sizes=.* has no effect on a transformer",
        ),
        ({"policy": {"min_std": 0.9}}, "policy.min_std=0.9 is not below policy.initial_std=0.5"),
        ({"optim": {"lr": 0.01}}, "optim.lr=0.01 is not between optim.min_lr=1e-05 and optim.max_lr=0.003"),
        ({"loss": {"mini_batch_size": 600}}, r"mini_batch_size=600 does not divide .*=2048 into equal .*: use 512\."),
        (
            {"policy": {"encoder": "gru"}, "loss": {"mini_batch_size": 300}, "env": {"name": "hopper", "num_envs": 8}},
            r"mini_batch_size=300 does not divide .* of whole sequences of 256 steps: use 256\.",
        ),
        ({"optim": {"head_lr": 1e-4}, "policy": {"name": "gaussian"}}, "is of the head .* this is policy=gaussian"),
        ({"optim": {"head_lr": 1e-4}, "policy": {"head_sizes": []}}, r"policy.head_sizes=\[\]"),
        ({"optim": {"noise_lr": 1e-6}}, "optim.noise_lr=1e-06 is not between"),
        ({"policy": {"transformer": {"width": 10}}}, "policy.transformer.width=10 must be a multiple"),
        (
            {"collector": {"kind": "multi_sync", "num_workers": 3}},
            "env.num_envs=16 must be a multiple of collector.num_w",
        ),
        ({"collector": {"frames_per_batch": 100}}, "frames_per_batch=100 is no multiple .*: use 96 or 112"),
        ({"collector": {"frames_per_batch": 10}}, "frames_per_batch=10 is no multiple .*: use 16"),
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


@pytest.mark.parametrize(("env", "size"), [({"name": "hopper"}, 1), ({"name": "robomimic/can"}, 4)])
def test_a_transformer_has_the_chunks_of_the_task(env, size):
    batch = {"collector": {"frames_per_batch": 2000}, "loss": {"mini_batch_size": 500}}
    assert validate({"env": env, "policy": {"transformer": {}}, **batch}).policy.transformer.chunk_size == size
    own = {"transformer": {"chunk_size": 8}}
    assert validate({"env": env, "policy": own, **batch}).policy.transformer.chunk_size == 8


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
