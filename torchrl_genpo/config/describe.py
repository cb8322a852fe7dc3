# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the schema says of each option: for the documentation and for hints in errors."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo

__all__ = [
    "Option",
    "alternatives",
    "default_values",
    "describe_type",
    "members",
    "options_of",
    "options_table",
    "section_at",
]

BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}
MISSING = "???"
"""What Hydra writes for a value that has to be given."""


@dataclass(frozen=True)
class Option:
    """One option of the command line.

    Attributes:
        name (str): its dotted name.
        choice (str): the alternative of a section that has it, such as ``solver=two_step``; empty where all have it.
        type (str): what it may be, with its bounds.
        default (Any): the default; ``???`` where there is none.
        description (str): what it is for.
    """

    name: str
    choice: str
    type: str
    default: Any
    description: str


def alternatives(annotation: Any) -> dict[str, type[BaseModel]]:
    """The sections that a field may hold, by the name that chooses one; a single one has the name ``""``.

    Args:
        annotation (Any): of a field of the schema.
    """
    found: dict[str, type[BaseModel]] = {}
    for tag, kind in members(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found[tag] = kind
    return found


def members(annotation: Any, tag: str = "") -> Iterator[tuple[str, Any]]:
    """The types that an annotation allows, each with its tag: both of ``int | None``, all alternatives of a union."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        kind, *metadata = typing.get_args(annotation)
        tags = [item.tag for item in metadata if isinstance(item, Tag)]
        yield from members(kind, tags[0] if tags else tag)
    elif origin in (typing.Union, types.UnionType):
        for kind in typing.get_args(annotation):
            yield from members(kind, tag)
    else:
        yield tag, annotation


def default_values(model: type[BaseModel]) -> dict[str, Any]:
    """The defaults of a section as plain nested values, ``???`` where there is none."""
    return {name: _default(field) for name, field in model.model_fields.items()}


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return MISSING
    value = field.get_default(call_default_factory=True, validated_data={})
    sections = alternatives(field.annotation)
    if isinstance(value, BaseModel):
        return default_values(type(value)) if set(sections) == {""} else value.model_dump(exclude_none=False)
    return list(value) if isinstance(value, tuple) else value


def options_of(model: type[BaseModel], prefix: str = "", choice: str = "") -> Iterator[Option]:
    """Every option of a schema, those of all alternatives of a section one after the other.

    Examples:
        >>> from torchrl_genpo.config.schema import TrainOptions
        >>> next(option.type for option in options_of(TrainOptions) if option.name == "loss.gamma")
        'number, 0 to 1'
    """
    schemas = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        full = f"{prefix}{name}"
        sections = alternatives(field.annotation)
        if sections:
            for tag, section in sections.items():
                yield from options_of(section, f"{full}.", f"{full}={tag}" if tag else choice)
        else:
            text, default = describe_type(schemas[name]), _default(field)
            if default is None and not text.endswith("null"):
                text += ", or null"
            yield Option(full, choice, text, default, field.description or "")


def describe_type(schema: Mapping[str, Any]) -> str:
    """What a value may be, in words, from its JSON schema.

    Examples:
        >>> describe_type({"type": "integer", "minimum": 1, "maximum": 100})
        'integer, 1 to 100'
    """
    if "anyOf" in schema:
        kinds = [describe_type(kind) for kind in schema["anyOf"]]
        return " or ".join(kinds[:-1]) + (", or null" if kinds[-1] == "null" else f" or {kinds[-1]}")
    if allowed := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{value}`" for value in allowed)
    words = {"boolean": "true or false", "string": "text", "object": "mapping"}.get(schema["type"], schema["type"])
    if words == "array":
        items = schema["items"]
        return "list of " + (describe_type(items) if "enum" in items else describe_type({"type": items["type"]}) + "s")
    bounds = [f"{word} {schema[key]:.10g}" for key, word in BOUNDS.items() if key in schema]
    if {"minimum", "maximum"} <= schema.keys():
        bounds = [f"{schema['minimum']:.10g} to {schema['maximum']:.10g}"]
    text = f"{words}, {' and '.join(bounds)}" if bounds else words
    return f"{text}, a multiple of {schema['multipleOf']}" if "multipleOf" in schema else text


def section_at(model: type[BaseModel], location: typing.Sequence[int | str]) -> tuple[str, type[BaseModel] | None]:
    """The option that an error of pydantic's is about.

    Args:
        model (type): the schema.
        location (sequence): where pydantic found the error, the tags of alternatives included.

    Returns:
        The option's dotted name without tags and indices, keys of mappings included, and the section that has it.
    """
    names: list[str] = []
    section: type[BaseModel] | None = model
    owner: type[BaseModel] | None = model
    choices: dict[str, type[BaseModel]] = {}
    is_mapping = False
    for part in location:
        if section is not None:
            names.append(str(part))
            owner = section
            field = section.model_fields.get(str(part))
            choices = {} if field is None else alternatives(field.annotation)
            section = choices.get("")
            is_mapping = field is not None and any(
                typing.get_origin(kind) is dict for _, kind in members(field.annotation)
            )
        elif is_mapping:
            names.append(str(part))
            is_mapping = False
        elif part in choices:
            section = choices[str(part)]
    return ".".join(names), owner


def options_table(model: type[BaseModel]) -> str:
    """All options as tables in Markdown, one for each section and alternative.

    Args:
        model (type): ``TrainOptions`` or ``PretrainOptions``.
    """
    lines: list[str] = []
    heading = None
    for option in options_of(model):
        section = option.choice or option.name.partition(".")[0] if "." in option.name else ""
        if section != heading:
            heading = section
            lines += ["", f"### {f'`{section}`' if section else 'The run'}", ""] if lines or section else []
            lines += ["| option | values | default | what it is for |", "| --- | --- | --- | --- |"]
        default = "null" if option.default is None else str(option.default).replace("|", "\\|")
        default = default.lower() if isinstance(option.default, bool) else default
        lines.append(f"| `{option.name}` | {option.type} | `{default}` | {option.description} |")
    return "\n".join(lines).strip() + "\n"
