# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""robosuite's simulators: the known tasks, how they are made, seeded and observed."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from xml.etree import ElementTree

import numpy as np

from torchrl_genpo.data.robomimic import INSTALL
from torchrl_genpo.envs.seeds import check_seed

__all__ = [
    "ROBOMIMIC_TASKS",
    "SIMULATION_TIMESTEP",
    "RobomimicTask",
    "make_simulator",
    "observation_parts",
    "require_robosuite",
    "set_simulator_seed",
]

SIMULATION_TIMESTEP = 0.002  # s, as robosuite sets it
ONE_ARM = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
TWO_ARMS = (*ONE_ARM[:3], *(key.replace("robot0", "robot1") for key in ONE_ARM[:3]), "object")
PACKAGES = {  # packages that define further tasks, with their installation; imported when such a task is asked for
    "dexmimicgen": "git clone https://github.com/NVlabs/dexmimicgen && pip install --no-deps -e dexmimicgen",
    "mimicgen": "git clone https://github.com/NVlabs/mimicgen && pip install --no-deps -e mimicgen",
}


@dataclass(frozen=True)
class RobomimicTask:
    """Describes a task that has a short name.

    Attributes:
        env_name (str): robosuite's name of the environment.
        robots (tuple of str): the one or two robots.
        observation_keys (tuple of str): the parts of the observation, in this order.
        horizon (int): the length of an episode in control steps.
        stand_in (str, optional): for a task of DexMimicGen, this project's own environment of the same kind, which is
            used where DexMimicGen is missing.
    """

    env_name: str
    robots: tuple[str, ...] = ("Panda",)
    observation_keys: tuple[str, ...] = ONE_ARM
    horizon: int = 400
    stand_in: str | None = None

    def env_args(self) -> dict[str, Any]:
        """Returns what makes the environment, in the form of robomimic's files."""
        is_there = self.stand_in is None or importlib.util.find_spec("dexmimicgen") is not None
        return {
            "env_name": self.env_name if is_there else self.stand_in,
            "env_version": "1.5.2",
            "type": 1,
            "env_kwargs": {
                "robots": list(self.robots),
                "controller_configs": _controller(len(self.robots)),
                "control_freq": 20,
                "reward_shaping": False,
                "has_renderer": False,
                "has_offscreen_renderer": False,
                "use_camera_obs": False,
                "use_object_obs": True,
                "ignore_done": True,
                "lite_physics": True,
            },
        }


ROBOMIMIC_TASKS = {
    "can": RobomimicTask("PickPlaceCan", horizon=300),
    "lift": RobomimicTask("Lift", horizon=300),
    "square": RobomimicTask("NutAssemblySquare"),
    "box_cleanup": RobomimicTask(
        "TwoArmBoxCleanup", ("Panda", "Panda"), TWO_ARMS, stand_in="PrimitiveTwoArmBoxCleanup"
    ),
    "threading": RobomimicTask("TwoArmThreading", ("Panda", "Panda"), TWO_ARMS, stand_in="PrimitiveTwoArmThreading"),
}
"""The tasks by their short names."""


def _controller(num_robots: int) -> dict[str, Any] | list[dict[str, Any]]:
    """Returns the controller of robomimic's data, which moves the pose by up to 5 cm and 0.5 rad in a step."""
    limits = [0.05] * 3 + [0.5] * 3
    arm = {
        "type": "OSC_POSE",
        "input_max": 1,
        "input_min": -1,
        "output_max": limits,
        "output_min": [-value for value in limits],
        "kp": 150,
        "damping_ratio": 1,
        "impedance_mode": "fixed",
        "kp_limits": [0, 300],
        "damping_ratio_limits": [0, 10],
        "position_limits": None,
        "orientation_limits": None,
        "uncouple_pos_ori": True,
        "input_type": "delta",
        "input_ref_frame": "world",
        "interpolation": None,
        "ramp_ratio": 0.2,
        "gripper": {"type": "GRIP"},
    }
    controller = {"type": "BASIC", "body_parts": {"right": arm}}
    return controller if num_robots == 1 else [controller] * num_robots


@cache
def _without_visuals(environment: Any) -> Any:
    """Returns a subclass of a robosuite environment whose model lacks the meshes and textures that are only drawn.

    They have no weight and collide with nothing, yet they take nine tenths of the model's memory and of the time to
    compile it. Their geometries remain, as points, for code that asks for one by its name.
    """

    def edit_model_xml(self: Any, xml: str) -> str:
        root = ElementTree.fromstring(environment.edit_model_xml(self, xml))
        drawn_only = {"group": "1", "contype": "0", "conaffinity": "0"}
        for geometry in root.iter("geom"):
            if geometry.get("mesh") is not None and drawn_only.items() <= geometry.attrib.items():
                del geometry.attrib["mesh"]
                geometry.attrib |= {"type": "sphere", "size": "0.001", "mass": "0"}
        meshes = {geometry.get("mesh") for geometry in root.iter("geom")}
        for assets in root.iter("asset"):
            for material in assets.iter("material"):
                material.attrib.pop("texture", None)
            for asset in list(assets):
                if asset.tag == "texture" or (asset.tag == "mesh" and asset.get("name") not in meshes):
                    assets.remove(asset)
        return ElementTree.tostring(root, encoding="unicode")

    # robosuite's metaclass registers the class
    name = f"{environment.__name__}WithoutVisuals"
    return type(environment)(name, (environment,), {"edit_model_xml": edit_model_xml})


def require_robosuite() -> None:
    """Raises an ``ImportError`` that says how to install robosuite, if it is missing."""
    if importlib.util.find_spec("robosuite") is None:
        raise ImportError(f"env=robomimic/... needs robosuite: {INSTALL}.")


def make_simulator(
    env_args: Mapping[str, Any],
    simulation_timestep: float = SIMULATION_TIMESTEP,
    *,
    has_visuals: bool = True,
    model_seed: int = 0,
    **overrides: Any,
) -> Any:
    """Makes the robosuite environment that ``env_args`` describes, with soft resets.

    Args:
        env_args (mapping): the environment, see :meth:`RobomimicTask.env_args`.
        simulation_timestep (float, optional): the seconds of physics in a simulation step. robosuite's controllers,
            which take most of its time, run once in each. The setting is that of the whole process.

    Keyword Args:
        has_visuals (bool, optional): whether the model has what is only drawn. Without it nothing can be drawn and the
            model cannot be recorded; the robots move the same, and take less memory. Defaults to ``True``.
        model_seed (int, optional): of what is drawn once for all episodes, such as the size of the cube of ``Lift``.
            Defaults to ``0``.
        **overrides: further keyword arguments of robosuite's environment.

    Raises:
        ImportError: without robosuite, or the package that defines the environment.
        ValueError: if a control step is no multiple of ``simulation_timestep``.
    """
    control_timestep = 1 / env_args["env_kwargs"].get("control_freq", 20)
    # robosuite rounds the number of steps down
    if simulation_timestep <= 0 or not np.isclose(
        int(control_timestep / simulation_timestep) * simulation_timestep, control_timestep
    ):
        raise ValueError(
            f"simulation_timestep={simulation_timestep} s does not divide a control step of {control_timestep} s; "
            f"{SIMULATION_TIMESTEP} is robosuite's, 0.005 twice as fast."
        )
    require_robosuite()
    # robosuite would print ten lines about optional settings and packages whenever it is imported
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    import robosuite
    from robosuite import macros

    macros.SIMULATION_TIMESTEP = simulation_timestep
    name = env_args["env_name"]
    if name.startswith("Primitive"):
        importlib.import_module("torchrl_genpo.envs.robomimic.tasks")
    for package in PACKAGES:
        if name not in robosuite.ALL_ENVIRONMENTS and importlib.util.find_spec(package) is not None:
            importlib.import_module(package)
    if name not in robosuite.ALL_ENVIRONMENTS:
        hints = "; ".join(f"{package}: {command}" for package, command in PACKAGES.items())
        raise ImportError(f"robosuite has no environment {name!r}. Other packages define more: {hints}.")
    # a hard reset compiles the model again, 40 times slower
    options = {**env_args["env_kwargs"], "hard_reset": False, "ignore_done": True}
    options |= {"has_renderer": False, "use_camera_obs": False, "seed": model_seed, **overrides}
    from torchrl_genpo.envs.robomimic.control import with_compiled_control  # numba comes with robosuite

    environment = robosuite.environments.base.REGISTERED_ENVS[name]
    simulator = with_compiled_control(environment if has_visuals else _without_visuals(environment))(**options)
    for robot in simulator.robots:
        robot.robot_model.mujoco_model = None  # a model of the robot alone, visuals included, that nothing reads
    return simulator


def set_simulator_seed(simulator: Any, seed: int) -> None:
    """Seeds this and all later episodes; robosuite's own seed reaches neither them nor the placement of objects."""
    simulator.rng.bit_generator.state = np.random.default_rng(check_seed(seed)).bit_generator.state
    samplers = [getattr(simulator, "placement_initializer", None)]
    while samplers:
        sampler = samplers.pop()
        if sampler is not None:
            sampler.rng = simulator.rng
            samplers += list(getattr(sampler, "samplers", {}).values())


def observation_parts(raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the parts of robosuite's observation as robomimic does; the objects' state becomes ``object``."""
    parts = {key: np.asarray(value) for key, value in raw.items() if key.startswith("robot") and "proprio" not in key}
    if "object-state" in raw:
        parts["object"] = np.asarray(raw["object-state"])
    return parts
