# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""robosuite's operational-space control of fixed arms, with its mathematics compiled.

robosuite computes the torques of an arm anew in each of the 25 simulation steps of a control step, by dozens of calls
of NumPy, which takes three quarters of its time. Here the first simulation step of each control step is robosuite's
own, and sets the goals; the others compute the same torques in one compiled function, equal up to rounding.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import mujoco
import numba
import numpy as np

__all__ = ["with_compiled_control"]

NULLSPACE_KP = 10.0  # of robosuite's nullspace_torques
LEAST_PIVOT = 1e-10  # a matrix that is this close to a singular one is left to robosuite, which truncates it


@numba.njit(cache=True)
def _factorise(matrix: np.ndarray, size: int) -> bool:
    """Overwrites a symmetric matrix by its Cholesky factor; returns whether it is well conditioned."""
    for i in range(size):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k]
            if i == j:
                if total < LEAST_PIVOT * matrix[i, i]:
                    return False
                matrix[i, i] = math.sqrt(total)
            else:
                matrix[i, j] = total / matrix[j, j]
    return True


@numba.njit(cache=True)
def _solve(factor: np.ndarray, size: int, vector: np.ndarray) -> None:
    """Overwrites a vector by the solution for it, given a Cholesky factor."""
    for i in range(size):
        for k in range(i):
            vector[i] -= factor[i, k] * vector[k]
        vector[i] /= factor[i, i]
    for i in range(size - 1, -1, -1):
        for k in range(i + 1, size):
            vector[i] -= factor[k, i] * vector[k]
        vector[i] /= factor[i, i]


@numba.njit(cache=True)
def _apply_torques(
    ctrl: np.ndarray,
    jacobian: np.ndarray,
    mass: np.ndarray,
    qpos: np.ndarray,
    qvel: np.ndarray,
    bias: np.ndarray,
    position: np.ndarray,
    orientation: np.ndarray,
    columns: np.ndarray,
    constants: np.ndarray,
    indexes: np.ndarray,
    goal: np.ndarray,
    is_uncoupled: bool,
) -> bool:
    """Writes the torques of one arm, of Khatib's operational-space law, into ``ctrl``.

    Args:
        ctrl (array): ``[actuators]``, of the whole model, as ``qpos``, ``qvel`` and ``bias`` (``[nv]``).
        jacobian (array): of the arm's site, ``[6, nv]``.
        mass (array): ``[nv, nv]``.
        position (array): of the site, ``[3]``.
        orientation (array): of the site, ``[9]``, by rows.
        columns (array): ``[n]``, where the arm's joints stand in ``qvel``.
        constants (array): ``[5, n]``: initial joints, lowest and highest torques, then (of six) stiffness and damping.
        indexes (array): ``[2, n]``, where the joints stand in ``qpos``, and their motors in ``ctrl``.
        goal (array): ``[12]``, position and, by rows, orientation.
        is_uncoupled (bool): whether force and torque are decoupled from each other.

    Returns:
        Whether the matrices could be inverted; otherwise nothing was written.
    """
    n = len(columns)
    inertia, jac = np.empty((n, n)), np.empty((6, n))
    speed, pull = np.empty(n), np.empty(n)
    for i in range(n):
        for j in range(n):
            inertia[i, j] = mass[columns[i], columns[j]]
        for k in range(6):
            jac[k, i] = jacobian[k, columns[i]]
        speed[i] = qvel[columns[i]]
        pull[i] = NULLSPACE_KP * (constants[0, i] - qpos[indexes[0, i]]) - 2 * math.sqrt(NULLSPACE_KP) * speed[i]

    wrench = np.empty(6)  # desired force and torque
    for k in range(3):
        wrench[k] = goal[k] - position[k]
        wrench[3 + k] = 0.0
    for c in range(3):  # half the sum of the cross products of the axes, present and desired
        ax, ay, az = orientation[c], orientation[3 + c], orientation[6 + c]
        bx, by, bz = goal[3 + c], goal[6 + c], goal[9 + c]
        wrench[3] += 0.5 * (ay * bz - az * by)
        wrench[4] += 0.5 * (az * bx - ax * bz)
        wrench[5] += 0.5 * (ax * by - ay * bx)
    for k in range(6):
        velocity = 0.0
        for i in range(n):
            velocity += jac[k, i] * speed[i]
        wrench[k] = wrench[k] * constants[3, k] - velocity * constants[4, k]

    # J M^-1 J^T, the inverse of the inertia that the site feels
    if not _factorise(inertia, n):
        return False
    mobility, solved = np.empty((6, 6)), np.empty((6, n))
    for k in range(6):
        for i in range(n):
            solved[k, i] = jac[k, i]
        _solve(inertia, n, solved[k])
        for j in range(6):
            total = 0.0
            for i in range(n):
                total += jac[j, i] * solved[k, i]
            mobility[k, j] = total
    full, linear, angular = mobility.copy(), mobility[:3, :3].copy(), mobility[3:, 3:].copy()
    if not (_factorise(full, 6) and _factorise(linear, 3) and _factorise(angular, 3)):
        return False
    if is_uncoupled:
        _solve(linear, 3, wrench[:3])
        _solve(angular, 3, wrench[3:])
    else:
        _solve(full, 6, wrench)

    # (I - J^T lambda J M^-1) M pull: what pulls to the initial joints and does not move the site
    image = np.zeros(6)
    for k in range(6):
        for i in range(n):
            image[k] += jac[k, i] * pull[i]
    _solve(full, 6, image)
    for i in range(n):
        torque = bias[columns[i]]
        for k in range(6):
            torque += jac[k, i] * (wrench[k] - image[k])
        for j in range(n):
            torque += mass[columns[i], columns[j]] * pull[j]
        ctrl[indexes[1, i]] = min(max(torque, constants[1, i]), constants[2, i])
    return True


class _Arm:
    """One arm of a robot, as the compiled function needs it."""

    def __init__(self, controller: Any, robot: Any, part: str) -> None:
        model = controller.sim.model
        self.controller, self.site = controller, model.site_name2id(controller.ref_name)
        self.columns = np.array(controller.qvel_index)
        actuators = robot._ref_actuators_indexes_dict[part]
        self.indexes = np.array([controller.qpos_index, actuators])
        self.constants = np.zeros((5, max(6, len(self.columns))))
        self.constants[1:3, : len(actuators)] = model.actuator_ctrlrange[actuators].T
        self.goal = np.empty(12)
        self.jacobian = np.empty((6, model.nv))

    def take_goal(self) -> None:
        """Reads the goal that robosuite's controller has just been set, in the frame of the world."""
        controller, n = self.controller, len(self.columns)
        position, orientation = controller.goal_pos, controller.goal_ori
        if controller.input_ref_frame == "base":
            position = controller.origin_pos + np.dot(controller.origin_ori, position)
            orientation = np.dot(controller.origin_ori, orientation)
        self.goal[:3], self.goal[3:] = position, np.ravel(orientation)
        self.constants[0, :n] = controller.initial_joint
        self.constants[3, :6], self.constants[4, :6] = controller.kp, controller.kd

    def apply(self, model: Any, data: Any, mass: np.ndarray) -> bool:
        """Writes the torques of the present state; returns whether that was possible."""
        mujoco.mj_jacSite(model, data, self.jacobian[:3], self.jacobian[3:], self.site)
        return _apply_torques(
            data.ctrl,
            self.jacobian,
            mass,
            data.qpos,
            data.qvel,
            data.qfrc_bias,
            data.site_xpos[self.site],
            data.site_xmat[self.site],
            self.columns,
            self.constants,
            self.indexes,
            self.goal,
            self.controller.uncoupling,
        )


def _find_arms(simulator: Any) -> list[_Arm] | None:
    """The arms of a simulator, or ``None`` where something moves in another way than fixed arms and simple grippers."""
    from robosuite.controllers.parts.arm import OperationalSpaceController
    from robosuite.controllers.parts.gripper.simple_grip import SimpleGripController
    from robosuite.robots.fixed_base_robot import FixedBaseRobot

    arms = []
    for robot in simulator.robots:
        for part, controller in robot.composite_controller.part_controllers.items():
            if type(robot) is not FixedBaseRobot or getattr(controller, "interpolator", None) is not None:
                return None
            if type(controller) is OperationalSpaceController:
                if (controller.interpolator_pos, controller.interpolator_ori) != (None, None):
                    return None
                arms.append(_Arm(controller, robot, part))
            elif type(controller) is not SimpleGripController:  # whose command is the same in all of a control step
                return None
    return arms


@cache
def with_compiled_control(environment: Any) -> Any:
    """Returns a subclass of a robosuite environment whose arms take compiled torques.

    Robots that are no fixed arms under operational-space control move as robosuite moves them.
    """

    def reset(self: Any) -> Any:
        result = environment.reset(self)
        self._arms = _find_arms(self) if self.lite_physics else None
        self._mass = np.empty((self.sim.model.nv, self.sim.model.nv))
        self._skipped = 0
        # what is observed is sampled in the first simulation step of each control step
        rates = {observable._sampling_timestep for observable in self._observables.values()}
        if rates != {self.control_timestep}:
            self._arms = None
        return result

    def _pre_action(self: Any, action: np.ndarray, policy_step: bool = False) -> None:
        if self._arms is None:
            environment._pre_action(self, action, policy_step)
            return
        if policy_step:
            environment._pre_action(self, action, policy_step)
            for arm in self._arms:
                arm.take_goal()
            return
        model, data = self.sim.model._model, self.sim.data._data
        mujoco.mj_fullM(model, self._mass, data.qM)
        if not all(arm.apply(model, data, self._mass) for arm in self._arms):
            environment._pre_action(self, action, policy_step)

    def _update_observables(self: Any, force: bool = False) -> None:
        """Adds up the time of simulation steps in which nothing is sampled, for the last of a control step."""
        if self._arms is None or force or not next(iter(self._observables.values()))._sampled:
            environment._update_observables(self, force)
            return
        self._skipped += 1
        if self._skipped < int(self.control_timestep / self.model_timestep) - 1:
            return
        for observable in self._observables.values():
            for _ in range(self._skipped - 1):
                observable._time_since_last_sample += self.model_timestep
        environment._update_observables(self)
        self._skipped = 0

    # robosuite's metaclass registers the class
    members = {"reset": reset, "_pre_action": _pre_action, "_update_observables": _update_observables, "_arms": None}
    return type(environment)(f"{environment.__name__}WithCompiledControl", (environment,), members)
