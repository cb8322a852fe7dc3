# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The XHand over a nut on a bolt, as a MuJoCo model of primitives.

Kinematics and masses are the maker's (``xhand.json``, whose notice is ``LICENSE-RobotEra``); the shapes of the links
are capsules of about their size. Task and gains follow DexScrew (arXiv 2512.02011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from torchrl_genpo.envs.xhand.nuts import NUTS
from torchrl_genpo.envs.xhand.scene import FINGERS, Scene, facts

if TYPE_CHECKING:
    import mujoco

__all__ = ["make_model", "make_spec"]

# Bits of MuJoCo's collision filter: fingers meet nut, bolt and floor, and fingertips each other
NUT_BIT, LINK_BIT, TIP_BIT = 1, 2, 4


def make_spec(scene: Scene | None = None) -> mujoco.MjSpec:
    """Builds the model as a specification, to be edited, compiled, or written as MJCF by ``spec.to_xml()``."""
    import mujoco

    scene = Scene() if scene is None else scene
    spec = mujoco.MjSpec()
    spec.modelname = f"xhand_{scene.side}_{scene.nut}"
    spec.compiler.degree = False
    option = spec.option
    option.timestep, option.integrator = scene.timestep, mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.iterations, option.ls_iterations = 20, 10
    if scene.cone == "elliptic":
        option.cone, option.impratio = mujoco.mjtCone.mjCONE_ELLIPTIC, 10
    geom = spec.default.geom
    geom.condim, geom.friction = 4, [scene.friction, 0.02, 0.001]
    geom.solref, geom.solimp = [0.01, 1], [0.9, 0.98, 0.001, 0.5, 2]
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 960, 720
    axis = np.array([scene.nut_position[0], -scene.mirror * scene.nut_position[1], 0.0])  # of the nut
    _add_surroundings(spec, axis)
    _add_hand(spec, scene)
    _add_nut(spec, scene, axis)
    return spec


def make_model(scene: Scene | None = None) -> mujoco.MjModel:
    """Compiles the model: joints and actuators in the order of :data:`JOINTS`, then the nut's joint ``nut``.

    Sensors, all ``[3]`` in world coordinates: ``<finger>_position`` and ``<finger>_velocity`` of the tips of thumb,
    index and middle finger, ``<finger>_force`` of the finger on the nut, ``nut_position``; and ``<joint>_torque``
    ``[1]`` of the actuators.

    Examples:
        >>> model = make_model(Scene(nut="square"))
        >>> model.nu, model.joint("nut").qposadr[0]
        (12, np.int32(12))
    """
    return make_spec(scene).compile()


def _add_surroundings(spec: mujoco.MjSpec, axis: np.ndarray) -> None:
    import mujoco

    world = spec.worldbody
    world.add_light(pos=[0.3, -0.3, 1.0], dir=[-0.3, 0.3, -1.0])
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
        rgb1=[1.0, 1.0, 1.0],
        width=8,
        height=8,
    )
    world.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[0.5, 0.5, 0.1],
        rgba=[0.9, 0.9, 0.9, 1.0],
        contype=NUT_BIT,
        conaffinity=LINK_BIT,
    )
    for name, offset in (("side", (-0.22, -0.04, 0.08)), ("front", (0.16, 0.17 * np.sign(axis[1]), 0.11))):
        eye = axis + offset
        forward = np.array([*axis[:2], 0.09]) - eye
        right = np.cross(forward, [0.0, 0.0, 1.0])
        frame = np.stack([right, np.cross(right, forward), -forward])
        rotation = (frame / np.linalg.norm(frame, axis=1, keepdims=True)).T
        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, rotation.ravel())
        world.add_camera(name=name, pos=eye, quat=quat)


def _add_hand(spec: mujoco.MjSpec, scene: Scene) -> None:
    import mujoco

    hand = facts(scene.side)
    angle = -scene.mirror * (math.pi / 2 - scene.tilt)
    palm = spec.worldbody.add_body(
        name="palm",
        pos=[0.0, 0.0, scene.hand_height],
        quat=[math.cos(angle / 2), math.sin(angle / 2), 0.0, 0.0],
        gravcomp=1.0,
        **_inertia(hand["palm"]),
    )
    palm.add_geom(
        name="palm",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[0.045, 0.016, 0.05],
        pos=[-0.003, 0.0, -0.055],
        contype=0,
        conaffinity=0,
        rgba=[0.85, 0.85, 0.87, 1.0],
    )
    bodies = {"palm": palm}
    for name, joint in hand["joints"].items():
        body = bodies[name] = bodies[joint["parent"]].add_body(
            name=name, pos=joint["position"], quat=_quat(joint["rpy"]), gravcomp=1.0, **_inertia(joint["link"])
        )
        sign = scene.index_bend_sign if name == "index_bend" else 1
        limits = joint["limits"]
        body.add_joint(
            name=name,
            axis=[sign * value for value in joint["axis"]],
            range=limits,
            damping=scene.joint_damping,
            frictionloss=scene.joint_friction,
            armature=scene.joint_armature,
        )
        for index, (start, end, radius) in enumerate(_capsules(name, scene.mirror)):
            is_tip = name in FINGERS.values()
            body.add_geom(
                name=f"{name}_{index}",
                type=mujoco.mjtGeom.mjGEOM_CAPSULE,
                fromto=[*start, *end],
                size=[radius, 0.0, 0.0],
                contype=LINK_BIT | TIP_BIT if is_tip else LINK_BIT,
                conaffinity=NUT_BIT | TIP_BIT if is_tip else NUT_BIT,
                rgba=[0.1, 0.1, 0.12, 1.0] if is_tip else [0.3, 0.3, 0.33, 1.0],
            )
        actuator = spec.add_actuator(
            name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT, forcerange=[-joint["effort"], joint["effort"]]
        )
        actuator.set_to_position(kp=scene.stiffness, kv=scene.damping)
        actuator.ctrlrange = limits
        actuator.forcelimited = actuator.ctrllimited = True
        spec.add_sensor(
            name=f"{name}_torque",
            type=mujoco.mjtSensor.mjSENS_ACTUATORFRC,
            objtype=mujoco.mjtObj.mjOBJ_ACTUATOR,
            objname=name,
        )
    for finger, last in FINGERS.items():
        bodies[last].add_site(name=finger, pos=hand["joints"][last]["tip"], group=4)
    for finger in ("thumb", "index", "mid"):
        for quantity, sensor in (("position", "FRAMEPOS"), ("velocity", "FRAMELINVEL")):
            spec.add_sensor(
                name=f"{finger}_{quantity}",
                type=getattr(mujoco.mjtSensor, f"mjSENS_{sensor}"),
                objtype=mujoco.mjtObj.mjOBJ_SITE,
                objname=finger,
            )


def _capsules(name: str, mirror: int) -> Sequence[tuple[tuple, tuple, float]]:
    """Lists ends and radius of the capsules of a link, in its frame."""
    if name == "thumb_rota1":
        return [((0.004, 0.0, 0.0), (0.05, 0.0, 0.0), 0.011)]
    if name == "thumb_rota2":  # wide and flat
        return [((0.002, 0.0075 * y, -0.001), (0.0415, 0.0055 * y, -0.001), 0.0083) for y in (-1, 1)]
    if name.endswith("_1"):
        return [((0.0, 0.0, -0.004), (0.0, 0.0, -0.052), 0.009)]
    if name.endswith("_2"):
        return [((0.0, 0.001 * mirror, -0.002), (0.0, 0.001 * mirror, -0.034), 0.0083)]
    return []


def _add_nut(spec: mujoco.MjSpec, scene: Scene, axis: np.ndarray) -> None:
    import mujoco

    nut = NUTS[scene.nut]
    bolt = spec.worldbody.add_body(name="bolt", pos=axis)
    top = scene.nut_height + 0.02
    for name, radius, height in (("base", 0.03, 0.005), ("bolt", scene.bolt_radius, top)):
        bolt.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_CYLINDER,
            fromto=[0.0, 0.0, 0.0, 0.0, 0.0, height],
            size=[radius, 0.0, 0.0],
            contype=NUT_BIT,
            conaffinity=LINK_BIT,
            rgba=[0.6, 0.6, 0.62, 1.0],
        )
    turning = scene.mirror if scene.turning is None else scene.turning
    width = nut.width * scene.nut_scale
    across, along = (scene.nut_mass * value for value in (width**2 / 16 + nut.height**2 / 12, width**2 / 8))
    # Never a mass exactly on the axis: no force at it would move the nut, and MuJoCo then takes the inverse inertia of
    # the rotation for that of the translation, which makes every contact with the nut a thousand times too soft
    center = scene.nut_center if any(scene.nut_center) else (1e-4, 0.0)
    body = bolt.add_body(
        name="nut",
        pos=[0.0, 0.0, scene.nut_height],
        mass=scene.nut_mass,
        ipos=[*center, 0.0],
        inertia=[across, across, along],
        explicitinertial=True,
    )
    body.add_joint(
        name="nut",
        axis=[0.0, 0.0, float(turning)],
        damping=scene.nut_damping,
        frictionloss=scene.nut_friction,
        armature=scene.nut_armature,
    )
    for part in nut.parts(scene.nut_scale):
        body.add_geom(**part, contype=NUT_BIT, conaffinity=LINK_BIT, density=0.0, rgba=[*nut.rgb, 1.0])
    if scene.thread_pitch is not None:
        body.add_joint(name="rise", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[0.0, 0.0, 1.0], armature=scene.nut_mass)
        spec.add_equality(
            name="thread",
            type=mujoco.mjtEq.mjEQ_JOINT,
            objtype=mujoco.mjtObj.mjOBJ_JOINT,
            name1="rise",
            name2="nut",
            data=[0.0, scene.thread_pitch / (2 * math.pi), *[0.0] * (mujoco.mjNEQDATA - 2)],
            solref=[0.01, 1.0],
            # stiff, because MuJoCo softens it by the nut's tiny inertia, as if a radian were as much as a metre
            solimp=[0.99999, 0.99999, 0.001, 0.5, 2.0],
        )
    spec.add_sensor(
        name="nut_position",
        type=mujoco.mjtSensor.mjSENS_FRAMEPOS,
        objtype=mujoco.mjtObj.mjOBJ_BODY,
        objname="nut",
    )
    for finger in ("thumb", "index", "mid"):
        spec.add_sensor(
            name=f"{finger}_force",
            type=mujoco.mjtSensor.mjSENS_CONTACT,
            objtype=mujoco.mjtObj.mjOBJ_BODY,
            objname=FINGERS[finger],
            reftype=mujoco.mjtObj.mjOBJ_BODY,
            refname="nut",
            intprm=[1 << int(mujoco.mjtConDataField.mjCONDATA_FORCE), 3, 1],  # 3: the net force of all contacts
        )


def _quat(rpy: Sequence[float]) -> list[float]:
    """Computes the quaternion of a URDF's roll, pitch and yaw."""
    import mujoco

    quat = np.empty(4)
    mujoco.mju_euler2Quat(quat, rpy, "XYZ")  # capitals turn about the fixed axes
    return quat.tolist()


def _inertia(link: dict[str, Any]) -> dict[str, Any]:
    return {
        "mass": link["mass"],
        "ipos": link["center"],
        "fullinertia": link["inertia"],
        "explicitinertial": True,
    }
