# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Options as nested mappings, in which dotted names find their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["merged", "select_option", "set_option"]


def merged(old: Any, new: Any) -> Any:
    """``old`` with the values of ``new``, section by section.

    Examples:
        >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
        {'a': {'b': 3, 'c': 2}}
    """
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    return {**old, **{name: merged(old.get(name), value) for name, value in new.items()}}


def select_option(config: Any, name: str) -> Any:
    """An option by its dotted name; ``None`` where there is none.

    Examples:
        >>> select_option({"a": {"b": 1}}, "a.b"), select_option({"a": 1}, "a.b")
        (1, None)
    """
    for key in name.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def set_option(config: dict[str, Any], name: str, value: Any) -> None:
    """Sets an option by its dotted name, in place; sections that are missing are made.

    Raises:
        ValueError: if a part of the name is an option and no section.

    Examples:
        >>> config = {"a": {"b": 1}}
        >>> set_option(config, "a.c", 2)
        >>> config
        {'a': {'b': 1, 'c': 2}}
    """
    *parents, key = name.split(".")
    section: Any = config
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise ValueError(f"{name}={value}: {parent} is no section of options.")
    section[key] = value
