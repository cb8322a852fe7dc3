# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Hints for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The sentence of an error that offers the known names closest to a mistyped one; empty if none is close.

    Examples:
        >>> did_you_mean("hoper", ["hopper", "walker2d"])
        ' Did you mean hopper?'
    """
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {', '.join(close)}?" if close else ""
