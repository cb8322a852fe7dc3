# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Hints for mistyped names, and a guard against sizes that no machine could hold."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

__all__ = ["check_memory", "did_you_mean"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The sentence of an error that offers the known names closest to a mistyped one; empty if none is close.

    Examples:
        >>> did_you_mean("hoper", ["hopper", "walker2d"])
        ' Did you mean hopper?'
    """
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {', '.join(close)}?" if close else ""


def check_memory(size: int, what: str) -> None:
    """Raises a ``ValueError`` if ``size`` bytes are more than this machine has."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > available:
        raise ValueError(
            f"{what} would take about {size / 2**30:.0f} GiB of memory; this machine has {available / 2**30:.0f} GiB."
        )
