# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Scripted experts with noise, which make demonstrations on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchrl_genpo.envs.robomimic.recorder import Recorder
from torchrl_genpo.envs.robomimic.simulator import SIMULATION_TIMESTEP, make_simulator, set_simulator_seed
from torchrl_genpo.envs.seeds import spawn_generator

__all__ = ["EXPERTS", "Arm", "Expert", "Phase", "demonstrate"]

Observation = Mapping[str, np.ndarray]
Point = Callable[[Observation], np.ndarray]
OPEN, CLOSED = -1.0, 1.0
WAIT = float("inf")  # the tolerance of a phase that ends after min_steps, wherever the gripper is


@dataclass
class Phase:
    """Describes one movement of an arm: where the gripper goes, open or closed, and when the movement is done."""

    target: Point  # the position of the gripper, m
    gripper: float
    tolerance: float = 0.015  # the distance at which the position is reached, m
    min_steps: int = 0
    ready: Callable[[], bool] | None = None  # a further condition, such as that the other arm holds still


class Arm:
    """Moves one arm through its phases by proportional control.

    Args:
        name (str): robosuite's name of the arm, such as ``robot0``.
        phases (list of Phase): the movements; the arm stays in the last one.
        speed (float): the part of the largest action that is used.
        stiffness (float): how strongly the gripper is kept in its first orientation; 0 for not at all.
    """

    GAIN = 10.0

    def __init__(self, name: str, phases: list[Phase], speed: float, stiffness: float) -> None:
        self.name, self.phases, self.speed, self.stiffness = name, phases, speed, stiffness
        self.index = self.steps = 0
        self._upright: np.ndarray | None = None

    def __call__(self, raw: Observation) -> np.ndarray:
        """Returns the action ``[7]`` of this step, and goes on to the next phase when the present one is done."""
        from robosuite.utils.transform_utils import quat2axisangle, quat_inverse, quat_multiply

        phase = self.phases[self.index]
        error = phase.target(raw) - raw[f"{self.name}_eef_pos"]
        orientation = raw[f"{self.name}_eef_quat"]
        if self._upright is None:
            self._upright = orientation
        turn = quat_multiply(self._upright, quat_inverse(orientation))
        turn = quat2axisangle(turn * (1.0 if turn[3] >= 0 else -1.0))  # the short way round
        self.steps += 1
        is_there = np.linalg.norm(error) < phase.tolerance and self.steps > phase.min_steps
        if is_there and (phase.ready is None or phase.ready()):
            self.index, self.steps = min(self.index + 1, len(self.phases) - 1), 0
        move = np.clip(self.GAIN * error, -1, 1) * self.speed
        return np.concatenate([move, np.clip(self.stiffness * turn, -1, 1), [phase.gripper]])


class Expert:
    """Moves all arms through their phases, with random speed and noise.

    Args:
        simulator: the robosuite environment, after its reset.
        rng (numpy.random.Generator): the generator of speed, waypoints and noise.
        noise (float): the deviation of the noise that is added to the arms' actions in ``[-1, 1]``.
    """

    STIFFNESS = 1.0  # how strongly the grippers keep their orientation

    def __init__(self, simulator: Any, rng: np.random.Generator, noise: float = 0.05) -> None:
        self.simulator, self.rng, self.noise = simulator, rng, noise
        self.arms = [
            Arm(f"robot{index}", phases, rng.uniform(0.7, 1.0), self.STIFFNESS)
            for index, phases in enumerate(self.plan())
        ]

    def plan(self) -> list[list[Phase]]:
        """Returns the phases of every arm."""
        raise NotImplementedError

    def __call__(self, raw: Observation) -> np.ndarray:
        """Returns the action for an observation of robosuite."""
        action = np.stack([arm(raw) for arm in self.arms])
        action[:, :6] += self.noise * self.rng.standard_normal((len(self.arms), 6))
        return np.clip(action, -1, 1).ravel()


def _at(point: np.ndarray) -> Point:
    return lambda raw: point


def _above(place: str | Callable[[], np.ndarray], height: float) -> Point:
    """Returns a point ``height`` above what is observed under a name, or above where ``place()`` is now."""
    up = np.array([0, 0, height])
    return (lambda raw: raw[place] + up) if isinstance(place, str) else (lambda raw: place() + up)


class CanExpert(Expert):
    """Takes the can from the left bin to its place in the right one (robosuite's ``PickPlaceCan``)."""

    STIFFNESS = 0.0  # the bin is at the end of the arm's reach, which has to lean there

    def plan(self) -> list[list[Phase]]:
        """Moves above the can, down, closes, moves up, over the bin, down, opens and moves up."""
        env, draw = self.simulator, self.rng.uniform
        place = env.target_bin_placements[env.object_to_id["can"]][:2] + draw(-0.03, 0.03, 2)
        carry, low = env.bin2_pos[2] + draw(0.26, 0.32), env.bin2_pos[2] + 0.1
        return [
            [
                Phase(_above("Can_pos", draw(0.08, 0.12)), OPEN),
                Phase(_above("Can_pos", 0.005), OPEN, tolerance=0.012),
                Phase(_above("Can_pos", 0.005), CLOSED, WAIT, min_steps=10),
                Phase(lambda raw: np.array([*raw["robot0_eef_pos"][:2], carry]), CLOSED, tolerance=0.03),
                Phase(_at(np.array([*place, carry])), CLOSED, tolerance=0.04),  # near the end of its reach
                Phase(_at(np.array([*place, low])), CLOSED, tolerance=0.04),
                Phase(lambda raw: raw["robot0_eef_pos"], OPEN, WAIT, min_steps=6),
                Phase(_above("robot0_eef_pos", 0.1), OPEN, tolerance=0.0),
            ]
        ]


class _TwoArmExpert(Expert):
    """Has the second arm hold a body by its grip; then the first arm works on it."""

    def hold(self, body: str) -> list[Phase]:
        """Returns the second arm's phases."""
        env = self.simulator

        def grip() -> np.ndarray:
            return env.point(body, env.GRIP)

        hover = self.rng.uniform(0.08, 0.12)
        return [
            Phase(_above(grip, hover), OPEN),
            Phase(_above(grip, 0.02), OPEN, tolerance=0.012),
            Phase(lambda raw: raw["robot1_eef_pos"], CLOSED, WAIT, min_steps=10),
            Phase(lambda raw: raw["robot1_eef_pos"], CLOSED, tolerance=0.0),
        ]

    def is_held(self) -> bool:
        """Says whether the second arm keeps still."""
        return self.arms[1].index == len(self.arms[1].phases) - 1

    def carried(self, body: str, offset: Any, goal: Callable[[], np.ndarray]) -> Point:
        """Returns where the first gripper has to go for a point of the body in its grasp to be at ``goal()``."""
        env = self.simulator
        return lambda raw: raw["robot0_eef_pos"] + goal() - env.point(body, offset)


class ThreadingExpert(_TwoArmExpert):
    """Threads the needle (:class:`~torchrl_genpo.envs.robomimic.tasks.PrimitiveTwoArmThreading`)."""

    def plan(self) -> list[list[Phase]]:
        """Takes the needle by its handle, lifts it, lines it up with the ring and pushes it through."""
        env, draw = self.simulator, self.rng.uniform
        handle = np.array([-0.035, 0, 0])

        def grip() -> np.ndarray:
            return env.point("needle", handle)

        def ring(ahead: float) -> Callable[[], np.ndarray]:
            return lambda: env.point("stand", env.RING + np.array([ahead, 0, 0]))

        def tip(ahead: float) -> Point:
            return self.carried("needle", env.TIP, ring(ahead))

        start = draw(-0.07, -0.05)
        return [
            [
                Phase(_above(grip, draw(0.08, 0.12)), OPEN),
                Phase(_above(grip, 0.0), OPEN, tolerance=0.01),
                Phase(lambda raw: raw["robot0_eef_pos"], CLOSED, WAIT, min_steps=10),
                Phase(lambda raw: np.array([*raw["robot0_eef_pos"][:2], 0.8 + 0.25]), CLOSED, tolerance=0.03),
                Phase(tip(start), CLOSED, tolerance=0.008, min_steps=5, ready=self.is_held),
                Phase(tip(0.03), CLOSED, tolerance=0.0),
            ],
            self.hold("stand"),
        ]


class BoxCleanupExpert(_TwoArmExpert):
    """Puts the lid on the box (:class:`~torchrl_genpo.envs.robomimic.tasks.PrimitiveTwoArmBoxCleanup`)."""

    def plan(self) -> list[list[Phase]]:
        """Takes the lid by its knob, lifts it, carries it over the box, lowers it and lets go."""
        env, draw = self.simulator, self.rng.uniform

        def knob() -> np.ndarray:
            return env.point("lid", env.KNOB)

        def lid(height: float) -> Point:
            return self.carried("lid", np.zeros(3), lambda: env.point("box", [0, 0, env.LID_HEIGHT + height]))

        return [
            [
                Phase(_above(knob, draw(0.08, 0.12)), OPEN),
                Phase(_above(knob, 0.0), OPEN, tolerance=0.01),
                Phase(lambda raw: raw["robot0_eef_pos"], CLOSED, WAIT, min_steps=10),
                Phase(lambda raw: np.array([*raw["robot0_eef_pos"][:2], 0.8 + 0.25]), CLOSED, tolerance=0.03),
                Phase(lid(0.08), CLOSED, tolerance=0.012, min_steps=5, ready=self.is_held),
                Phase(lid(0.0), CLOSED, tolerance=0.01),
                Phase(lambda raw: raw["robot0_eef_pos"], OPEN, WAIT, min_steps=6),
                Phase(_above("robot0_eef_pos", 0.1), OPEN, tolerance=0.0),
            ],
            self.hold("box"),
        ]


EXPERTS: dict[str, type[Expert]] = {
    "PickPlaceCan": CanExpert,
    "PrimitiveTwoArmBoxCleanup": BoxCleanupExpert,
    "PrimitiveTwoArmThreading": ThreadingExpert,
}
"""The experts by robosuite's names of their environments."""


def demonstrate(
    env_args: Mapping[str, Any],
    horizon: int,
    seeds: list[int],
    noise: float = 0.05,
    simulation_timestep: float = SIMULATION_TIMESTEP,
) -> list[dict[str, Any] | None]:
    """Makes one episode of the expert for each seed, for :func:`~torchrl_genpo.data.write_demonstrations`.

    Args:
        env_args (mapping): how the environment is made, see :func:`~torchrl_genpo.data.read_env_args`.
        horizon (int): the longest episode in control steps.
        seeds (list of int): the seeds of the episodes.
        noise (float, optional): the deviation of the noise that is added to actions in ``[-1, 1]``.
        simulation_timestep (float, optional): see :func:`~torchrl_genpo.envs.robomimic.simulator.make_simulator`.

    Returns:
        The episode for each seed, or ``None`` where the expert failed.

    Raises:
        ValueError: if there is no expert for the environment.
    """
    name = env_args["env_name"]
    if name not in EXPERTS:
        raise ValueError(f"There is no scripted expert for {name!r}; there are {', '.join(sorted(EXPERTS))}.")
    simulator = Recorder(make_simulator(env_args, simulation_timestep, model_seed=seeds[0]))
    episodes = []
    for seed in seeds:
        set_simulator_seed(simulator, seed)
        simulator.reset()
        expert = EXPERTS[name](simulator, spawn_generator(seed, 0), noise)  # a stream that the simulator has not
        raw = simulator._get_observations(force_update=True)
        for _ in range(horizon):
            raw, *_ = simulator.step(expert(raw))
            if simulator.has_succeeded:
                break
        episodes.append(simulator.episode())
    simulator.close()
    return episodes
