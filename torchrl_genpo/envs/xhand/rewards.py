# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The reward of the nut-bolt task, term by term."""

from __future__ import annotations

import numpy as np

from torchrl_genpo.config.fields import Options

__all__ = ["RewardWeights"]


class RewardWeights(Options):
    """Holds the weights of a step's reward, those of DexScrew (arXiv 2512.02011); ``w`` is the nut's speed, rad/s.

    Attributes:
        turning (float): the weight of ``clip(w, -4, 4)``.
        pose (float): the weight of the squared distance to the start pose, the thumb left out.
        torque (float): the weight of the sum of squared torques.
        work (float): the weight of the squared sum of the joints' absolute powers.
        overspeed (float): the weight of ``max(w - 10, 0)``.
        reach (float): the weight of the closeness of thumb and index finger to the nut,
            ``clip(1 - distance / reach, 0, 1)``.
        scale (float): the factor of the weighted sum.

    Examples:
        >>> import numpy as np
        >>> rest = np.zeros((1, 12))
        >>> terms = RewardWeights().terms(
        ...     speed=np.array([2.0]), pose=rest, torque=rest, velocity=rest, closeness=np.array([0.5])
        ... )
        >>> dict(zip(RewardWeights().names, terms[0].round(3).tolist()))["turning"]  # 0.01 * 6 * 2
        0.12
    """

    turning: float = 6.0
    pose: float = -0.5
    torque: float = -0.1
    work: float = -0.01
    overspeed: float = -0.3
    reach: float = 2.0
    scale: float = 0.01

    @property
    def names(self) -> list[str]:
        """The names of the terms, in the order of :meth:`terms`."""
        return [name for name in type(self).model_fields if name != "scale"]

    def terms(
        self, *, speed: np.ndarray, pose: np.ndarray, torque: np.ndarray, velocity: np.ndarray, closeness: np.ndarray
    ) -> np.ndarray:
        """Computes the weighted terms of a step, ``[num_envs, len(names)]``; their sum is the reward.

        Keyword Args:
            speed (np.ndarray): the speed of the nut in the direction that loosens it, ``[num_envs]``, rad/s.
            pose (np.ndarray): the joints' distances to the start pose, ``[num_envs, 12]``, rad.
            torque (np.ndarray): the torques of the joints, ``[num_envs, 12]``, N m.
            velocity (np.ndarray): the velocities of the joints, ``[num_envs, 12]``, rad/s.
            closeness (np.ndarray): the closeness of thumb and index finger to the nut, ``[num_envs]``, 1 where they are
                at its centre and 0 where they are out of reach.
        """
        values = {
            "turning": np.clip(speed, -4.0, 4.0),
            "pose": (pose[:, 3:] ** 2).sum(1),
            "torque": (torque**2).sum(1),
            "work": np.abs(torque * velocity).sum(1) ** 2,
            "overspeed": np.maximum(speed - 10.0, 0.0),
            "reach": np.clip(closeness, 0.0, 1.0),
        }
        return self.scale * np.stack([getattr(self, name) * values[name] for name in self.names], 1)
