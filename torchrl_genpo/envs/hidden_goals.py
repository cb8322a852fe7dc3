# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Searches for a hidden goal by attempts that remember nothing: the best policy is a mixture of several actions."""

from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box, Dict

__all__ = ["ATTEMPTS", "HIDDEN_POINT", "HIDDEN_REACH", "NUM_GOALS", "HiddenGoalEnv", "HiddenPointEnv", "HiddenReachEnv"]

HIDDEN_POINT, HIDDEN_REACH = "torchrl_genpo/HiddenPoint-v0", "torchrl_genpo/HiddenReach-v0"
NUM_GOALS = 4
ATTEMPTS = 20  # after which an episode is truncated


class HiddenGoalEnv(gymnasium.Env):
    """Attempts to find the one of four goals that an episode hides; a task says what is seen and what an attempt is.

    An attempt, which is a step, has the reward -1, and 0 if it finds the goal, which ends the episode. What is observed
    stays the same in an episode and tells neither which goal it is nor what has been tried. So whoever tries one goal
    alone fails for ever in three episodes of four, and the best policy without a memory tries all alike: it fails three
    times in the mean. No bonus on the entropy is needed to keep all goals. A policy of one bump, however wide, chooses
    a goal or misses most of the time.

    Beside ``observation``, it observes ``success`` ``[1]``, whether the attempt found the goal, no input of the policy.

    References:
        Singh et al., "Learning Without State-Estimation in Partially Observable Markovian Decision Processes", 1994,
        say why the best policy without a memory may have to be stochastic.

    Args:
        action_dim (int): the size of an action.

    Examples:
        >>> from torchrl_genpo.envs import make_env
        >>> make_env("hidden_point", num_envs=2, seed=0).reset()["success"].shape
        torch.Size([2, 1])
    """

    THRESHOLD: float  # an attempt that ends this near finds the goal

    def __init__(self, action_dim: int) -> None:
        self.action_space = Box(-1.0, 1.0, (action_dim,), np.float32)
        self.observation_space = Dict(
            observation=Box(-np.inf, np.inf, (2,), np.float32), success=Box(0.0, 1.0, (1,), np.float32)
        )
        self.state = np.zeros(3)  # the number of the hidden goal, and what is observed

    def begin(self) -> np.ndarray:
        """Draws what an episode observes, ``[2]``."""
        raise NotImplementedError

    def goals(self, observed: np.ndarray) -> np.ndarray:
        """Returns the positions of the goals, ``[4, 2]``."""
        raise NotImplementedError

    def attempt(self, observed: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Returns the position ``[2]`` that an attempt ends in."""
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Hides a goal."""
        super().reset(seed=seed)
        self.state = np.array([self.np_random.integers(NUM_GOALS), *self.begin()])
        return self._observe(False), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Makes one attempt."""
        hidden, observed = int(self.state[0]), self.state[1:]
        end = self.attempt(observed, np.clip(action, -1.0, 1.0).astype(np.float64))
        found = bool(np.linalg.norm(end - self.goals(observed)[hidden]) < self.THRESHOLD)
        return self._observe(found), -float(not found), found, False, {}

    def _observe(self, found: bool) -> dict[str, np.ndarray]:
        return {"observation": self.state[1:].astype(np.float32), "success": np.array([found], np.float32)}


class HiddenPointEnv(HiddenGoalEnv):
    """A finger that presses a point of the plane, ``[2]``; the goals are the corners of a square.

    It observes the first corner: the square is turned by another angle in each episode.
    """

    RADIUS = 0.7  # of the square's corners
    TURN = np.pi / 8  # the largest angle of the first corner
    THRESHOLD = 0.25

    def __init__(self) -> None:
        super().__init__(action_dim=2)

    def begin(self) -> np.ndarray:
        angle = self.np_random.uniform(-self.TURN, self.TURN)
        return np.array([np.cos(angle), np.sin(angle)])

    def goals(self, observed: np.ndarray) -> np.ndarray:
        cos, sin = self.RADIUS * observed
        return np.array([[cos, sin], [-sin, cos], [-cos, -sin], [sin, -cos]])

    def attempt(self, observed: np.ndarray, action: np.ndarray) -> np.ndarray:
        return action


ARM = """
<mujoco>
  <option timestep="0.01" integrator="implicitfast" gravity="0 0 0"/>
  <default>
    <joint axis="0 0 1" damping="0.3" armature="0.02"/>
    <geom type="capsule" size="0.04" density="300" contype="0" conaffinity="0"/>
  </default>
  <worldbody>
    <body>
      <joint name="shoulder"/>
      <geom fromto="0 0 0 0.5 0 0"/>
      <body pos="0.5 0 0">
        <joint name="elbow"/>
        <geom fromto="0 0 0 0.5 0 0"/>
        <site name="fingertip" pos="0.5 0 0"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position joint="shoulder" kp="80" dampratio="1"/>
    <position joint="elbow" kp="20" dampratio="1"/>
  </actuator>
</mujoco>
"""


class HiddenReachEnv(HiddenGoalEnv):
    """An arm of two links that feels for a button; the goals are four places, at two distances, around its shoulder.

    An action is the angles that the shoulder and the elbow are to turn to, ``[2]``, where 1 is 2.5 rad. The arm begins
    each attempt of an episode at rest, in the same pose near straight, of which it observes the two angles in rad; half
    a second later its fingertip is where it is. Most places can be reached with the elbow to either side.
    """

    PLACES = ((0.95, -1.0), (0.95, 1.0), (0.5, -1.6), (0.5, 1.6))  # the distance from the shoulder, and the angle
    GOALS = np.array([[r * np.cos(angle), r * np.sin(angle)] for r, angle in PLACES])
    THRESHOLD = 0.2
    FIRST_ANGLES = 0.2  # the largest angle that a joint begins with
    RANGE = 2.5  # the angle that an action of 1 asks for
    SUBSTEPS = 50

    def __init__(self) -> None:
        super().__init__(action_dim=2)
        self.model = mujoco.MjModel.from_xml_string(ARM)
        self.data = mujoco.MjData(self.model)

    def begin(self) -> np.ndarray:
        return self.np_random.uniform(-self.FIRST_ANGLES, self.FIRST_ANGLES, 2)

    def goals(self, observed: np.ndarray) -> np.ndarray:
        return self.GOALS

    def attempt(self, observed: np.ndarray, action: np.ndarray) -> np.ndarray:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = observed
        self.data.ctrl[:] = self.RANGE * action
        mujoco.mj_step(self.model, self.data, self.SUBSTEPS)
        mujoco.mj_kinematics(self.model, self.data)
        return self.data.site_xpos[0, :2].copy()


gymnasium.register(HIDDEN_POINT, f"{__name__}:HiddenPointEnv", max_episode_steps=ATTEMPTS)
gymnasium.register(HIDDEN_REACH, f"{__name__}:HiddenReachEnv", max_episode_steps=ATTEMPTS)
