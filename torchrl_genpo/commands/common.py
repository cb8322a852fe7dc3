# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the commands share: options that are checked, mistakes that are explained, runs that are continued."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import hydra
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torchrl import logger as torchrl_log

from torchrl_genpo.config.checks import did_you_mean
from torchrl_genpo.config.compose import GROUPS, SCHEMAS, ConfigName, compose_config, known_to_hydra, validate
from torchrl_genpo.config.describe import options_of
from torchrl_genpo.config.nested import set_option
from torchrl_genpo.config.schema import PretrainOptions, TrainOptions

__all__ = [
    "add_set",
    "check_device",
    "check_rounds",
    "explain_errors",
    "hydra_command",
    "refuse_others",
    "refuse_unused",
    "resumed_config",
]

T = TypeVar("T", TrainOptions, PretrainOptions)

torchrl_log.setLevel(logging.WARNING)  # its notes on storages would cut the progress bars

MISTAKES = (ValueError, OSError, ImportError, HydraException, OmegaConfBaseException)
"""The errors that a user can mend."""

ALWAYS = ("evaluate", "resume", "hydra")  # options that change nothing of a run


@contextlib.contextmanager
def explain_errors(*others: type[Exception]) -> Iterator[None]:
    """Ends the process with the message, not the traceback, of an error that a user can mend or one of ``others``."""
    explained: tuple[type[Exception], ...] = (*MISTAKES, *others)
    try:
        yield
    except explained as error:
        cause, close = error.__cause__, ""
        if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
            close = did_you_mean(Path(error.missing_cfg_file).name, error.options).replace(" ", "\n", 1)
        details = ""
        if isinstance(cause, OmegaConfBaseException):  # Hydra's own message says less than its cause
            details = (f"\n{cause}" if isinstance(error, HydraException) else "") + _close_options(cause)
        sys.exit(f"{type(error).__name__}: {error}{details}{close}")


def _close_options(error: OmegaConfBaseException) -> str:
    """The hint at options beside one that does not exist."""
    if not isinstance(error.parent_node, DictConfig) or error.key in error.parent_node.keys():
        return ""
    name = str(error.key).rpartition(".")[2]
    known = {option.name for schema in SCHEMAS.values() for option in options_of(schema)}
    elsewhere = sorted(option for option in known if option.rpartition(".")[2] == name)
    group = str(error.full_key).rpartition(".")[0]
    if str(error.full_key) in elsewhere:
        return f"\n{error.full_key} is an option of another {group}=<choice>: --help lists them."
    if elsewhere:
        return f"\nDid you mean {', '.join(elsewhere)}?"
    return did_you_mean(name, map(str, error.parent_node)).replace(" ", "\n", 1)


def add_set(
    parser: argparse.ArgumentParser, of_what: str = "the run's configuration, such as env.options.dataset=FILE"
) -> None:
    """Adds ``--set NAME=VALUE ...``, other values of a configuration: pairs of a name and a value."""
    parser.add_argument(
        "--set",
        nargs="*",
        action="extend",
        default=[],
        type=_set_option,
        metavar="NAME=VALUE",
        help=f"other values of {of_what}",
    )


def _set_option(entry: str) -> tuple[str, Any]:
    name, equals, text = entry.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"it takes NAME=VALUE, not {entry!r}")
    try:
        return name, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{entry}: {text!r} is no YAML value") from error


def check_device(device: str) -> None:
    """Refuses a device that PyTorch does not find on this machine.

    Raises:
        ValueError: that names the device and those that there are.
    """
    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if device not in found and f"{device}:0" not in found:
        raise ValueError(f"device={device}: PyTorch {torch.__version__} can use {', '.join(found)} here.")


def check_rounds(rounds: int) -> None:
    """Refuses an evaluation of no episodes, where nothing but one is asked for."""
    if not rounds:
        raise ValueError("eval.rounds=0 evaluates nothing; it must be at least 1 here.")


def _option_name(override: str) -> str:
    """The option that an override on a command line sets."""
    return override.split("=")[0].lstrip("+~")


def refuse_others(overrides: Iterable[str], allowed: Collection[str], why: str) -> None:
    """Refuses options that must not be given on a command line.

    Args:
        overrides (iterable of str): the command line.
        allowed (collection of str): names of options and sections that may be given.
        why (str): the beginning of the message.

    Raises:
        ValueError: for an option that is not allowed.
    """
    for override in overrides:
        name = _option_name(override)
        if not any(name == known or name.startswith(f"{known}.") for known in (*allowed, *ALWAYS)):
            raise ValueError(f"{why}, and {override!r} would change it. May change: {', '.join(sorted(allowed))}.")


def refuse_unused(options: TrainOptions | PretrainOptions, overrides: Iterable[str]) -> None:
    """Refuses options on a command line that would have no effect, such as a solver of a policy that has none.

    What the file of a task says of solver and start is meant for the flows; other policies pass it over.

    Raises:
        ValueError: that names the option.
    """
    policy = options.policy
    own = "" if policy.options is None else " Its own options are policy.options.<name>."
    without_effect = _without_effect(options)
    for override in overrides:
        name = _option_name(override)
        section = name.partition(".")[0]
        if section in ("hydra", "for_policy"):
            continue
        if override.startswith("~"):
            raise ValueError(f"{override!r} would remove an option, which is needed: give it a value instead.")
        if section in ("solver", "start") and not policy.has_pair:
            raise ValueError(f"policy={policy.name} has neither solver nor start: leave {override!r} out.{own}")
        if name in without_effect or not _has(options, name):
            raise ValueError(f"{override!r} has no effect {without_effect.get(name, 'here')}: leave it out.")


def _without_effect(options: TrainOptions | PretrainOptions) -> dict[str, str]:
    """The options that the values of others leave without effect, with these others."""
    policy = options.policy
    found: dict[str, str] = {}
    if policy.transformer is not None:
        found |= dict.fromkeys(("policy.hidden_sizes", "policy.activation"), "beside policy.transformer")
    if policy.encoder is None:
        found["policy.encoder_sizes"] = "without policy.encoder"
    if getattr(policy, "scale", None) == "unit":
        found |= dict.fromkeys(("policy.initial_std", "policy.min_std"), "with policy.scale=unit")
    if isinstance(options, TrainOptions) and not options.compile.enabled:
        found["compile.mode"] = "without compile.enabled=true"
    return found


def _has(options: Any, name: str) -> bool:
    """Whether there is an option of this dotted name."""
    for key in name.split("."):
        if isinstance(options, Mapping):
            if key not in options:
                return False
            options = options[key]
        elif key in getattr(type(options), "model_fields", {}):
            options = getattr(options, key)
        else:
            return False
    return True


def resumed_config(
    saved: Mapping[str, Any],
    overrides: Iterable[str],
    resumable: Collection[str],
    kind: type[T] = TrainOptions,  # type: ignore[assignment]
    why: str = "A resumed run keeps its configuration",
) -> T:
    """The options of a run or a checkpoint, with the few that a command line may change.

    Args:
        saved (mapping): the options that were saved; those that are newer than the run take their defaults.
        overrides (iterable of str): the command line.
        resumable (collection of str): names of the options and sections that may change.
        kind (type): :class:`TrainOptions` or :class:`PretrainOptions`.
        why (str): the beginning of the message for an option that may not.

    Raises:
        ValueError: for an option that may not change, or a value that the schema refuses.
    """
    overrides = list(overrides)
    refuse_others(overrides, resumable, why)
    values = deepcopy(dict(saved))
    for override in OverridesParser.create().parse_overrides(overrides):
        name = override.key_or_group
        if name.partition(".")[0] in ALWAYS:
            continue
        if override.is_delete():
            raise ValueError(f"{why}, and {override.input_line!r} would remove an option.")
        if name in GROUPS and isinstance(override.value(), str):
            value: Any = OmegaConf.to_container(compose_config([f"{name}={override.value()}"])[name], resolve=True)
        else:
            value = override.value()
        set_option(values, name, value)
    return validate(values, kind)


def hydra_command(
    config_name: ConfigName, *mistakes: type[Exception]
) -> Callable[[Callable[[Any, list[str]], int | None]], Callable[[], None]]:
    """Makes a command of a function that takes checked options and returns an exit code.

    The function is called with the options (:class:`TrainOptions` of ``genpo``, :class:`PretrainOptions` of
    ``pretrain``) and the overrides of the command line, for :func:`refuse_others` and :func:`resumed_config`. Mistakes
    are messages (``HYDRA_FULL_ERROR=1`` shows where they were found), and a run that never began leaves no folder.

    Args:
        config_name (str): the file of groups, ``torchrl_genpo/config/<config_name>.yaml``.
        *mistakes (type): further errors whose message is shown instead of a traceback.
    """

    def decorate(function: Callable[[Any, list[str]], int | None]) -> Callable[[], None]:
        shows_all = False

        def explained() -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext() if shows_all else explain_errors(*mistakes)

        @hydra.main(config_path="pkg://torchrl_genpo.config", config_name=config_name, version_base="1.3")
        @functools.wraps(function)
        def launch(cfg: DictConfig) -> None:
            output = Path(HydraConfig.get().runtime.output_dir)
            if int(os.environ.get("RANK", 0)):  # the first rank alone writes; by another second Hydra made another one
                _remove_if_empty(output)
            # of several runs the others go on; of a single one Hydra would name the options before the message
            is_single = HydraConfig.get().mode == RunMode.RUN
            try:
                with explained() if is_single else contextlib.nullcontext():
                    overrides = [override.removeprefix("++") for override in HydraConfig.get().overrides.task]
                    code = function(_checked(cfg, overrides, config_name, output), overrides)
            finally:
                _remove_if_empty(output)
            if code:
                sys.exit(code)

        @functools.wraps(function)
        def main() -> None:
            nonlocal shows_all
            shows_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing
            sys.argv[1:] = _of_a_run(sys.argv[1:])
            with explained(), known_to_hydra():
                launch()

        return main

    return decorate


def _of_a_run(arguments: list[str]) -> list[str]:
    """Lets Hydra take options of the task of a run that is continued or evaluated, which it cannot know."""
    if not any(_option_name(argument) in ("resume", "evaluate") for argument in arguments):
        return arguments
    return [f"++{argument}" if argument.startswith("env.") else argument for argument in arguments]


def _checked(cfg: DictConfig, overrides: list[str], config_name: ConfigName, output: Path) -> Any:
    """The options of a command line; where it continues or evaluates a run, that run's task is not known yet."""
    if cfg.get("resume") is None and cfg.get("evaluate") is None:
        options = validate(cfg, SCHEMAS[config_name])
        refuse_unused(options, overrides)
        return options
    _remove_if_empty(output)
    known = [override for override in overrides if not _option_name(override).startswith("env.")]
    return validate(compose_config(known, config_name), SCHEMAS[config_name])


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is not empty, or another rank was faster
        folder.rmdir()
        for parent in folder.parents:
            if Path.cwd() not in parent.parents:
                break
            parent.rmdir()
