# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the commands share."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torchrl import logger as torchrl_log

from torchrl_genpo.envs import WorkerError
from torchrl_genpo.limits import did_you_mean
from torchrl_genpo.loading import fill_in
from torchrl_genpo.models import PAIR_FLOWS, SURROGATE_FLOWS
from torchrl_genpo.runs import read_run_config
from torchrl_genpo.training import DivergedError

__all__ = [
    "check_device",
    "check_rounds",
    "explain_errors",
    "hydra_command",
    "refuse_others",
    "refuse_unused",
    "resumed_config",
]

torchrl_log.setLevel(logging.WARNING)  # its notes on storages would cut the progress bars

MISTAKES = (DivergedError, WorkerError, ValueError, OSError, ImportError, HydraException, OmegaConfBaseException)
"""What a user can mend."""

ALWAYS = ("evaluate", "resume", "hydra")  # options that change no configuration


@contextlib.contextmanager
def explain_errors(*others: type[Exception]) -> Iterator[None]:
    """Ends the process with the message, not the traceback, of what a user can mend, and of these errors."""
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
    """Options beside one that is not there."""
    if not isinstance(error.parent_node, DictConfig) or error.key in error.parent_node.keys():
        return ""
    return did_you_mean(str(error.key), map(str, error.parent_node)).replace(" ", "\n", 1)


def check_device(device: str) -> None:
    """Refuses a CUDA device where PyTorch finds none."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device}: PyTorch {torch.__version__} finds no CUDA device; use device=cpu.")


def check_rounds(rounds: int) -> None:
    """Refuses an evaluation of no episodes, where nothing but one is asked for."""
    if not rounds:
        raise ValueError("eval.rounds=0 evaluates nothing; it must be at least 1 here.")


def _option_name(override: str) -> str:
    """The option that an override on a command line is of."""
    return override.split("=")[0].lstrip("+~")


def refuse_others(overrides: Iterable[str], allowed: Collection[str], why: str) -> list[str]:
    """The names of the options on a command line, Hydra's own aside, if all may be given.

    Raises:
        ValueError: that begins with ``why``, for another one.
    """
    names = {override: _option_name(override) for override in overrides}
    for override, name in names.items():
        if not any(name == known or name.startswith(f"{known}.") for known in (*allowed, *ALWAYS)):
            raise ValueError(f"{why}, and {override!r} would change it. May change: {', '.join(sorted(allowed))}.")
    return [name for name in names.values() if not name.startswith("hydra")]


def refuse_unused(policy: str, overrides: Iterable[str]) -> None:
    """Refuses a solver or a start that is given on a command line to a policy that has neither.

    What the file of a task says of them is meant for the flows, and passed over by the others.

    Raises:
        ValueError: that names the option.
    """
    for override in overrides if policy not in PAIR_FLOWS else ():
        if _option_name(override).partition(".")[0] in ("solver", "start"):
            raise ValueError(
                f"policy={policy} has neither solver nor start: leave {override!r} out."
                f"{' Its own options are policy.options.<name>.' if policy in SURROGATE_FLOWS else ''}"
            )


def resumed_config(folder: Path, cfg: DictConfig, overrides: Iterable[str], resumable: Collection[str]) -> DictConfig:
    """The configuration of the run in ``folder``, with the few overrides that may change."""
    saved = fill_in(read_run_config(folder), cfg)
    for name in refuse_others(overrides, resumable, "A resumed run keeps its configuration"):
        OmegaConf.update(saved, name, OmegaConf.select(cfg, name))
    return saved


def hydra_command(config_name: str) -> Callable[[Callable[[DictConfig], int | None]], Callable[[], None]]:
    """Makes a command of a function that takes a configuration and returns an exit code.

    Options are Hydra's, of ``torchrl_genpo/config/<config_name>.yaml``. Mistakes are messages (``HYDRA_FULL_ERROR=1``
    shows where they were found), and a run that never began leaves no folder.
    """

    def decorate(function: Callable[[DictConfig], int | None]) -> Callable[[], None]:
        shows_all = False

        def explained() -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext() if shows_all else explain_errors()

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
                    code = function(cfg)
            finally:
                _remove_if_empty(output)
            if code:
                sys.exit(code)

        @functools.wraps(function)
        def main() -> None:
            nonlocal shows_all
            shows_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing
            with explained():
                launch()

        return main

    return decorate


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is not empty, or another rank was faster
        folder.rmdir()
        for parent in folder.parents:
            if Path.cwd() not in parent.parents:
                break
            parent.rmdir()
