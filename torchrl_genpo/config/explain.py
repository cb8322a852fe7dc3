# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What pydantic found wrong, in the words of a command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from pydantic import BaseModel, ValidationError

from torchrl_genpo.config.checks import did_you_mean
from torchrl_genpo.config.describe import alternatives, section_at

__all__ = ["explain"]


def explain(error: ValidationError, kind: type[BaseModel], values: Any) -> str:
    """Each value that is wrong on a line of its own: its dotted name, the value, and what it may be.

    Args:
        error (ValidationError): what was found.
        kind (type): the schema.
        values (mapping): what was checked.

    Examples:
        >>> class Camera(BaseModel, extra="forbid"):
        ...     width: int = 640
        >>> try:
        ...     Camera(widht=320)
        ... except ValidationError as error:
        ...     explain(error, Camera, {"widht": 320})
        'widht=320: There is no such option. Did you mean width?'
    """
    return "\n".join(dict.fromkeys(_explained(error, kind, values)))


def _explained(error: ValidationError, kind: type[BaseModel], values: Any, prefix: str = "") -> Iterator[str]:
    found = error.errors(include_url=False)
    in_lists = {details["loc"][:-1] for details in found if details["loc"] and isinstance(details["loc"][-1], int)}
    for details in found:
        if details["type"] == "too_short" and details["loc"] in in_lists:  # pydantic does not count what is wrong
            continue
        name, section = section_at(kind, details["loc"])
        value, why, context = details["input"], details["msg"], details.get("ctx", {})
        if details["loc"] and isinstance(details["loc"][-1], int):  # of a list: show all of it
            value = reduce(_inside, details["loc"], values)
        name = prefix + name
        if details["type"] == "values":  # of a mapping that has a schema of its own
            yield from _explained(context["error"], context["model"], value, f"{name}.")
            continue
        if details["type"] == "value_error":
            why = str(context["error"])
            if not details["loc"] or isinstance(value, Mapping):  # of several options, which it names itself
                yield why if why.endswith(".") else f"{why}."
                continue
        elif details["type"] == "missing":
            yield f"{name} is missing: give it a value."
            continue
        elif details["type"] == "extra_forbidden":
            known = section.model_fields if section is not None else {}
            close = did_you_mean(name.rpartition(".")[2], known)
            why = "There is no such option" + (f".{close}" if close else "")
            if isinstance(value, Mapping):
                yield f"{name}: {why}{'' if close else '.'}"
                continue
        elif details["type"] == "union_tag_invalid":
            key, value = _chooser(kind, name), context["tag"]
            why = f"Input should be {context['expected_tags']}"
            why += did_you_mean(str(value), context["expected_tags"].replace("'", "").split(", ")).replace(" ", ". ", 1)
            name = f"{name}.{key}"
        elif details["type"] in ("model_type", "model_attributes_type", "dict_type"):
            why = f"{name or 'The configuration'} must be a mapping of options"
        elif details["type"] == "literal_error" and isinstance(value, str):
            close = did_you_mean(value, context["expected"].replace(" or ", ", ").replace("'", "").split(", "))
            why += f".{close}" if close else ""
        yield f"{name}={_shown(value)}: {why}{'' if why.endswith(('.', '?')) else '.'}"


def _inside(value: Any, key: int | str) -> Any:
    """A part of a mapping; what lies in a list, or is a tag of pydantic's, has none."""
    return value.get(key, value) if isinstance(value, Mapping) else value


def _chooser(kind: type[BaseModel], group: str) -> str:
    """The option by which an alternative of a group is chosen."""
    section = next(iter(alternatives(kind.model_fields[group].annotation).values()))
    return next(key for key in ("name", "kind", "backend") if key in section.model_fields)


def _shown(value: Any) -> str:
    """A value as a command line has it, not too long."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value!s:.200}"
