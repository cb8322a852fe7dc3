"""The command that collects demonstrations takes a task by the name that it has in every command."""

from __future__ import annotations

import sys
from importlib import resources

import pytest

from torchrl_genpo.commands import collect
from torchrl_genpo.commands.pretrain import finetuning_options
from torchrl_genpo.config.compose import compose
from torchrl_genpo.envs import ROBOMIMIC_TASKS

CONFIGS = sorted((resources.files("torchrl_genpo.config") / "env" / "robomimic").iterdir())
ROBOMIMIC = [f"robomimic/{file.name.removesuffix('.yaml')}" for file in CONFIGS if file.name != "base.yaml"]


def refusal(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["genpo-collect", *arguments])
    with pytest.raises(SystemExit) as ended:
        collect.main()
    return ended.value.code, capsys.readouterr().err


def test_every_task_with_a_short_name_has_a_configuration_of_that_name():
    assert sorted(f"robomimic/{name}" for name in ROBOMIMIC_TASKS) == ROBOMIMIC


@pytest.mark.parametrize("name", ROBOMIMIC)
def test_a_task_has_one_name_in_every_command(name, monkeypatch, capsys, tmp_path):
    assert compose([f"env={name}"]).env.name == name
    options = compose([f"env={name}"], config_name="pretrain")
    assert options.env.name == name and finetuning_options(options, tmp_path)[0] == f"env={name}"
    # past its name, the command looks at the other arguments
    _, error = refusal(monkeypatch, capsys, name, "--episodes", "0")
    assert "--episodes and --workers must be at least 1" in error


@pytest.mark.parametrize("name", ["can", "robomimic/cann", "robomimic/base"])
def test_another_name_is_refused_beside_those_that_there_are(name, monkeypatch, capsys):
    code, error = refusal(monkeypatch, capsys, name)
    assert code == 2 and f"'{name}'" in error and all(known in error for known in ROBOMIMIC)


@pytest.mark.parametrize("arguments", [["--set", "env.options.dataset"], ["--set", "a=[1"], ["--set", "a=1"]])
def test_settings_that_are_none_or_of_no_policy_are_refused(arguments, monkeypatch, capsys):
    code, error = refusal(monkeypatch, capsys, "robomimic/can", *arguments)
    assert code == 2 and "--set" in error
