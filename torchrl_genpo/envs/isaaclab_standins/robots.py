# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Robots of boxes and spheres under Isaac's names of bodies and joints: masses, sizes and limits are rough."""

from __future__ import annotations

import dataclasses

__all__ = ["Body", "Vector", "anymal_d", "cabinet", "cartpole", "digit", "franka", "g1", "go2", "h1"]

Vector = tuple[float, float, float]
ORIGIN: Vector = (0.0, 0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Body:
    """A rigid body, the primitive that it collides with, and the joint to its parent."""

    name: str
    parent: str | None
    position: Vector  # of its frame, in the robot's, m
    size: float | Vector  # radius of a sphere, or half the edges of a box, m
    mass: float  # kg
    joint: str | None = None  # None is fixed
    axis: str = "Y"
    limits: tuple[float, float] = (-150.0, 150.0)  # degrees; m of a prismatic joint
    center: Vector = ORIGIN  # of mass and shape, in its frame
    prismatic: bool = False
    collides: bool = True


def _mirrored(point: Vector, side: float) -> Vector:
    return (point[0], point[1] * side, point[2])


def _quadruped(
    legs: dict[str, tuple[float, float]],  # name -> (front 1 or hind -1, left 1 or right -1)
    links: tuple[str, str, str, str],  # hip, thigh, shank, foot; {leg} is the name of the leg
    joints: tuple[str, str, str],
    scale: float,  # 1 is ANYmal
    mass: float,
) -> list[Body]:
    def at(*point: float) -> Vector:
        return tuple(value * scale for value in point)  # type: ignore[return-value]

    bodies = [Body("base", None, ORIGIN, at(0.4, 0.15, 0.12), 0.6 * mass)]
    for leg, (front, left) in legs.items():
        hip, thigh, shank, foot = (link.format(leg=leg) for link in links)
        abduct, swing, knee = (joint.format(leg=leg) for joint in joints)
        bodies += [
            Body(hip, "base", at(0.33 * front, 0.12 * left, 0), at(0.05, 0.05, 0.05), 0.04 * mass, abduct, "X"),
            Body(
                thigh,
                hip,
                at(0.39 * front, 0.20 * left, 0),
                at(0.03, 0.03, 0.12),
                0.045 * mass,
                swing,
                center=at(0, 0.08 * left, -0.14),
            ),
            Body(
                shank,
                thigh,
                at(0.39 * front, 0.28 * left, -0.29),
                at(0.02, 0.02, 0.12),
                0.012 * mass,
                knee,
                center=at(0, 0, -0.14),
            ),
            Body(foot, shank, at(0.39 * front, 0.28 * left, -0.60), 0.03 * scale, 0.003 * mass),
        ]
    return bodies


def anymal_d() -> list[Body]:
    legs = {"LF": (1.0, 1.0), "LH": (-1.0, 1.0), "RF": (1.0, -1.0), "RH": (-1.0, -1.0)}
    links = ("{leg}_HIP", "{leg}_THIGH", "{leg}_SHANK", "{leg}_FOOT")
    return _quadruped(legs, links, ("{leg}_HAA", "{leg}_HFE", "{leg}_KFE"), scale=1.0, mass=50.0)


def go2() -> list[Body]:
    legs = {"FL": (1.0, 1.0), "FR": (1.0, -1.0), "RL": (-1.0, 1.0), "RR": (-1.0, -1.0)}
    links = ("{leg}_hip", "{leg}_thigh", "{leg}_calf", "{leg}_foot")
    joints = ("{leg}_hip_joint", "{leg}_thigh_joint", "{leg}_calf_joint")
    return _quadruped(legs, links, joints, scale=0.65, mass=15.0)


Limb = list[tuple[str, Vector, "float | Vector", float, str, Vector]]  # name, position (left), size, mass, axis, center


def _chain(limb: Limb, parent: str, side: str, link: str, joint: str, limits: tuple[float, float]) -> list[Body]:
    """One limb; ``link`` and ``joint`` are the patterns of the names."""
    sign, bodies = (1.0 if side == "left" else -1.0), []
    for name, position, size, mass, axis, center in limb:
        body = Body(
            link.format(side=side, name=name),
            parent,
            _mirrored(position, sign),
            size,
            mass,
            joint.format(side=side, name=name),
            axis,
            limits,
            _mirrored(center, sign),
        )
        bodies.append(body)
        parent = body.name
    return bodies


def h1() -> list[Body]:
    leg: Limb = [
        ("hip_yaw", (0, 0.09, -0.1), (0.04, 0.04, 0.04), 2.2, "Z", ORIGIN),
        ("hip_roll", (0.04, 0.09, -0.1), (0.04, 0.04, 0.04), 2.2, "X", ORIGIN),
        ("hip_pitch", (0.04, 0.2, -0.1), (0.05, 0.05, 0.14), 4.1, "Y", (0, 0, -0.2)),
        ("knee", (0.04, 0.2, -0.5), (0.04, 0.04, 0.14), 1.7, "Y", (0, 0, -0.2)),
        ("ankle", (0.04, 0.2, -0.9), (0.12, 0.03, 0.03), 0.5, "Y", (0.04, 0, -0.04)),
    ]
    arm: Limb = [
        ("shoulder_pitch", (0, 0.2, 0.5), (0.03, 0.03, 0.03), 1.0, "Y", ORIGIN),
        ("shoulder_roll", (0, 0.26, 0.5), (0.03, 0.03, 0.03), 0.9, "X", ORIGIN),
        ("shoulder_yaw", (0, 0.28, 0.4), (0.03, 0.03, 0.06), 1.0, "Z", (0, 0, -0.05)),
        ("elbow", (0, 0.28, 0.3), (0.1, 0.03, 0.03), 0.7, "Y", (0.1, 0, 0)),
    ]
    bodies = [
        Body("pelvis", None, ORIGIN, (0.08, 0.12, 0.08), 6.0),
        Body("torso_link", "pelvis", (0, 0, 0.05), (0.1, 0.15, 0.25), 18.0, "torso", "Z", center=(0, 0, 0.3)),
    ]
    for side in ("left", "right"):
        for limb, parent in ((leg, "pelvis"), (arm, "torso_link")):
            bodies += _chain(limb, parent, side, "{side}_{name}_link", "{side}_{name}", (-150, 150))
    return bodies


def g1() -> list[Body]:
    finger = (0.01, 0.01, 0.01)
    leg: Limb = [
        ("hip_pitch", (0, 0.06, -0.1), (0.04, 0.04, 0.04), 1.3, "Y", ORIGIN),
        ("hip_roll", (0, 0.11, -0.13), (0.04, 0.04, 0.04), 1.5, "X", ORIGIN),
        ("hip_yaw", (0, 0.11, -0.2), (0.04, 0.04, 0.07), 1.7, "Z", (0, 0, -0.08)),
        ("knee", (0, 0.11, -0.4), (0.03, 0.03, 0.1), 1.9, "Y", (0, 0, -0.14)),
        ("ankle_pitch", (0, 0.11, -0.7), (0.02, 0.02, 0.01), 0.1, "Y", ORIGIN),
        ("ankle_roll", (0, 0.11, -0.71), (0.09, 0.03, 0.015), 0.6, "X", (0.03, 0, -0.015)),
    ]
    arm: Limb = [
        ("shoulder_pitch", (0, 0.1, 0.28), (0.03, 0.03, 0.03), 0.7, "Y", ORIGIN),
        ("shoulder_roll", (0, 0.16, 0.28), (0.03, 0.03, 0.03), 0.6, "X", ORIGIN),
        ("shoulder_yaw", (0, 0.16, 0.2), (0.03, 0.03, 0.04), 0.7, "Z", (0, 0, -0.04)),
        ("elbow_pitch", (0, 0.16, 0.1), (0.05, 0.03, 0.03), 0.6, "Y", (0.06, 0, 0)),
        ("elbow_roll", (0.14, 0.16, 0.1), (0.03, 0.03, 0.03), 0.4, "X", (0.04, 0, 0)),
    ]
    hand: list[Limb] = [  # thumb, index, middle
        [
            ("zero", (0.20, 0.18, 0.10), finger, 0.05, "Y", ORIGIN),
            ("one", (0.22, 0.18, 0.10), finger, 0.05, "Z", ORIGIN),
            ("two", (0.25, 0.18, 0.10), finger, 0.05, "Z", ORIGIN),
        ],
        [
            ("three", (0.22, 0.16, 0.12), finger, 0.05, "Z", ORIGIN),
            ("four", (0.25, 0.16, 0.12), finger, 0.05, "Z", ORIGIN),
        ],
        [
            ("five", (0.22, 0.16, 0.08), finger, 0.05, "Z", ORIGIN),
            ("six", (0.25, 0.16, 0.08), finger, 0.05, "Z", ORIGIN),
        ],
    ]
    bodies = [
        Body("pelvis", None, ORIGIN, (0.08, 0.12, 0.08), 6.0),
        Body("torso_link", "pelvis", (0, 0, 0.05), (0.1, 0.15, 0.25), 18.0, "torso_joint", "Z", center=(0, 0, 0.3)),
    ]
    for side in ("left", "right"):
        limbs = [(leg, "pelvis"), (arm, "torso_link"), *((chain, f"{side}_elbow_roll_link") for chain in hand)]
        for limb, parent in limbs:
            bodies += _chain(limb, parent, side, "{side}_{name}_link", "{side}_{name}_joint", (-150, 150))
    return bodies


def digit() -> list[Body]:
    """Digit with open chains: its closed rods are left out. As on the real one, only torso, shins and feet collide."""
    leg: Limb = [
        ("hip_roll", (0, 0.1, -0.15), (0.05, 0.05, 0.05), 2.5, "X", ORIGIN),
        ("hip_yaw", (0, 0.12, -0.2), (0.05, 0.05, 0.05), 2.0, "Z", ORIGIN),
        ("hip_pitch", (0, 0.15, -0.25), (0.05, 0.05, 0.12), 5.0, "Y", (0, 0, -0.15)),
        ("knee", (0, 0.15, -0.55), (0.03, 0.03, 0.06), 1.5, "Y", (0, 0, -0.08)),
        ("tarsus", (0, 0.15, -0.68), (0.03, 0.03, 0.1), 1.5, "Y", (0, 0, -0.12)),
        ("toe_pitch", (0, 0.15, -0.95), (0.02, 0.02, 0.02), 0.3, "Y", ORIGIN),
        ("toe_roll", (0, 0.15, -0.97), (0.1, 0.03, 0.02), 0.6, "X", (0.03, 0, -0.02)),
    ]
    arm: Limb = [
        ("shoulder_roll", (0, 0.2, 0.3), (0.04, 0.04, 0.04), 1.0, "X", ORIGIN),
        ("shoulder_pitch", (0, 0.26, 0.3), (0.04, 0.04, 0.04), 1.5, "Y", ORIGIN),
        ("shoulder_yaw", (0, 0.28, 0.2), (0.03, 0.03, 0.08), 1.5, "Z", (0, 0, -0.1)),
        ("elbow", (0, 0.28, 0), (0.03, 0.03, 0.08), 0.8, "Y", (0, 0, -0.1)),
        ("wrist_roll", (0, 0.28, -0.2), (0.02, 0.02, 0.02), 0.4, "X", ORIGIN),
        ("wrist_pitch", (0, 0.28, -0.23), (0.02, 0.02, 0.02), 0.3, "Y", ORIGIN),
        ("wrist_yaw", (0, 0.28, -0.26), (0.02, 0.02, 0.04), 0.3, "Z", (0, 0, -0.03)),
    ]
    bodies = [Body("torso_base", None, ORIGIN, (0.1, 0.15, 0.25), 25.0, center=(0, 0, 0.1))]
    for side, left in (("left", 1.0), ("right", -1.0)):
        bodies += _chain(leg, "torso_base", side, "{side}_leg_{name}", "{side}_leg_{name}", (-90, 90))
        for toe, offset in (("toe_a", 0.04), ("toe_b", -0.04)):
            name, at = f"{side}_leg_{toe}", (-0.05, 0.15 * left + offset, -0.8)
            tarsus = f"{side}_leg_tarsus"
            bodies += [
                Body(name, tarsus, at, (0.01, 0.01, 0.03), 0.2, name, limits=(-45, 45)),
                Body(f"{name}_rod", name, (*at[:2], -0.84), (0.005, 0.005, 0.02), 0.05),
            ]
        bodies += _chain(arm, "torso_base", side, "{side}_arm_{name}", "{side}_arm_{name}", (-90, 90))
    colliding = ("torso_base", "tarsus", "toe_roll")
    return [dataclasses.replace(body, collides=body.name.endswith(colliding)) for body in bodies]


def franka() -> list[Body]:
    links: list[tuple[Vector, str, Vector, Vector]] = [  # position, axis, size, center
        ((0, 0, 0.333), "Z", (0.05, 0.05, 0.05), ORIGIN),
        ((0, 0, 0.333), "Y", (0.05, 0.05, 0.1), (0, 0, 0.15)),
        ((0, 0, 0.649), "Z", (0.05, 0.05, 0.05), ORIGIN),
        ((0.08, 0, 0.649), "Y", (0.05, 0.05, 0.1), (0, 0, 0.15)),
        ((0, 0, 1.033), "Z", (0.04, 0.04, 0.04), (0, 0, -0.1)),
        ((0, 0, 1.033), "Y", (0.04, 0.04, 0.04), (0.04, 0, 0)),
        ((0.088, 0, 1.033), "Z", (0.04, 0.04, 0.03), (0, 0, -0.05)),
    ]
    bodies = [Body("panda_link0", None, ORIGIN, (0.05, 0.05, 0.05), 3.0, center=(0, 0, 0.05))]
    for i, (position, axis, size, center) in enumerate(links, 1):
        parent = bodies[-1].name
        bodies.append(Body(f"panda_link{i}", parent, position, size, 2.5, f"panda_joint{i}", axis, (-170, 215), center))
    hand = Body("panda_hand", "panda_link7", (0.088, 0, 0.926), (0.03, 0.1, 0.03), 0.7, center=(0, 0, -0.03))
    bodies.append(hand)
    for i, (side, sign) in enumerate((("left", 1.0), ("right", -1.0)), 1):
        bodies.append(
            Body(
                f"panda_{side}finger",
                hand.name,
                (0.088, 0, 0.867),
                (0.01, 0.01, 0.02),
                0.1,
                f"panda_finger_joint{i}",
                limits=(0.0, 0.04),
                center=(0, 0.01 * sign, -0.03),
                prismatic=True,
            )
        )
    return bodies


def cabinet() -> list[Body]:
    bodies = [Body("sektion", None, ORIGIN, (0.05, 0.35, 0.35), 20.0, center=(-0.3, 0, 0))]
    for side, left, limits in (("left", 1.0, (0.0, 90.0)), ("right", -1.0, (-90.0, 0.0))):
        at, half = (0.3, 0.35 * left, -0.2), (0.01, 0.17, 0.15)
        center = (0, -0.17 * left, 0)
        bodies.append(Body(f"door_{side}_link", "sektion", at, half, 2.0, f"door_{side}_joint", "Z", limits, center))
    for name, height in (("drawer_bottom", 0.08), ("drawer_top", 0.24)):
        at, half = (0.28, 0, height), (0.01, 0.3, 0.06)
        bodies.append(Body(name, "sektion", at, half, 2.0, f"{name}_joint", "X", (0, 0.4), prismatic=True))
    bodies.append(Body("drawer_handle_top", "drawer_top", (0.33, 0, 0.24), (0.01, 0.06, 0.01), 0.1))
    return bodies


def cartpole() -> list[Body]:
    """Isaac's cart and pole: 1 kg each."""
    return [
        Body("slider", None, ORIGIN, (4.0, 0.015, 0.015), 1.0),
        Body(
            "cart",
            "slider",
            ORIGIN,
            (0.1, 0.125, 0.1),
            1.0,
            "slider_to_cart",
            "X",
            (-4.0, 4.0),
            prismatic=True,
        ),
        Body(
            "pole",
            "cart",
            (0.12, 0, 0),
            (0.02, 0.03, 0.5),
            1.0,
            "cart_to_pole",
            limits=(float("-inf"), float("inf")),
            center=(0, 0, 0.47),
        ),
    ]
