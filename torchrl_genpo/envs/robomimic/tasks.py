# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Two dual-arm tasks of boxes, in the manner of DexMimicGen's Threading and Box Cleanup, for two Pandas.

DexMimicGen is under a non-commercial licence and is not installed with this package. These tasks stand in for its: they
ask for the same kind of coordination, with bodies, sizes and code of their own, and two-finger grippers where it has
Inspire hands. **Success on one says nothing about the other.** With DexMimicGen installed the same names give the
originals. Importing this module registers them with robosuite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from robosuite.environments.manipulation.two_arm_env import TwoArmEnv
from robosuite.models.arenas import TableArena
from robosuite.models.objects import CompositeObject
from robosuite.models.tasks import ManipulationTask
from robosuite.utils.observables import Observable, sensor
from robosuite.utils.placement_samplers import SequentialCompositeSampler, UniformRandomSampler
from robosuite.utils.transform_utils import convert_quat, quat2mat

__all__ = ["PrimitiveTwoArmBoxCleanup", "PrimitiveTwoArmThreading"]

TABLE_SIZE = (0.8, 1.2, 0.05)
TABLE_TOP = np.array((0.0, 0.0, 0.8))
Part = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float, float]]


def _body(name: str, parts: list[Part], density: float, height: float) -> CompositeObject:
    """Makes a body of boxes, given by half sizes, centres from the middle of the body (m) and colours.

    ``height`` is half the height of the body.
    """
    extent = np.max([np.abs(center) + np.array(half) for half, center, _ in parts], axis=0)
    extent[2] = height
    return CompositeObject(
        name=name,
        total_size=extent,
        geom_types=["box"] * len(parts),
        geom_sizes=[half for half, _, _ in parts],
        geom_locations=[center for _, center, _ in parts],
        geom_rgbas=[color for _, _, color in parts],
        geom_frictions=[(1.0, 0.005, 0.0001)] * len(parts),
        density=density,
        locations_relative_to_center=True,
        obj_types="all",
        joints="default",
    )


class _TwoPandas(TwoArmEnv):
    """Puts two arms side by side at a table, and some bodies on it; success is the reward."""

    PLACEMENTS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]]
    """For each body the ranges of x and y (m, from the middle of the table) and of the rotation about z (rad)."""

    def __init__(self, robots: Any, env_configuration: str = "parallel", reward_shaping: bool = False, **kwargs: Any):
        if reward_shaping:
            raise ValueError("The reward of this task is its success alone; use reward_shaping=false.")
        kwargs.pop("use_object_obs", None)
        super().__init__(robots, env_configuration=env_configuration, base_types="default", **kwargs)

    def make_bodies(self) -> list[CompositeObject]:
        """Makes the bodies, in the order of the observation."""
        raise NotImplementedError

    def reward(self, action: Any = None) -> float:
        """Returns 1 while the task is solved."""
        return float(self._check_success())

    def _load_model(self) -> None:
        super()._load_model()
        for robot, side in zip(self.robots, (-0.3, 0.3), strict=True):
            base = np.array(robot.robot_model.base_xpos_offset["table"](TABLE_SIZE[0]))
            robot.robot_model.set_base_xpos(base + np.array((0, side, 0)))
        arena = TableArena(table_full_size=TABLE_SIZE, table_offset=TABLE_TOP)
        arena.set_origin([0, 0, 0])
        self.bodies = self.make_bodies()
        if self.__dict__.get("placement_initializer") is None:
            self.placement_initializer = SequentialCompositeSampler(name="ObjectSampler")
            for name, (x_range, y_range, rotation) in self.PLACEMENTS.items():
                sampler = UniformRandomSampler(
                    name=name,
                    x_range=x_range,
                    y_range=y_range,
                    rotation=rotation,
                    rotation_axis="z",
                    ensure_object_boundary_in_range=False,
                    ensure_valid_placement=False,  # the ranges are apart
                    reference_pos=TABLE_TOP,
                    rng=self.rng,
                )
                self.placement_initializer.append_sampler(sampler)
        self.placement_initializer.reset()
        for body in self.bodies:
            self.placement_initializer.add_objects_to_sampler(sampler_name=body.name, mujoco_objects=body)
        self.model = ManipulationTask(
            mujoco_arena=arena,
            mujoco_robots=[robot.robot_model for robot in self.robots],
            mujoco_objects=self.bodies,
        )

    def _setup_references(self) -> None:
        super()._setup_references()
        self._body_ids = {body.name: self.sim.model.body_name2id(body.root_body) for body in self.bodies}

    def position(self, name: str) -> np.ndarray:
        """Returns the position of the middle of a body, m."""
        return np.array(self.sim.data.body_xpos[self._body_ids[name]])

    def quaternion(self, name: str) -> np.ndarray:
        """Returns the orientation of a body, x y z w."""
        return convert_quat(np.array(self.sim.data.body_xquat[self._body_ids[name]]), to="xyzw")

    def point(self, name: str, offset: Any) -> np.ndarray:
        """Returns where a point of a body, given in its own frame, is in the world, m."""
        return self.position(name) + quat2mat(self.quaternion(name)) @ np.asarray(offset)

    def local(self, name: str, point: Any) -> np.ndarray:
        """Returns where a point of the world is in the frame of a body, m."""
        return quat2mat(self.quaternion(name)).T @ (np.asarray(point) - self.position(name))

    def _setup_observables(self) -> Any:
        observables = super()._setup_observables()
        for body in self.bodies:
            for kind, read in (("pos", self.position), ("quat", self.quaternion)):
                observable = f"{body.name}_{kind}"

                def value(obs_cache: Any, read: Any = read, name: str = body.name) -> np.ndarray:
                    return read(name)

                value.__name__ = observable
                observables[observable] = Observable(
                    name=observable, sensor=sensor(modality="object")(value), sampling_rate=self.control_freq
                )
        return observables

    def _reset_internal(self) -> None:
        super()._reset_internal()
        if not self.deterministic_reset:
            for position, quaternion, body in self.placement_initializer.sample().values():
                self.sim.data.set_joint_qpos(body.joints[0], np.concatenate([position, quaternion]))


class PrimitiveTwoArmThreading(_TwoPandas):
    """Has one arm steady a stand with a ring, and the other thread a needle through it.

    The task is solved when the needle's tip is 1 cm or more behind the ring and inside of it.
    """

    RING = np.array((0.0, 0.0, 0.09))  # its middle in the stand's frame; its axis is x
    HOLE = 0.022  # half its width
    TIP = np.array((0.09, 0.0, 0.0))  # in the needle's frame
    GRIP = np.array((0.0, 0.22, -0.03))  # where the stand is held, in its frame; the hands are 20 cm wide
    PLACEMENTS = {  # noqa: RUF012
        "needle": ((-0.16, -0.10), (-0.14, -0.06), (-0.1, 0.1)),
        "stand": ((0.06, 0.10), (-0.04, 0.02), (-0.1, 0.1)),
    }

    def make_bodies(self) -> list[CompositeObject]:
        """Makes the needle (a handle and a pin) and the stand (base, post, ring of four bars, grip)."""
        steel, red, grey = (0.7, 0.7, 0.75, 1.0), (0.8, 0.2, 0.2, 1.0), (0.3, 0.3, 0.35, 1.0)
        needle: list[Part] = [
            ((0.03, 0.012, 0.015), (-0.03, 0, 0), red),
            ((0.045, 0.003, 0.003), (0.045, 0, 0), steel),
        ]
        low, bar, height = -0.11, 0.006, self.RING[2]
        edge = self.HOLE + bar
        stand: list[Part] = [
            ((0.06, 0.06, 0.01), (0, 0, low), grey),
            ((0.008, 0.008, 0.08), (0, 0, low + 0.09), grey),
            ((bar, edge + bar, bar), (0, 0, height - edge), red),
            ((bar, edge + bar, bar), (0, 0, height + edge), red),
            ((bar, bar, edge + bar), (0, -edge, height), red),
            ((bar, bar, edge + bar), (0, edge, height), red),
            ((0.01, 0.08, 0.01), (0, 0.14, low), grey),
            ((0.02, 0.012, 0.05), (0, 0.22, low + 0.06), grey),
        ]
        return [_body("needle", needle, 400.0, 0.015), _body("stand", stand, 400.0, 0.12)]

    def _check_success(self) -> bool:
        tip = self.local("stand", self.point("needle", self.TIP)) - self.RING
        return bool(tip[0] > 0.01 and np.abs(tip[1:]).max() < self.HOLE)


class PrimitiveTwoArmBoxCleanup(_TwoPandas):
    """Has one arm steady a box, and the other take the lid by its knob and put it on.

    The task is solved when the lid lies on the box, level and at most 2 cm from its middle.
    """

    LID_HEIGHT = 0.065  # the height of a lid that lies on the box, from middle to middle
    KNOB = np.array((0.0, 0.0, 0.015))  # where the lid is held, in its frame
    GRIP = np.array((0.0, 0.25, 0.015))  # where the box is held, in its frame; the hands are 20 cm wide
    PLACEMENTS = {  # noqa: RUF012
        "lid": ((-0.10, -0.04), (-0.24, -0.16), (-0.1, 0.1)),
        "box": ((0.0, 0.06), (-0.02, 0.04), (-0.1, 0.1)),
    }

    def make_bodies(self) -> list[CompositeObject]:
        """Makes the lid (a plate and a knob) and the box (floor, four walls, grip)."""
        blue, white, dark = (0.2, 0.35, 0.7, 1.0), (0.85, 0.85, 0.85, 1.0), (0.2, 0.2, 0.25, 1.0)
        lid: list[Part] = [
            ((0.075, 0.075, 0.005), (0, 0, -0.015), white),
            ((0.012, 0.012, 0.018), (0, 0, 0.008), dark),
        ]
        wall, half, height = 0.005, 0.075, 0.045
        box: list[Part] = [
            ((half, half, wall), (0, 0, -height + wall), blue),
            ((wall, half, height), (-half + wall, 0, 0), blue),
            ((wall, half, height), (half - wall, 0, 0), blue),
            ((half, wall, height), (0, -half + wall, 0), blue),
            ((half, wall, height), (0, half - wall, 0), blue),
            ((0.01, 0.09, 0.008), (0, half + 0.09, -height + 0.008), dark),
            ((0.02, 0.012, 0.045), (0, 0.25, 0), dark),
        ]
        return [_body("lid", lid, 200.0, 0.026), _body("box", box, 600.0, 0.045)]

    def _check_success(self) -> bool:
        offset = self.local("box", self.position("lid"))
        upright = quat2mat(self.quaternion("lid"))[2, 2]
        on_top = abs(offset[2] - self.LID_HEIGHT) < 0.004
        return bool(on_top and np.abs(offset[:2]).max() < 0.02 and upright > 0.98)
