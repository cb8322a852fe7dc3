# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Scripted experts, with noise, for demonstrations that are made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchrl_genpo.envs.robomimic.env import make_simulator, observation_parts, set_simulator_seed

__all__ = ["EXPERTS", "CanExpert", "Expert", "demonstrate"]

Observation = Mapping[str, np.ndarray]
OPEN, CLOSED = -1.0, 1.0


@dataclass
class Phase:
    """One movement of one arm: where the gripper goes, open or closed, until when."""

    target: Callable[[Observation], np.ndarray]  # position of the gripper, m
    gripper: float
    tolerance: float = 0.015  # of the position, m; inf to wait for min_steps only
    min_steps: int = 0
    rotation: Callable[[Observation], np.ndarray] | None = None  # wanted rotation vector, rad; None to hold


class Expert:
    """Proportional control through a sequence of phases, with random speed and noise.

    Args:
        simulator: the robosuite environment.
        rng (numpy.random.Generator): of speed, waypoints and noise.
        noise (float): deviation of the noise added to actions in ``[-1, 1]``.
    """

    GAIN = 10.0

    def __init__(self, simulator: Any, rng: np.random.Generator, noise: float = 0.05) -> None:
        self.simulator, self.rng, self.noise = simulator, rng, noise
        self.speed = rng.uniform(0.7, 1.0)
        self.index = self.steps = 0
        self.phases = self.plan()

    def plan(self) -> list[Phase]:
        """The phases of the task."""
        raise NotImplementedError

    def __call__(self, raw: Observation) -> np.ndarray:
        """The action for an observation of robosuite."""
        action = self.move("robot0", self.phases, raw)
        return np.clip(action, -1, 1)

    def move(self, robot: str, phases: list[Phase], raw: Observation) -> np.ndarray:
        """The action of one arm in its present phase; goes on to the next when that is done."""
        phase = phases[self.index]
        error = phase.target(raw) - raw[f"{robot}_eef_pos"]
        action = np.zeros(7)
        action[:3] = np.clip(self.GAIN * error, -1, 1) * self.speed
        action[:6] += self.noise * self.rng.standard_normal(6)
        action[6] = phase.gripper
        self.steps += 1
        if np.linalg.norm(error) < phase.tolerance and self.steps > phase.min_steps:
            self.index, self.steps = min(self.index + 1, len(phases) - 1), 0
        return action


class CanExpert(Expert):
    """Takes the can from the left bin to its place in the right one (robosuite's ``PickPlaceCan``)."""

    def plan(self) -> list[Phase]:
        """Above the can, down, close, up, over the bin, down, open, up."""
        env, draw = self.simulator, self.rng.uniform
        place = env.target_bin_placements[env.object_to_id["can"]][:2] + draw(-0.03, 0.03, 2)
        carry, low = env.bin2_pos[2] + draw(0.26, 0.32), env.bin2_pos[2] + 0.1
        hover, inf = draw(0.08, 0.12), float("inf")
        above = np.array([0, 0, hover])
        deep = np.array([0, 0, 0.005])
        return [
            Phase(lambda raw: raw["Can_pos"] + above, OPEN),
            Phase(lambda raw: raw["Can_pos"] + deep, OPEN, tolerance=0.012),
            Phase(lambda raw: raw["Can_pos"] + deep, CLOSED, tolerance=inf, min_steps=10),
            Phase(lambda raw: np.array([*raw["robot0_eef_pos"][:2], carry]), CLOSED, tolerance=0.03),
            Phase(lambda raw: np.array([*place, carry]), CLOSED, tolerance=0.02),
            Phase(lambda raw: np.array([*place, low]), CLOSED, tolerance=0.02),
            Phase(lambda raw: raw["robot0_eef_pos"], OPEN, tolerance=inf, min_steps=6),
            Phase(lambda raw: raw["robot0_eef_pos"] + np.array([0, 0, 0.1]), OPEN, tolerance=0.0),
        ]


EXPERTS: dict[str, type[Expert]] = {"PickPlaceCan": CanExpert}
"""Experts by robosuite's name of the environment."""


def demonstrate(
    env_args: Mapping[str, Any],
    horizon: int,
    seeds: list[int],
    noise: float = 0.05,
    steps_after_success: int = 5,
) -> list[dict[str, Any] | None]:
    """One episode of the expert for each seed, as :func:`~torchrl_genpo.data.write_demonstrations` takes them.

    Args:
        env_args (mapping): the environment, see :func:`~torchrl_genpo.data.read_env_args`.
        horizon (int): longest episode, in control steps.
        seeds (list of int): of the episodes.
        noise (float, optional): deviation of the noise added to actions in ``[-1, 1]``.
        steps_after_success (int, optional): how long the task has to stay solved.

    Returns:
        For each seed the episode, or ``None`` where the expert failed.

    Raises:
        ValueError: if there is no expert for the environment.
    """
    name = env_args["env_name"]
    if name not in EXPERTS:
        raise ValueError(f"There is no scripted expert for {name!r}; there are {', '.join(sorted(EXPERTS))}.")
    # lite physics would make the recorded states differ from those that robomimic plays back
    simulator = make_simulator(env_args, lite_physics=False)
    episodes = []
    for seed in seeds:
        set_simulator_seed(simulator, seed)
        simulator.reset()
        expert = EXPERTS[name](simulator, np.random.default_rng(seed), noise)
        episodes.append(_episode(simulator, expert, horizon, steps_after_success))
    simulator.close()
    return episodes


def _episode(simulator: Any, expert: Expert, horizon: int, steps_after_success: int) -> dict[str, Any] | None:
    raw = simulator._get_observations(force_update=True)
    steps: dict[str, list[Any]] = {key: [] for key in ("obs", "next_obs", "actions", "rewards", "states")}
    solved = 0
    for _ in range(horizon):
        steps["states"].append(np.array(simulator.sim.get_state().flatten()))
        steps["obs"].append(observation_parts(raw))
        action = expert(raw)
        raw, reward, _, _ = simulator.step(action)
        steps["next_obs"].append(observation_parts(raw))
        steps["actions"].append(action)
        steps["rewards"].append(float(reward))
        solved = solved + 1 if simulator._check_success() else 0
        if solved > steps_after_success:
            break
    if not solved:
        return None
    episode: dict[str, Any] = {key: np.array(steps[key]) for key in ("actions", "rewards", "states")}
    for key in ("obs", "next_obs"):
        episode[key] = {part: np.stack([step[part] for step in steps[key]]) for part in steps[key][0]}
    episode["dones"] = np.zeros(len(episode["actions"]), np.int64)
    episode["dones"][-1] = 1
    episode["model_file"] = simulator.sim.model.get_xml()
    return episode
