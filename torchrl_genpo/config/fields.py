# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The types that options are declared with: strict numbers with bounds, texts and sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = [
    "FOLLOWS",
    "Activation",
    "AnySizes",
    "Fraction",
    "Large",
    "NonNegative",
    "Options",
    "Positive",
    "Sizes",
    "Text",
    "Texts",
    "chosen_by",
]


class Options(BaseModel):
    """A section of options: it refuses unknown names, numbers that are not finite, and values of another type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def _without_zero_byte(value: str) -> str:
    if "\0" in value:
        raise ValueError("the text must not contain a zero byte")
    return value


Text: TypeAlias = Annotated[str, Field(min_length=1), AfterValidator(_without_zero_byte)]
"""A name or a path."""

Texts: TypeAlias = Annotated[tuple[Text, ...], Field(min_length=1, strict=False)]
"""A list of names."""

Large: TypeAlias = Annotated[int, Field(ge=1, le=10**12)]
"""A count of frames or iterations, at most 1e12 lest a slip of the keyboard run for ever."""

Positive: TypeAlias = Annotated[float, Field(gt=0, le=1e6)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0, le=1e6)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]

AnySizes: TypeAlias = Annotated[tuple[Annotated[int, Field(ge=1, le=2**14)], ...], Field(max_length=100, strict=False)]
"""The widths of the layers of a network that may have none."""

Sizes: TypeAlias = Annotated[AnySizes, Field(min_length=1)]
"""The widths of the layers of a network."""

Activation: TypeAlias = Literal["elu", "mish", "relu", "silu", "tanh"]


FOLLOWS: Any = None
"""The default of a number that follows from other options, which ``derive`` fills in before the schema checks it."""


def chosen_by(key: str, default: str) -> Callable[[Any], Any]:
    """Says which alternative of a section is meant: the one that ``key`` names, or the default where it is absent."""

    def choose(value: Any) -> Any:
        return value.get(key, default) if isinstance(value, Mapping) else getattr(value, key, default)

    return choose
