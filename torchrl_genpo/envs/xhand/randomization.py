# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What differs from episode to episode of the nut-bolt task."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from torchrl_genpo.envs.xhand.scene import Scene

__all__ = ["Randomization"]

Range = tuple[float, float]
OFFSETS = ("nut_center", "nut_position", "start_pose")  # added to what the scene has; other ranges replace it
APART = ("start_pose", "nut_angle")  # not of the scene but of a state


@dataclass(frozen=True)
class Randomization:
    """Ranges that every reset draws from, uniformly, and strengths of noise. Units as in :class:`Scene`.

    Most follow DexScrew (arXiv 2512.02011). Its contact friction, up to 8, is cut to what rubber on plastic can have,
    and the thread's dry friction is added.

    Attributes:
        friction, nut_friction, nut_damping, nut_mass, nut_scale, stiffness, damping, tilt, hand_height (tuple): the
            values of a :class:`Scene` of these names.
        nut_center (tuple): offset of the nut's mass in x and in y.
        nut_position (tuple): offset of the nut's axis in x and in y.
        start_pose (tuple): offset of every joint from the start pose.
        nut_angle (tuple): of the nut at the start.
        joint_bias, joint_noise (float): standard deviations of the sensors' error, per episode and per step.
        target_bias, target_noise (float): the same of the targets that the joints get.
        action_delay (int): steps; from 0 to it are equally likely.
        push_probability (float): of a push on the nut, in a step.
        push_force (float): standard deviation of a push, at the nut's rim, N / kg.

    Examples:
        >>> Randomization(friction=(1.0, 2.0)).names[:3]
        ['friction', 'nut_friction', 'nut_damping']
        >>> Randomization.none().nut_mass
        (0.05, 0.05)
    """

    friction: Range = (0.5, 2.5)
    nut_friction: Range = (0.01, 0.1)
    nut_damping: Range = (2e-3, 4e-3)
    nut_mass: Range = (0.04, 0.06)
    nut_scale: Range = (0.95, 1.05)
    stiffness: Range = (2.7, 3.3)
    damping: Range = (0.009, 0.011)
    tilt: Range = (math.radians(23), math.radians(27))
    hand_height: Range = (0.208, 0.212)
    nut_center: Range = (-0.001, 0.001)
    nut_position: Range = (-0.00375, 0.00375)
    start_pose: Range = (-0.02, 0.02)
    nut_angle: Range = (0.0, 2 * math.pi)
    joint_bias: float = 0.01
    joint_noise: float = 0.005
    target_bias: float = 0.01
    target_noise: float = 0.005
    action_delay: int = 1
    push_probability: float = 0.25
    push_force: float = 2.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if _is_range(field):
                if not (isinstance(value, tuple) and len(value) == 2 and value[0] <= value[1]):
                    raise ValueError(f"{field.name} must be a lowest and a highest value, got {value}.")
                if value[0] < 0 and field.name not in (*OFFSETS, *APART, "tilt"):
                    raise ValueError(f"{field.name} must not be negative, got {value}.")
            elif not value >= 0:
                raise ValueError(f"{field.name} must not be negative, got {value}.")
        if self.push_probability > 1:
            raise ValueError(f"push_probability must be at most 1, got {self.push_probability}.")

    @classmethod
    def none(cls, scene: Scene | None = None) -> Randomization:
        """Every episode as ``scene`` says, without noise, delay or pushes."""
        scene = Scene() if scene is None else scene
        fixed: dict[str, Any] = {}
        for field in fields(cls):
            value = getattr(scene, field.name, 0.0)
            is_absolute = hasattr(scene, field.name) and field.name not in OFFSETS
            fixed[field.name] = ((value, value) if is_absolute else (0.0, 0.0)) if _is_range(field) else 0
        return cls(**fixed)

    @property
    def names(self) -> list[str]:
        """What :meth:`draw` draws of the scene, column by column."""
        names = [field.name for field in fields(self) if _is_range(field) and field.name not in APART]
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
        """The scene with one row of what was drawn."""
        values: dict[str, Any] = dict(zip(self.names, drawn.tolist(), strict=True))
        for name in ("nut_center", "nut_position"):
            offset = values.pop(f"{name}_x"), values.pop(f"{name}_y")
            values[name] = tuple(a + b for a, b in zip(getattr(scene, name), offset, strict=True))
        return replace(scene, **values)


def _is_range(field: Any) -> bool:
    return isinstance(field.default, tuple)


def _uniform(shape: tuple[int, ...], ranges: Tensor, generator: torch.Generator) -> Tensor:
    low, high = ranges.unbind(-1)
    return low + (high - low) * torch.rand(shape, generator=generator)
