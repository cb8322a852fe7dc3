# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Options as a command line has them: whatever their values hold, Hydra reads them back and a shell takes one word."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

__all__ = ["as_override", "as_word"]

PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z_/.][a-z0-9_/.-]*[a-z0-9_/]", re.IGNORECASE | re.ASCII)
"""Texts that Hydra reads as they stand: a name or a path of these letters, and no number."""

INTERPOLATION = re.compile(r"(\\*)\$\{")


def as_override(name: str, value: Any) -> str:
    """An option as Hydra reads it, such as an argument of a process.

    Args:
        name (str): the dotted name of the option.
        value: a text, a number, a truth value, ``None``, or lists and mappings of them; keys are names.

    Examples:
        >>> as_override("resume", "outputs/run"), as_override("resume", "Drive (lab)/seed=1")
        ('resume=outputs/run', 'resume="Drive (lab)/seed=1"')
        >>> as_override("policy.hidden_sizes", [64, 64])
        'policy.hidden_sizes=[64,64]'
    """
    return f"{name}={_text(value)}"


def as_word(name: str, value: Any) -> str:
    """An option as one word of a POSIX shell, to be printed and pasted.

    Examples:
        >>> print(as_word("resume", "outputs/run"), as_word("resume", "Drive (lab)"))
        resume=outputs/run 'resume="Drive (lab)"'
    """
    return shlex.quote(as_override(name, value))


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, (int, float)):
        return repr(value)
    text = str(value)
    if PLAIN.fullmatch(text):
        return text
    escaped = INTERPOLATION.sub(lambda match: 2 * match[1] + r"\${", text)  # OmegaConf would look its name up
    # the shell's quotes are single ones: with double ones inside, the word stays readable
    return QuotedString(escaped, Quote.double).with_quotes()
