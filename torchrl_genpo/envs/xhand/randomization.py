# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The randomisation of the nut-bolt task: what differs from episode to episode."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from torchrl_genpo.config.fields import NonNegative, Options
from torchrl_genpo.envs.xhand.scene import Scene
from torchrl_genpo.envs.xhand.settings import NonNegativeRange, Range

__all__ = ["Randomization"]

OFFSETS = ("nut_center", "nut_position")  # are added to what the scene has; other ranges replace it
APART = ("start_pose", "nut_angle")  # belong to the start of an episode, not to the scene


class Randomization(Options):
    """Holds the ranges from which every reset draws uniformly, and the strengths of noise, in units of :class:`Scene`.

    Most follow DexScrew (arXiv 2512.02011). Its contact friction, up to 8, is cut to what rubber on plastic can have,
    and the thread's dry friction is added.

    Attributes:
        friction, nut_friction, nut_damping, nut_mass, nut_scale, stiffness, damping, tilt, hand_height (tuple): the
            ranges of the values that :class:`Scene` has under these names.
        nut_center (tuple): the range of the offset of the nut's mass in x and in y.
        nut_position (tuple): the range of the offset of the nut's axis in x and in y.
        start_pose (tuple): the range of the offset of every joint from the start pose.
        nut_angle (tuple): the range of the nut's angle at the start.
        joint_bias, joint_noise (float): the standard deviations of the sensors' error, per episode and per step.
        target_bias, target_noise (float): the same for the targets that the joints get.
        action_delay (int): the longest delay of an action in steps; all delays up to it are equally likely.
        push_probability (float): the probability of a push on the nut in a step.
        push_force (float): the standard deviation of a push at the nut's rim, N / kg.

    Examples:
        >>> Randomization(friction=(1.0, 2.0)).names[:3]
        ['friction', 'nut_friction', 'nut_damping']
        >>> Randomization.none().nut_mass
        (0.05, 0.05)
    """

    friction: NonNegativeRange = (0.5, 2.5)
    nut_friction: NonNegativeRange = (0.01, 0.1)
    nut_damping: NonNegativeRange = (2e-3, 4e-3)
    nut_mass: NonNegativeRange = (0.04, 0.06)
    nut_scale: NonNegativeRange = (0.95, 1.05)
    stiffness: NonNegativeRange = (2.7, 3.3)
    damping: NonNegativeRange = (0.009, 0.011)
    tilt: Range = (math.radians(23), math.radians(27))
    hand_height: NonNegativeRange = (0.208, 0.212)
    nut_center: Range = (-0.001, 0.001)
    nut_position: Range = (-0.00375, 0.00375)
    start_pose: Range = (-0.02, 0.02)
    nut_angle: Range = (0.0, 2 * math.pi)
    joint_bias: NonNegative = 0.01
    joint_noise: NonNegative = 0.005
    target_bias: NonNegative = 0.01
    target_noise: NonNegative = 0.005
    action_delay: Annotated[int, Field(strict=True, ge=0)] = 1
    push_probability: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.25
    push_force: NonNegative = 2.0

    @classmethod
    def none(cls, scene: Scene | None = None) -> Randomization:
        """Makes every episode as ``scene`` says, without noise, delay or pushes."""
        scene = Scene() if scene is None else scene
        fixed: dict[str, Any] = {}
        for name, field in cls.model_fields.items():
            if name in Scene.model_fields and name not in OFFSETS:
                fixed[name] = (getattr(scene, name),) * 2
            else:
                fixed[name] = (0.0, 0.0) if _is_range(field) else 0
        return cls(**fixed)

    @property
    def names(self) -> list[str]:
        """The names of the columns that :meth:`draw` draws for the scene."""
        fields = type(self).model_fields.items()
        names = [name for name, field in fields if _is_range(field) and name not in APART]
        return [column for name in names for column in ([f"{name}_x", f"{name}_y"] if name in OFFSETS else [name])]

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        """Draws ``[number, len(names)]`` values of the scene."""
        ranges = torch.tensor([getattr(self, name.removesuffix("_x").removesuffix("_y")) for name in self.names])
        return _uniform((number, len(ranges)), ranges, generator)

    def draw_start(self, number: int, joints: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws offsets of the joints ``[number, joints]`` and angles of the nut ``[number]``."""
        poses = _uniform((number, joints), torch.tensor(self.start_pose), generator)
        return poses, _uniform((number,), torch.tensor(self.nut_angle), generator)

    def apply(self, scene: Scene, drawn: Tensor) -> Scene:
        """Returns the scene with one row of drawn values."""
        values: dict[str, Any] = dict(zip(self.names, drawn.tolist(), strict=True))
        for name in OFFSETS:
            offset = values.pop(f"{name}_x"), values.pop(f"{name}_y")
            values[name] = tuple(a + b for a, b in zip(getattr(scene, name), offset, strict=True))
        return scene.model_copy(update=values)


def _is_range(field: Any) -> bool:
    return isinstance(field.default, tuple)


def _uniform(shape: tuple[int, ...], ranges: Tensor, generator: torch.Generator) -> Tensor:
    low, high = ranges.unbind(-1)
    return low + (high - low) * torch.rand(shape, generator=generator)
