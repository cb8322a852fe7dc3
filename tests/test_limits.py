"""The limits of the configuration: everything that is shipped keeps them, and what does not is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import torchrl_genpo.configuration  # noqa: F401  registers the resolvers
from torchrl_genpo.limits import LIMITS, TRAINING, check_config, check_memory

CONFIG = Path(__file__).parents[1] / "torchrl_genpo" / "config"
GROUPS = ("collector", "env", "logger", "policy", "solver", "start")
CHOICES = [
    f"{group}={path.relative_to(CONFIG / group).with_suffix('')}"
    for group in GROUPS
    for path in sorted((CONFIG / group).rglob("*.yaml"))
    if path.stem != "base"
]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_configuration_that_is_shipped_keeps_the_limits(choice):
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        check_config(compose("genpo", [choice]), TRAINING)
        if choice.startswith("env=robomimic"):
            check_config(compose("pretrain", [choice]))


CHECKED_WHERE_IT_IS_USED = {  # with a message of its own; sections hold whatever their class takes
    *("solver.sigma", "solver.gradient", "solver.adapt.quantity", "start.scale", "start.tau", "start.learn_tau"),
    *("policy.loss.error_scale", "collector.slurm", "env.gaussian_entropy_coeff"),
    *(f"env.options.{name}" for name in ("nuts", "overrides", "randomization", "rewards", "scene")),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_no_option_that_is_shipped_was_forgotten(choice):
    def names(node, prefix=""):
        for key, value in node.items():
            name = f"{prefix}{key}"
            if name in CHECKED_WHERE_IT_IS_USED or not isinstance(value, dict):
                yield name
            else:
                yield from names(value, f"{name}.")

    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        config = OmegaConf.to_container(compose("genpo", [choice]))
    assert not set(names(config)) - CHECKED_WHERE_IT_IS_USED - set(LIMITS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seed": -1}, "seed=-1: seed must be an integer of at least 0"),
        ({"seed": True}, "seed=True"),
        ({"loss": {"gamma": float("nan")}}, r"loss\.gamma=nan: .* at most 1"),
        ({"optim": {"lr": "fast"}}, r"optim\.lr=fast: .* a number above 0"),
        ({"policy": {"hidden_sizes": [64, 0]}}, r"policy\.hidden_sizes=\[64, 0\]"),
        ({"critic": {"hidden_sizes": [100_000] * 50}}, "GiB of memory"),
        ({"collector": {"frames_per_batch": 10**9}}, "GiB of memory"),
        ({"video": 1}, "video=1: video must be true or false"),
        ({"env": {"name": ""}}, r"env\.name=: env\.name must be a text"),
        ({"loss": 3}, "loss=3: loss must be a mapping"),
        ({"device": "tpu"}, "device=tpu: use cpu, cuda"),
        ({"optim": {"min_lr": 1.0, "max_lr": 0.1}}, r"optim\.min_lr=1\.0 is above"),
        ({"collector": {"num_workers": 0}}, r"collector\.num_workers=0: .* an integer of at least 1"),
        ({"collector": {"max_staleness": -1}}, r"collector\.max_staleness=-1: .* of at least 0"),
        ({"collector": {"launcher": "slurm"}}, r"collector\.launcher=slurm: .* mp or submitit"),
        ({"loss": {"proximal_decay": 2}}, r"loss\.proximal_decay=2: .* at most 1, or null"),
        ({"env": {"options": {"randomize": "no"}}}, r"env\.options\.randomize=no: .* true or false"),
        ({"compile": {"cudagraphs": True}}, "needs a CUDA device"),
        (
            {"device": "cuda", "compile": {"cudagraphs": True}, "solver": {"adapt": {"quantity": "kl"}}},
            r"solver\.adapt\.quantity=kl moves sigma",
        ),
        ({"seed": "${seed}"}, "cannot be resolved"),
    ],
)
def test_a_value_beyond_its_limits_is_named_with_them(config, message):
    with pytest.raises(ValueError, match=message):
        check_config(OmegaConf.create(config))


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"seed is missing"):
        check_config(OmegaConf.create({}), TRAINING)


def test_more_memory_than_there_is_is_refused():
    check_memory(2**20, "a little")
    with pytest.raises(ValueError, match=r"a lot would take about 1048576 GiB"):
        check_memory(2**50, "a lot")
