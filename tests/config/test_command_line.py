"""Options that a command prints can be pasted: a shell and Hydra give back the value, whatever it holds."""

from __future__ import annotations

import subprocess

import pytest
from omegaconf import OmegaConf

from torchrl_genpo.config.command_line import as_override, as_word
from torchrl_genpo.config.compose import compose, compose_config

ODD = [
    "Drive (lab)",
    "josé/実験",
    "seed=1",
    "a,b",
    "[a]{b}",
    "#1 of 2",
    'it\'s "quoted"',
    "back\\slash\\",
    "\\'",
    '\\"',
    "${HOME}",
    "\\${seed}",
    "$HOME `ls` $(ls)",
    "~/runs",
    "-x",
    " padded ",
    "null",
    "True",
    "nan",
    "1",
    "1e3",
    "-.5",
    "a:b",
    "*?!;&|<>%@",
    "tab\there",
    "two\nlines",
]


def parsed(words):
    return OmegaConf.to_container(compose_config(words), resolve=True)["resume"]


@pytest.mark.parametrize("path", ODD)
def test_a_path_comes_back_through_a_shell_and_hydra(path):
    word = as_word("resume", path)
    said = subprocess.run(["sh", "-c", f"printf %s {word}"], capture_output=True, check=True).stdout.decode()
    assert said == as_override("resume", path)
    assert parsed([said]) == path


def test_an_ordinary_path_is_printed_as_it_is():
    path = "/home/me/outputs/half_cheetah/2026-11-28/12-00-00-seed0"
    assert as_word("resume", path) == f"resume={path}"


def test_nested_values_come_back():
    options = compose(
        [
            "env=robomimic/can",
            as_override("policy.hidden_sizes", (32, 64)),
            as_override("env.options.observation_keys", ["object", "a b", "1"]),
            as_override("env.options.dataset", None),
            as_override("env.options.end_at_success", True),
            as_override("optim.lr", 1e-05),
        ]
    )
    task = options.env.options
    assert options.policy.hidden_sizes == (32, 64) and task.observation_keys == ("object", "a b", "1")
    assert task.dataset is None and task.end_at_success and options.optim.lr == 1e-5
    values = {"scene": {"env_spacing": 4.0, "name": "a,b"}}
    overrides = compose_config(["env=isaaclab/ant", "+" + as_override("env.options.overrides", values)])
    assert OmegaConf.to_container(overrides)["env"]["options"]["overrides"] == values
