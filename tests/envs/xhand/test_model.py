"""The hand's model: the maker's kinematics and limits, nuts of the stated size, a start that touches nothing."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest

from torchrl_genpo.envs.xhand import JOINTS, NUTS, Scene, joint_limits, make_model, make_spec
from torchrl_genpo.envs.xhand.scene import FINGERS, START_POSE, facts

SIDES = ("right", "left")


def rotation(axis, angle):
    """Rodrigues' formula."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def fingertip(side, finger, pose):
    """Its position in the palm's frame, by multiplying the URDF's transforms."""
    joints, chain, name = facts(side)["joints"], [], FINGERS[finger]
    while name != "palm":
        chain.append(name)
        name = joints[name]["parent"]
    frame, origin = np.eye(3), np.zeros(3)
    for name in reversed(chain):
        roll, pitch, yaw = joints[name]["rpy"]
        origin = origin + frame @ joints[name]["position"]
        frame = frame @ rotation([0, 0, 1], yaw) @ rotation([0, 1, 0], pitch) @ rotation([1, 0, 0], roll)
        frame = frame @ rotation(joints[name]["axis"], pose[JOINTS.index(name)])
    return origin + frame @ joints[FINGERS[finger]]["tip"]


@pytest.mark.parametrize("side", SIDES)
def test_fingertips_are_where_the_urdf_puts_them(side):
    rng = np.random.default_rng(0)
    model = make_model(Scene(side=side))
    data = mujoco.MjData(model)
    for _ in range(5):
        data.qpos[:12] = rng.uniform(*joint_limits(side))
        mujoco.mj_kinematics(model, data)
        palm = data.body("palm")
        for finger in FINGERS:
            position = palm.xmat.reshape(3, 3).T @ (data.site(finger).xpos - palm.xpos)
            np.testing.assert_allclose(position, fingertip(side, finger, data.qpos), atol=1e-6)


def test_the_left_hand_is_the_mirror_image_of_the_right():
    tips = {}
    for side in SIDES:
        scene = Scene(side=side)
        model = make_model(scene)
        data = mujoco.MjData(model)
        data.qpos[:12] = scene.start_pose()
        mujoco.mj_kinematics(model, data)
        tips[side] = np.array([data.site(finger).xpos for finger in FINGERS])
        assert model.joint("nut").axis[2] == (1 if side == "right" else -1)
    np.testing.assert_allclose(tips["left"] * [1, -1, 1], tips["right"], atol=1e-3)  # their URDFs differ by 0.4 mm


@pytest.mark.parametrize("side", SIDES)
def test_masses_limits_and_efforts_are_the_makers(side):
    model = make_model(Scene(side=side))
    assert [model.joint(i).name for i in range(13)] == [*JOINTS, "nut"]
    assert [model.actuator(i).name for i in range(12)] == list(JOINTS)
    for index, name in enumerate(JOINTS):
        joint = facts(side)["joints"][name]
        assert model.body(name).mass == pytest.approx(joint["link"]["mass"])
        np.testing.assert_allclose(model.jnt_range[index], joint["limits"])
        np.testing.assert_allclose(model.actuator_forcerange[index], [-joint["effort"], joint["effort"]])
    data = mujoco.MjData(model)
    data.ctrl[:] = joint_limits(side)[1]
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.actuator_force, np.minimum(3 * data.ctrl, model.actuator_forcerange[:, 1]))


def test_index_bend_turns_the_other_way_on_a_hand_of_the_other_sign():
    axes = [make_model(Scene(side="left", index_bend_sign=sign)).joint("index_bend").axis for sign in (1, -1)]
    np.testing.assert_array_equal(axes[0], -axes[1])
    poses = [Scene(side="left", index_bend_sign=sign).start_pose() for sign in (1, -1)]
    assert poses[0][3] == -poses[1][3] != 0
    np.testing.assert_array_equal(np.delete(poses[0], 3), np.delete(poses[1], 3))


def support(nut, angle, scale=1.0):
    """How far the outline reaches in a direction of the plane, m."""
    direction, reach = np.array([math.cos(angle), math.sin(angle)]), 0.0
    for part in nut.parts(scale):
        center = np.dot(part["pos"][:2], direction)
        if part["type"] == mujoco.mjtGeom.mjGEOM_CYLINDER:
            reach = max(reach, center + part["size"][0])
        else:
            turn = angle - 2 * math.atan2(part["quat"][3], part["quat"][0])
            x, y, _ = part["size"]
            reach = max(reach, center + abs(x * math.cos(turn)) + abs(y * math.sin(turn)))
    return reach


@pytest.mark.parametrize(
    ("name", "across", "corner"),
    [  # mm: to a side, to a corner; both by the definition of the shape
        ("hexagon", (0, 19.0), (30, 19 / math.cos(math.pi / 6))),
        ("square", (0, 17.0), (45, 0.93 * math.sqrt(2) * 17)),
        ("round", (0, 18.0), (17, 18.0)),
        ("triangle", (60, 13.0), (0, 19.5)),
        ("cross", (0, 22.0), (90, 22.0)),
    ],
)
def test_nuts_have_the_stated_size_and_scale(name, across, corner):
    for scale in (1.0, 1.05):
        for angle, size in (across, corner):
            assert support(NUTS[name], math.radians(angle), scale) * 1000 == pytest.approx(size * scale, rel=1e-9)


def clearance(model, pose, links=JOINTS, num_angles=24):
    """The smallest distance of the hand to nut and bolt over a turn of the nut, negative if one penetrates; m."""
    data, segment = mujoco.MjData(model), np.empty(6)
    data.qpos[:12] = pose
    moving = [g for g in range(model.ngeom) if model.body(model.geom_bodyid[g]).name in links]
    fixed = [g for g in range(model.ngeom) if model.body(model.geom_bodyid[g]).name in ("nut", "bolt")]
    smallest = 1.0
    for angle in np.linspace(0.0, 2 * math.pi, num_angles, endpoint=False):
        data.joint("nut").qpos[0] = angle
        mujoco.mj_kinematics(model, data)
        pairs = ((a, b) for a in moving for b in fixed)
        smallest = min(smallest, *(mujoco.mj_geomDistance(model, data, a, b, smallest, segment) for a, b in pairs))
    return smallest


def find_start_pose(nuts=tuple(NUTS), margin=0.002):
    """The start pose with thumb, index and middle finger bent at their bases as far as they clear every nut."""
    models = [make_model(Scene(nut=nut)) for nut in nuts]
    limits = joint_limits()
    names = list(JOINTS)
    pose = Scene().start_pose()
    for name, links in (
        ("index_1", ("index_1", "index_2")),
        ("mid_1", ("mid_1", "mid_2")),
        ("thumb_rota1", ("thumb_rota1", "thumb_rota2")),
    ):
        index = names.index(name)
        angles = np.arange(max(0.0, limits[0, index]), limits[1, index], 0.01)
        clear = []
        for angle in angles:
            pose[index] = angle
            clear.append(min(clearance(model, pose, links) for model in models) >= margin)
            if clear[0] and not clear[-1]:
                break
        pose[index] = round(float(angles[np.flatnonzero(clear)[-1]]), 2)
    return {name: float(pose[names.index(name)]) for name in START_POSE}


def test_the_start_pose_is_the_one_that_is_found_and_touches_nothing():
    assert find_start_pose() == START_POSE
    for side in SIDES:
        for nut in NUTS:
            scene = Scene(side=side, nut=nut)
            model = make_model(scene)
            assert clearance(model, scene.start_pose()) > 0.0015
            data = mujoco.MjData(model)
            for angle in np.linspace(0, 2 * math.pi, 36):
                data.qpos[:12], data.qpos[12] = scene.start_pose(), angle
                mujoco.mj_forward(model, data)
                assert data.ncon == 0


def test_clearance_finds_the_penetration_of_dexscrews_start_pose():
    dexscrew = {"thumb_bend": 1.3, "thumb_rota1": 0.5, "thumb_rota2": 0.45, "index_bend": 0.17}
    dexscrew |= {"index_1": 1.1, "index_2": 0.4, "mid_1": 1.1, "mid_2": 0.4}
    pose = np.array([dexscrew.get(name, 0.0) for name in JOINTS])
    assert clearance(make_model(Scene(nut="hexagon")), pose) < -0.002


def test_a_thread_lifts_the_nut_by_its_pitch_a_turn():
    scene = Scene(thread_pitch=0.002)
    model = make_model(scene)
    data = mujoco.MjData(model)
    data.qpos[:12] = data.ctrl[:] = scene.start_pose()
    for _ in range(600):
        data.qfrc_applied[model.joint("nut").dofadr[0]] = 0.05
        mujoco.mj_step(model, data)
    turns = data.joint("nut").qpos[0] / (2 * math.pi)
    assert turns > 3
    assert data.body("nut").xpos[2] - scene.nut_height == pytest.approx(0.002 * turns, abs=5e-5)


def test_contacts_are_as_stiff_wherever_the_mass_of_the_nut_is():
    angles = []
    for center in ((0.0, 0.0), (1e-5, 0.0), (0.0, -1e-3)):
        scene = Scene(nut_center=center)
        model = make_model(scene)
        data = mujoco.MjData(model)
        assert model.body_invweight0[model.body("nut").id, 0] < 1
        data.qpos[:12] = pose = scene.start_pose()
        for step in range(800):  # thumb against index finger
            phase = 2 * math.pi * step / 120
            data.ctrl[:] = pose
            data.ctrl[:2] += -0.2 * math.cos(phase), 0.25 * math.sin(phase) + 0.2
            data.ctrl[[4, 6]] += 0.25 * math.sin(phase) + 0.15
            data.ctrl[3] += 0.15 * math.cos(phase)
            mujoco.mj_step(model, data)
        angles.append(data.joint("nut").qpos[0])
    assert angles[0] > 2 and np.ptp(angles) < 0.1 * angles[0], angles


def test_mjcf_describes_the_same_model():
    scene = Scene(side="left", nut="cross", cone="elliptic", thread_pitch=0.002)
    spec = make_spec(scene)
    compiled, read = spec.compile(), mujoco.MjModel.from_xml_string(spec.to_xml())
    for field in ("body_mass", "geom_size", "geom_pos", "jnt_axis", "actuator_gainprm", "sensor_adr"):
        np.testing.assert_allclose(getattr(read, field), getattr(compiled, field), atol=1e-6, err_msg=field)
    assert read.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC and read.opt.timestep == scene.timestep


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"side": "both"}, "(?s)side.*'right' or 'left'"),
        ({"nut": "hexagn"}, "Did you mean hexagon"),
        ({"index_bend_sign": 2}, "(?s)index_bend_sign.*1 or -1"),
        ({"cone": "round"}, "(?s)cone.*'pyramidal' or 'elliptic'"),
    ],
)
def test_mistakes_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scene(**arguments)
