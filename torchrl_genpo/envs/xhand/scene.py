# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What a model of the XHand over a nut is made of: the hand's joints, and the numbers of a scene."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np

from torchrl_genpo.config.checks import did_you_mean
from torchrl_genpo.envs.xhand.nuts import NUTS

__all__ = ["ACTIVE_JOINTS", "FINGERS", "JOINTS", "START_POSE", "Scene", "facts", "joint_limits"]

JOINTS = (
    "thumb_bend",
    "thumb_rota1",
    "thumb_rota2",
    "index_bend",
    "index_1",
    "index_2",
    "mid_1",
    "mid_2",
    "ring_1",
    "ring_2",
    "pinky_1",
    "pinky_2",
)
"""The twelve joints in the order of the maker's SDK; also the first twelve joints and the actuators of the model."""

ACTIVE_JOINTS = JOINTS[:8]
"""Of thumb, index and middle finger, which turn the nut."""

FINGERS = {"thumb": "thumb_rota2", "index": "index_2", "mid": "mid_2", "ring": "ring_2", "pinky": "pinky_2"}
"""The fingers and the joint of their last links."""

START_POSE = {
    "thumb_bend": 1.3,
    "thumb_rota1": 0.47,
    "thumb_rota2": 0.45,
    "index_bend": 0.03,
    "index_1": 0.94,
    "index_2": 0.4,
    "mid_1": 1.0,
    "mid_2": 0.4,
}
"""Joint angles before the grasp, rad; every other joint is straight. ``model.find_start_pose`` found them.

DexScrew's own, with which index and middle finger would penetrate each other, and all a nut of 38 mm, by up to 6.6 mm:
opened until they do not.
"""


@dataclass(frozen=True)
class Scene:
    """Everything that a model is made of. Lengths in m, angles in rad, torques in N m.

    Attributes:
        side (str): ``right``, or ``left`` for its mirror image.
        nut (str): a name from :data:`~torchrl_genpo.envs.xhand.NUTS`.
        index_bend_sign (int): ``-1`` for a hand whose ``index_bend`` turns the other way than the maker's URDF says,
            as DexScrew's left hand does.
        turning (int): direction of the nut's joint seen from above, ``1`` for counter-clockwise, which loosens; the
            mirror image for the left hand unless given.
        nut_position (tuple): of the nut's axis, in the plane, from the origin of the (right) palm.
        hand_height (float): of the palm's origin above the floor.
        tilt (float): of the palm out of the horizontal.
        nut_height (float): of the centre of the nut above the floor.
        bolt_radius (float): of the bolt.
        nut_scale (float): factor of the nut's width.
        nut_mass (float): kg.
        nut_center (tuple): of the nut's mass, from its axis.
        nut_friction (float): dry friction of the thread.
        nut_damping (float): viscous friction of the thread, N m s.
        nut_armature (float): added inertia of the thread, kg m^2; what keeps light nuts stable at 5 ms.
        thread_pitch (float, optional): rise of the nut a turn; without one it stays at its height.
        friction (float): sliding friction of every contact.
        stiffness (float): of the joints' position control, N m / rad.
        damping (float): of the joints' position control, N m s / rad.
        joint_damping (float): of the gears. Without it the joints would ring at 55 rad/s, a tenth of critically damped.
        joint_friction (float): dry friction of the gears.
        joint_armature (float): inertia of the motors at the joints, kg m^2.
        timestep (float): s.
        cone (str): of friction, ``pyramidal`` or ``elliptic``.
    """

    side: str = "right"
    nut: str = "hexagon"
    index_bend_sign: int = 1
    turning: int | None = None
    nut_position: tuple[float, float] = (0.02125, 0.06375)
    hand_height: float = 0.21
    tilt: float = math.radians(25)
    nut_height: float = 0.063
    bolt_radius: float = 0.01
    nut_scale: float = 1.0
    nut_mass: float = 0.05
    nut_center: tuple[float, float] = (0.0, 0.0)
    nut_friction: float = 0.02
    nut_damping: float = 3e-3
    nut_armature: float = 2e-4
    thread_pitch: float | None = None
    friction: float = 1.5
    stiffness: float = 3.0
    damping: float = 0.01
    joint_damping: float = 0.05
    joint_friction: float = 0.01
    joint_armature: float = 0.001
    timestep: float = 0.005
    cone: str = "pyramidal"
    mirror: int = field(init=False, repr=False, default=1)

    def __post_init__(self) -> None:
        if self.side not in ("left", "right"):
            raise ValueError(f"side must be 'left' or 'right', got {self.side!r}.")
        if self.nut not in NUTS:
            raise ValueError(f"Unknown nut {self.nut!r}.{did_you_mean(self.nut, NUTS)} Nuts: {', '.join(NUTS)}.")
        if self.index_bend_sign not in (-1, 1):
            raise ValueError(f"index_bend_sign must be 1 or -1, got {self.index_bend_sign}.")
        if self.cone not in ("elliptic", "pyramidal"):
            raise ValueError(f"cone must be 'pyramidal' or 'elliptic', got {self.cone!r}.")
        object.__setattr__(self, "mirror", 1 if self.side == "right" else -1)

    def start_pose(self) -> np.ndarray:
        """Joint angles ``[12]`` before the grasp; they clear every nut in every position."""
        pose = START_POSE | {"index_bend": START_POSE["index_bend"] * self.index_bend_sign}
        return np.array([pose.get(name, 0.0) for name in JOINTS])


@functools.cache
def facts(side: str) -> dict[str, Any]:
    """The maker's numbers of a hand: ``xhand.json``."""
    return json.loads(files("torchrl_genpo.envs.xhand").joinpath("xhand.json").read_text())[side]


def joint_limits(side: str = "right") -> np.ndarray:
    """Lower and upper limits of the joints, ``[2, 12]``, rad.

    Examples:
        >>> joint_limits()[:, 0].tolist()
        [0.0, 1.83]
    """
    return np.array([facts(side)["joints"][name]["limits"] for name in JOINTS]).T
