# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Nuts of primitive shapes; sizes in metres, estimated from the videos of the real ones (within about 15 %)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from torchrl_genpo.config.checks import did_you_mean

__all__ = ["HELD_OUT_NUTS", "NUTS", "TRAINING_NUTS", "Nut", "NutName", "check_nut"]


@dataclass(frozen=True)
class Nut:
    """Describes a nut, a prism over one of five outlines.

    Attributes:
        shape (str): ``hexagon``, ``square`` (rounded corners), ``round``, ``triangle`` (rounded corners) or ``cross``.
        width (float): the width across flats in m; for ``round`` the diameter, for ``triangle`` twice the distance of a
            side from the centre, for ``cross`` the span.
        rgb (tuple of float): the colour.
        height (float): the height in m.

    Examples:
        >>> [part["size"] for part in NUTS["round"].parts()]
        [[0.018, 0.007, 0.0]]
    """

    shape: Literal["hexagon", "square", "round", "triangle", "cross"]
    width: float
    rgb: tuple[float, float, float]
    height: float = 0.014

    def parts(self, scale: float = 1.0) -> Iterator[dict[str, Any]]:
        """Yields boxes and cylinders that make the nut, as keywords of ``MjsBody.add_geom``; ``scale`` widens them."""
        half, rise = scale * self.width / 2, self.height / 2
        if self.shape == "hexagon":
            for turn in range(3):
                yield _box(half, half / math.sqrt(3), rise, turn * math.pi / 3)
        elif self.shape == "square":  # corners cut at 0.93 of the diagonal, where a radius of 0.24 half widths would
            for size in ((half, 0.76 * half), (0.76 * half, half)):
                yield _box(*size, rise)
            for turn in (1, 3):
                yield _box(0.93 * math.sqrt(2) * half, 0.09 * half, rise, turn * math.pi / 4)
        elif self.shape == "round":
            yield _cylinder(half, rise)
        elif self.shape == "triangle":
            radius = half / 2  # of the corners, whose centres are then a half width from the nut's
            for turn in range(3):
                corner, side = (math.pi * (2 * turn + offset) / 3 for offset in (0, 1))
                yield _cylinder(radius, rise, (half * math.cos(corner), half * math.sin(corner)))
                center = (radius * math.cos(side), radius * math.sin(side))
                yield _box(radius, half * math.sqrt(3) / 2, rise, side, center)
        elif self.shape == "cross":
            for turn in range(2):
                yield _box(half, 0.4 * half, rise, turn * math.pi / 2)


def _box(x: float, y: float, z: float, turn: float = 0.0, center: tuple[float, float] = (0.0, 0.0)) -> dict[str, Any]:
    import mujoco

    quat = [math.cos(turn / 2), 0.0, 0.0, math.sin(turn / 2)]
    return {"type": mujoco.mjtGeom.mjGEOM_BOX, "size": [x, y, z], "pos": [*center, 0.0], "quat": quat}


def _cylinder(radius: float, half_height: float, center: tuple[float, float] = (0.0, 0.0)) -> dict[str, Any]:
    import mujoco

    return {"type": mujoco.mjtGeom.mjGEOM_CYLINDER, "size": [radius, half_height, 0.0], "pos": [*center, 0.0]}


NUTS = {
    "hexagon": Nut("hexagon", 0.038, (0.8, 0.1, 0.1)),
    "square": Nut("square", 0.034, (0.1, 0.2, 0.8)),
    "round": Nut("round", 0.036, (0.95, 0.8, 0.1)),
    "triangle": Nut("triangle", 0.026, (0.9, 0.45, 0.1)),
    "cross": Nut("cross", 0.044, (0.1, 0.6, 0.25)),
}
"""The nuts by name: the red, the blue and the yellow one of the paper, and two that no policy is trained on."""

TRAINING_NUTS = ("hexagon", "square", "round")
HELD_OUT_NUTS = ("triangle", "cross")


def check_nut(name: str) -> str:
    """Returns the name of a nut, and raises a ``ValueError`` if there is none of this name."""
    if name not in NUTS:
        raise ValueError(f"Unknown nut {name!r}.{did_you_mean(name, NUTS)} Nuts: {', '.join(NUTS)}.")
    return name


NutName = Annotated[str, AfterValidator(check_nut)]
"""The type of a nut's name in settings."""
