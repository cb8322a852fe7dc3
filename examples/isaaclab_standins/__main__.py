# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Writes stand-ins for Isaac Lab's robots, for machines that cannot reach its asset server.

    python examples/isaaclab_standins FOLDER
    ISAACSIM_ASSET_ROOT=FOLDER python sota-implementations/genpo.py env=isaaclab/anymal_d_rough

Isaac Lab loads its robots from a server. This writes a folder with the same layout, so that its task configurations
run untouched: a ground, the ant and the humanoid that come with Newton, and robots of boxes and spheres with Isaac's
names of bodies and joints. **They test the plumbing, not the results**: masses, sizes and limits are rough, and a
policy trained on one says nothing about the robot. With Isaac's own assets the same command trains the real one.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Vector = tuple[float, ...]
ROBOTS = Path(__file__).with_name("robots.csv")
NUMBERS = ("position", "size", "center", "limits")  # columns of several numbers


class Body(NamedTuple):
    """Describes a rigid body, the primitive that it collides with, and the joint to its parent.

    Attributes:
        name (str): Isaac's name of the body.
        parent (str): the name of the body that it is attached to; empty for the root.
        position (tuple of float): the origin of its frame in the robot's frame, m.
        size (tuple of float): the radius of a sphere, or half the edges of a box, m.
        mass (float): its mass, kg.
        center (tuple of float): the centre of mass and shape, in its frame, m.
        collides (bool): whether the primitive collides.
        kind (str): the kind of the joint: ``fixed``, ``revolute`` or ``prismatic``; empty for the root.
        joint (str): Isaac's name of the joint; empty if it is fixed.
        axis (str): the axis of the joint.
        limits (tuple of float): the limits of the joint, degrees or m.
    """

    name: str
    parent: str
    position: Vector
    size: Vector
    mass: float
    center: Vector
    collides: bool
    kind: str
    joint: str
    axis: str
    limits: Vector


def read_robot(robot: str) -> list[Body]:
    """Reads a robot of ``robots.csv``: boxes and spheres of rough masses, sizes and limits.

    Digit has open chains, without its closed rods; as on the real one, only torso, shins and feet collide.
    """
    bodies = []
    values: dict[str, Any]
    for values in csv.DictReader(ROBOTS.read_text().splitlines()):
        if values.pop("robot") == robot:
            values |= {key: tuple(map(float, values[key].split())) for key in NUMBERS}
            values |= {"mass": float(values["mass"]), "collides": values["collides"] == "yes"}
            bodies.append(Body(**values))
    return bodies


def _write_robot(
    path: Path,
    robot: str,
    *,
    fixed_base: bool = False,
    stiffness: float = 0.0,
    damping: float = 0.0,
    variants: dict[str, tuple[str, ...]] | None = None,
) -> None:
    """Writes a robot; every joint has a drive of this stiffness (N m per degree, or N/m) and damping."""
    from pxr import Gf, Usd, UsdGeom, UsdPhysics

    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    stage = Usd.Stage.CreateNew(str(path))
    UsdGeom.SetStageUpAxis(stage, "Z")
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    root = UsdGeom.Xform.Define(stage, "/robot").GetPrim()
    stage.SetDefaultPrim(root)
    UsdPhysics.ArticulationRootAPI.Apply(root)
    for name, choices in (variants or {}).items():  # Isaac Lab's configuration chooses; all are the same here
        for choice in choices:
            root.GetVariantSets().AddVariantSet(name).AddVariant(choice)
    UsdGeom.Scope.Define(stage, "/robot/joints")
    positions = {}
    for body in read_robot(robot):
        positions[body.name] = body.position
        prim_path = f"/robot/{body.name}"
        frame = UsdGeom.Xform.Define(stage, prim_path)
        frame.AddTranslateOp().Set(Gf.Vec3d(*body.position))
        frame.AddOrientOp().Set(Gf.Quatf(1))
        UsdPhysics.RigidBodyAPI.Apply(frame.GetPrim())

        if len(body.size) == 3:
            x, y, z = body.size
            shape: Any = UsdGeom.Cube.Define(stage, f"{prim_path}/collision")
            shape.CreateSizeAttr(2.0)
            shape.AddTranslateOp().Set(Gf.Vec3d(*body.center))
            shape.AddScaleOp().Set(Gf.Vec3f(*body.size))
        else:
            x = y = z = body.size[0]
            shape = UsdGeom.Sphere.Define(stage, f"{prim_path}/collision")
            shape.CreateRadiusAttr(x)
            shape.AddTranslateOp().Set(Gf.Vec3d(*body.center))
        if body.collides:
            UsdPhysics.CollisionAPI.Apply(shape.GetPrim())

        inertia = (body.mass / 3 * square for square in (y * y + z * z, x * x + z * z, x * x + y * y))
        mass = UsdPhysics.MassAPI.Apply(frame.GetPrim())
        mass.CreateMassAttr(body.mass)
        mass.CreateCenterOfMassAttr(Gf.Vec3f(*body.center))
        mass.CreatePrincipalAxesAttr(Gf.Quatf(1))
        mass.CreateDiagonalInertiaAttr(Gf.Vec3f(*(max(value, 1e-3) for value in inertia)))

        if not body.parent:
            if fixed_base:
                joint = UsdPhysics.FixedJoint.Define(stage, "/robot/joints/root_joint")
                joint.CreateBody1Rel().SetTargets([prim_path])
            continue
        name = body.joint or f"{body.name}_fixed"
        joint = getattr(UsdPhysics, f"{body.kind.title()}Joint").Define(stage, f"/robot/joints/{name}")
        joint.CreateBody0Rel().SetTargets([f"/robot/{body.parent}"])
        joint.CreateBody1Rel().SetTargets([prim_path])
        offset = (a - b for a, b in zip(body.position, positions[body.parent], strict=True))
        joint.CreateLocalPos0Attr(Gf.Vec3f(*offset))
        joint.CreateLocalPos1Attr(Gf.Vec3f(0))
        joint.CreateLocalRot0Attr(Gf.Quatf(1))
        joint.CreateLocalRot1Attr(Gf.Quatf(1))
        if body.joint:
            joint.CreateAxisAttr(body.axis)
            joint.CreateLowerLimitAttr(body.limits[0])
            joint.CreateUpperLimitAttr(body.limits[1])
            # without a drive Newton would leave the joint passive
            drive = UsdPhysics.DriveAPI.Apply(joint.GetPrim(), "linear" if body.kind == "prismatic" else "angular")
            drive.CreateStiffnessAttr(stiffness)
            drive.CreateDampingAttr(damping)
            drive.CreateMaxForceAttr(300.0)
    stage.GetRootLayer().Save()


class _SeriesElasticActuator(nn.Module):
    """Stands in for ANYdrive's LSTM, from position error and velocity to torque, by a spring and a damper."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 8, num_layers=2, batch_first=True)  # Isaac Lab reads the sizes of the states from it

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return 80.0 * x[:, 0, 0] - 2.0 * x[:, 0, 1], state


def _write_newton_robots(folder: Path) -> None:
    """Writes ant and humanoid as Newton ships them, the humanoid's joints under Isaac's names."""
    import newton.examples
    from pxr import Sdf, Usd

    renamed = {"abdomen_x": "pelvis"}
    for side in ("left", "right"):
        renamed |= {f"{side}_knee": f"{side}_shin", f"{side}_elbow": f"{side}_lower_arm"}
    source = Path(newton.examples.__file__).parent / "assets"
    for name, prim, joints in (("Ant", "/ant", {}), ("Humanoid", "/nv_humanoid", renamed)):
        target = folder / f"Robots/IsaacSim/{name}/{name.lower()}_instanceable.usd"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        stage = Usd.Stage.Open(str(source / f"{name.lower()}.usda"))
        stage.SetDefaultPrim(stage.GetPrimAtPath(prim))
        stage.Export(str(target))
        layer = Sdf.Layer.FindOrOpen(str(target))
        for other in [spec.name for spec in layer.rootPrims if spec.path != prim]:  # the ground of Newton's scene
            del layer.rootPrims[other]
        scope = layer.GetPrimAtPath(f"{prim}/joints")
        for old, new in joints.items():
            Sdf.CopySpec(layer, scope.path.AppendChild(old), layer, scope.path.AppendChild(new))
            del scope.nameChildren[old]
        layer.Save()


def _write_ground(path: Path) -> None:
    """Writes a flat ground with the prims that Isaac Lab looks for in its own."""
    from pxr import Gf, Sdf, Usd, UsdGeom, UsdPhysics, UsdShade

    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    stage = Usd.Stage.CreateNew(str(path))
    UsdGeom.SetStageUpAxis(stage, "Z")
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/World").GetPrim())
    UsdGeom.Xform.Define(stage, "/World/Environment").AddScaleOp().Set(Gf.Vec3f(1))
    mesh = UsdGeom.Mesh.Define(stage, "/World/Environment/Geometry")
    mesh.CreatePointsAttr([(-50, -50, 0), (50, -50, 0), (50, 50, 0), (-50, 50, 0)])
    mesh.CreateFaceVertexCountsAttr([4])
    mesh.CreateFaceVertexIndicesAttr([0, 1, 2, 3])
    texture = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.varying)
    texture.Set([(-25, -25), (25, -25), (25, 25), (-25, 25)])
    material = UsdShade.Material.Define(stage, "/World/Looks/theGrid")
    shader = UsdShade.Shader.Define(stage, "/World/Looks/theGrid/Shader")
    shader.CreateIdAttr("UsdPreviewSurface")
    shader.CreateInput("diffuse_tint", Sdf.ValueTypeNames.Color3f).Set(Gf.Vec3f(1))
    material.CreateSurfaceOutput().ConnectToSource(shader.ConnectableAPI(), "surface")
    plane = UsdGeom.Plane.Define(stage, "/World/CollisionPlane")
    plane.CreateAxisAttr("Z")
    plane.CreatePurposeAttr("guide")
    UsdPhysics.CollisionAPI.Apply(plane.GetPrim())
    stage.GetRootLayer().Save()


def write_standins(folder: Path) -> None:
    """Writes every stand-in below a folder, which is then Isaac Lab's ``ISAACSIM_ASSET_ROOT``."""
    isaac = folder / "Isaac"
    robots = isaac / "IsaacLab/Robots"
    _write_ground(isaac / "IsaacLab/Environments/Grid/default_ground_plane_checker_v1/default_ground_plane.usda")
    _write_newton_robots(isaac)
    _write_robot(robots / "Classic/Cartpole/cartpole.usd", "cartpole", fixed_base=True)
    _write_robot(robots / "ANYbotics/ANYmal-D/anymal_d.usd", "anymal_d")
    _write_robot(robots / "Unitree/Go2/go2.usd", "go2")
    _write_robot(robots / "Unitree/H1/h1_minimal.usd", "h1")
    _write_robot(robots / "Unitree/G1/g1_minimal.usd", "g1")
    _write_robot(isaac / "Robots/Agility/Digit/digit_v4.usd", "digit", stiffness=5.0, damping=0.2)
    _write_robot(
        robots / "FrankaEmika/franka_panda.usda",
        "franka",
        fixed_base=True,
        stiffness=400.0,
        damping=80.0,
        variants={"Physics": ("physx", "mujoco"), "Colliders": ("primitives", "gripper_only")},
    )
    _write_robot(isaac / "Props/Sektion_Cabinet/sektion_cabinet_instanceable.usd", "cabinet", fixed_base=True)
    network = isaac / "IsaacLab/ActuatorNets/ANYbotics/anydrive_3_lstm_jit.pt"
    network.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.script(_SeriesElasticActuator()).save(str(network))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write; the ISAACSIM_ASSET_ROOT to use")
    root = parser.parse_args().folder
    write_standins(root)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    print(f"ISAACSIM_ASSET_ROOT={root.resolve()}", *files, sep="\n  ")


if __name__ == "__main__":
    main()
