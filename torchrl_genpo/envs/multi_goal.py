# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""MultiGoal is a point mass with equally good goals: it tells policies that keep all from those that choose one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

__all__ = ["MULTI_GOAL", "MultiGoalEnv"]

MULTI_GOAL = "torchrl_genpo/MultiGoal-v0"


class MultiGoalEnv(gymnasium.Env):
    r"""A point that sets its velocity, and goals on a circle around its start, of which it has to reach one.

    The reward of a step is :math:`-30\,|a|^2 - \min_g |x - g|^2`, and 10 more where a goal is reached, which ends the
    episode. From the start every goal is as far as any other, so the best policies differ in where they go: what
    tells them apart is the entropy of the reached goals, which :func:`~torchrl_genpo.training.evaluate` adds to
    the return.

    Beside ``observation``, the position, it observes ``reached_goal`` ``[num_goals]``, 1 at the goal that was reached,
    and ``success`` ``[1]``, whether one was; neither is an input of the policy.

    References:
        The constants and the four goals are those of Haarnoja et al., "Reinforcement Learning with Deep Energy-Based
        Policies", arXiv 1702.08165, as used by PolicyFlow, arXiv 2602.01156, and others.

    Args:
        num_goals (int, optional): the number of goals on the circle; the first is at angle 0. Defaults to ``4``.
        render_mode (str, optional): ``"rgb_array"`` for pictures.

    Raises:
        ValueError: if there are fewer than 2 goals.

    Examples:
        >>> from torchrl_genpo.envs import make_env
        >>> env = make_env("multi_goal", num_envs=2, seed=0)
        >>> env.rollout(3)["reached_goal"].shape
        torch.Size([2, 3, 4])
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  # Gymnasium's convention

    RADIUS = 5.0  # the radius of the circle of goals
    BOUND = 7.0  # the largest coordinate of the position
    THRESHOLD = 1.0  # a goal this near is reached
    INITIAL_SCALE = 0.1  # standard deviation of the first position
    ACTION_COST, DISTANCE_COST, GOAL_REWARD = 30.0, 1.0, 10.0

    def __init__(self, num_goals: int = 4, render_mode: str | None = None) -> None:
        if num_goals < 2:
            raise ValueError(f"num_goals must be at least 2, got {num_goals}.")
        angle = 2 * np.pi * np.arange(num_goals) / num_goals
        self.goals = self.RADIUS * np.stack([np.cos(angle), np.sin(angle)], -1)
        self.render_mode = render_mode
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = Dict(
            observation=Box(-self.BOUND, self.BOUND, (2,), np.float32),
            reached_goal=Box(0.0, 1.0, (num_goals,), np.float32),
            success=Box(0.0, 1.0, (1,), np.float32),
        )
        self.state = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Puts the point near the centre."""
        super().reset(seed=seed)
        self.state = self.INITIAL_SCALE * self.np_random.standard_normal(2)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Moves the point by the action."""
        action = np.clip(action, -1.0, 1.0).astype(np.float64)
        self.state = np.clip(self.state + action, -self.BOUND, self.BOUND)
        observed = self._observe()
        reached = bool(observed["success"].item())
        reward = -self.ACTION_COST * (action**2).sum() - self.DISTANCE_COST * self._distances().min() ** 2
        return observed, float(reward + self.GOAL_REWARD * reached), reached, False, {}

    def _distances(self) -> np.ndarray:
        return np.linalg.norm(self.state - self.goals, axis=-1)

    def _observe(self) -> dict[str, np.ndarray]:
        distances = self._distances()
        reached = np.zeros(len(self.goals), np.float32)
        reached[distances.argmin()] = distances.min() < self.THRESHOLD
        return {
            "observation": self.state.astype(np.float32),
            "reached_goal": reached,
            "success": reached.sum(keepdims=True),
        }

    def render(self) -> np.ndarray:
        """Draws the goals in green and the point in black, ``[200, 200, 3]``."""
        axis = np.linspace(-self.BOUND, self.BOUND, 200)
        grid = np.stack(np.meshgrid(axis, -axis), -1)
        picture = np.full((200, 200, 3), 255, np.uint8)
        for goal in self.goals:
            picture[np.linalg.norm(grid - goal, axis=-1) < self.THRESHOLD] = (120, 200, 120)
        picture[np.linalg.norm(grid - self.state, axis=-1) < 0.25] = 0
        return picture


gymnasium.register(MULTI_GOAL, f"{__name__}:MultiGoalEnv", max_episode_steps=30)
