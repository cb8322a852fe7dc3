# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The hand's joints and the numbers that a model of the XHand over a nut is made of."""

from __future__ import annotations

import functools
import json
import math
from importlib.resources import files
from typing import Any, Literal

import numpy as np

from torchrl_genpo.config.fields import NonNegative, Options, Positive
from torchrl_genpo.envs.xhand.nuts import NutName
from torchrl_genpo.envs.xhand.settings import Point

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
"""The joints of thumb, index and middle finger, which turn the nut."""

FINGERS = {"thumb": "thumb_rota2", "index": "index_2", "mid": "mid_2", "ring": "ring_2", "pinky": "pinky_2"}
"""The fingers, with the joints of their last links."""

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
"""Joint angles before the grasp, rad; every other joint is straight. The search that found them is in
``tests/envs/xhand/test_model.py``.

It is DexScrew's start pose, opened: there index and middle finger would penetrate each other, and all of them a nut of
38 mm, by up to 6.6 mm.
"""


class Scene(Options):
    """Holds everything that a model is made of. Lengths are in m, angles in rad, torques in N m.

    Attributes:
        side (str): ``right``, or ``left`` for its mirror image.
        nut (str): a name from :data:`~torchrl_genpo.envs.xhand.NUTS`.
        index_bend_sign (int): ``-1`` for a hand whose ``index_bend`` turns the other way than the maker's URDF says,
            as DexScrew's left hand does.
        turning (int, optional): the direction of the nut's joint seen from above, ``1`` for counter-clockwise, which
            loosens. Defaults to that of the right hand, and its mirror image for the left.
        nut_position (tuple): the position of the nut's axis in the plane, from the origin of the (right) palm.
        hand_height (float): the height of the palm's origin above the floor.
        tilt (float): the angle of the palm out of the horizontal.
        nut_height (float): the height of the nut's centre above the floor.
        bolt_radius (float): the radius of the bolt.
        nut_scale (float): the factor of the nut's width.
        nut_mass (float): the mass of the nut, kg.
        nut_center (tuple): the centre of the nut's mass, from its axis.
        nut_friction (float): the dry friction of the thread.
        nut_damping (float): the viscous friction of the thread, N m s.
        nut_armature (float): the added inertia of the thread, kg m^2, which keeps light nuts stable at 5 ms.
        thread_pitch (float, optional): the rise of the nut in a turn; without one it stays at its height.
        friction (float): the sliding friction of every contact.
        stiffness (float): the stiffness of the joints' position control, N m / rad.
        damping (float): the damping of the joints' position control, N m s / rad.
        joint_damping (float): the damping of the gears, N m s / rad. Without it the joints would ring at 55 rad/s, with
            a tenth of critical damping.
        joint_friction (float): the dry friction of the gears.
        joint_armature (float): the inertia of the motors at the joints, kg m^2.
        timestep (float): the time step of the physics, s.
        cone (str): the cone of friction, ``pyramidal`` or ``elliptic``.
    """

    side: Literal["right", "left"] = "right"
    nut: NutName = "hexagon"
    index_bend_sign: Literal[1, -1] = 1
    turning: Literal[1, -1] | None = None
    nut_position: Point = (0.02125, 0.06375)
    hand_height: Positive = 0.21
    tilt: float = math.radians(25)
    nut_height: Positive = 0.063
    bolt_radius: Positive = 0.01
    nut_scale: Positive = 1.0
    nut_mass: Positive = 0.05
    nut_center: Point = (0.0, 0.0)
    nut_friction: NonNegative = 0.02
    nut_damping: NonNegative = 3e-3
    nut_armature: NonNegative = 2e-4
    thread_pitch: float | None = None
    friction: NonNegative = 1.5
    stiffness: NonNegative = 3.0
    damping: NonNegative = 0.01
    joint_damping: NonNegative = 0.05
    joint_friction: NonNegative = 0.01
    joint_armature: NonNegative = 0.001
    timestep: Positive = 0.005
    cone: Literal["pyramidal", "elliptic"] = "pyramidal"

    @property
    def mirror(self) -> int:
        """The sign of what the left hand mirrors: ``1`` for the right hand, ``-1`` for the left."""
        return 1 if self.side == "right" else -1

    def start_pose(self) -> np.ndarray:
        """Returns the joint angles ``[12]`` before the grasp, which clear every nut in every position."""
        pose = START_POSE | {"index_bend": START_POSE["index_bend"] * self.index_bend_sign}
        return np.array([pose.get(name, 0.0) for name in JOINTS])


@functools.cache
def facts(side: str) -> dict[str, Any]:
    """Reads the maker's numbers of a hand from ``xhand.json``."""
    return json.loads(files("torchrl_genpo.envs.xhand").joinpath("xhand.json").read_text())[side]


def joint_limits(side: str = "right") -> np.ndarray:
    """Returns the lower and upper limits of the joints, ``[2, 12]``, rad.

    Examples:
        >>> joint_limits()[:, 0].tolist()
        [0.0, 1.83]
    """
    return np.array([facts(side)["joints"][name]["limits"] for name in JOINTS]).T
