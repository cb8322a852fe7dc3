# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Records episodes of a simulator as robomimic's files hold them."""

from __future__ import annotations

from typing import Any

import numpy as np

from torchrl_genpo.envs.robomimic.simulator import observation_parts

__all__ = ["Recorder"]

STEPS_AFTER_SUCCESS = 5  # control steps for which the task has to stay solved


class Recorder:
    """Wraps a robosuite environment and keeps the steps of its episode.

    Args:
        simulator: the robosuite environment.

    Attributes:
        has_succeeded (bool): whether the task has stayed solved; the episode ends there.
    """

    def __init__(self, simulator: Any) -> None:
        self._simulator = simulator
        # robosuite's lite physics would make the recorded states differ from those that robomimic plays back
        simulator.lite_physics = False
        self._clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._simulator, name)

    def _clear(self) -> None:
        self._steps: dict[str, list[Any]] = {key: [] for key in ("obs", "next_obs", "actions", "rewards", "states")}
        self._solved, self.has_succeeded = 0, False

    def reset(self) -> Any:
        """Starts an episode, and forgets the last one."""
        self._clear()
        return self._simulator.reset()

    def step(self, action: np.ndarray) -> Any:
        """Takes a control step, and keeps it unless the episode has ended with success."""
        if self.has_succeeded:
            return self._simulator.step(action)
        self._steps["states"].append(np.array(self._simulator.sim.get_state().flatten()))
        self._steps["obs"].append(observation_parts(self._simulator._get_observations()))
        raw, reward, *_ = result = self._simulator.step(action)
        self._steps["next_obs"].append(observation_parts(raw))
        self._steps["actions"].append(np.array(action))
        self._steps["rewards"].append(float(reward))
        self._solved = self._solved + 1 if self._simulator._check_success() else 0
        self.has_succeeded = self._solved > STEPS_AFTER_SUCCESS
        return result

    def episode(self) -> dict[str, Any] | None:
        """Returns the episode for :func:`~torchrl_genpo.data.write_demonstrations`, or ``None`` if it ends unsolved."""
        if not self._solved:
            return None
        steps = self._steps
        episode: dict[str, Any] = {key: np.array(steps[key]) for key in ("actions", "rewards", "states")}
        for key in ("obs", "next_obs"):
            episode[key] = {part: np.stack([step[part] for step in steps[key]]) for part in steps[key][0]}
        episode["dones"] = np.zeros(len(episode["actions"]), np.int64)
        episode["dones"][-1] = 1
        episode["model_file"] = self._simulator.sim.model.get_xml()
        return episode
