# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the commands share."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from torchrl_genpo.envs import WorkerError
from torchrl_genpo.envs.common import did_you_mean
from torchrl_genpo.training import DivergedError

__all__ = ["explain_errors", "hydra_command"]

MISTAKES = (DivergedError, WorkerError, ValueError, OSError, ImportError, HydraException, OmegaConfBaseException)
"""What a user can mend."""


@contextlib.contextmanager
def explain_errors() -> Iterator[None]:
    """Ends the process with the message, not the traceback, of what a user can mend."""
    try:
        yield
    except MISTAKES as error:
        cause = error.__cause__
        details = f"\n{cause}{_close_options(cause)}" if isinstance(cause, OmegaConfBaseException) else ""
        sys.exit(f"{type(error).__name__}: {error}{details}")


def _close_options(error: OmegaConfBaseException) -> str:
    """Options beside one that is not there."""
    if not isinstance(error.parent_node, DictConfig):
        return ""
    return did_you_mean(str(error.key), map(str, error.parent_node)).replace(" ", "\n", 1)


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
