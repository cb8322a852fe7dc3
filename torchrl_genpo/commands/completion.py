# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Completion in a shell of the commands that Hydra does not complete. Imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

import shtab

__all__ = ["add_completion"]


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Adds ``--print-completion SHELL``. Call it last: what takes a ``Path`` so far completes as a file or folder."""
    shtab.add_argument_to(parser)
    for action in parser._actions:  # argparse has no public list
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
