# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Types of the task's settings, and how mistakes in them read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, ValidationError

from torchrl_genpo.config.explain import explain
from torchrl_genpo.config.fields import NonNegative, Options

__all__ = ["NonNegativeRange", "Point", "Range", "read_settings"]


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"it must be a lowest and a highest value, got {list(value)}")
    return value


Point = Annotated[tuple[float, float], Field(strict=False)]
Range = Annotated[tuple[float, float], Field(strict=False), AfterValidator(_ordered)]
NonNegativeRange = Annotated[tuple[NonNegative, NonNegative], Field(strict=False), AfterValidator(_ordered)]
S = TypeVar("S", bound=Options)


def read_settings(cls: type[S], values: S | Mapping[str, Any] | None) -> S:
    """Makes settings of a mapping, such as a configuration file has.

    Args:
        cls (type): the class of the settings.
        values (Options or mapping, optional): the values; those that are left out have their defaults.

    Raises:
        ValueError: if a name is unknown or a value is out of bounds; the message names it and what it may be.

    Examples:
        >>> from torchrl_genpo.envs.xhand import Scene
        >>> read_settings(Scene, {"frictoin": 1.0})
        Traceback (most recent call last):
        ValueError: Scene: frictoin=1.0: There is no such option. Did you mean friction, nut_friction, joint_friction?
    """
    if isinstance(values, cls):
        return values
    try:
        return cls.model_validate({} if values is None else values)
    except ValidationError as error:
        raise ValueError(f"{cls.__name__}: {explain(error, cls, values)}") from None
