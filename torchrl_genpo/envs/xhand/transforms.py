# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Transforms that make position targets of a policy's actions, and observations of a hand's sensors.

They read ``joint_position`` ``[..., n]``, rad. All that they remember travels in the tensordict, so that partial
resets, checkpoints and batches of any size need no code of their own. They draw from ``env.generator`` where the
environment has one, and otherwise from PyTorch's global state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import Transform

__all__ = ["ActionDelay", "DeltaTarget", "History", "Noise"]


class DeltaTarget(Transform):
    """Lets actions move position targets: ``target += scale * clip(action, -1, 1)``, clipped to the joints' limits.

    The environment takes absolute targets of all joints; the policy acts on those that are active. The target is an
    observation too, ``joint_target``, and starts where the joints start.

    Args:
        low (Tensor): the lowest targets ``[n]``.
        high (Tensor): the highest targets ``[n]``.

    Keyword Args:
        scale (float): the largest change of a target in one step, rad.
        active (sequence of int, optional): the joints that move. Defaults to all.
        masked (bool, optional): whether the action has all ``n`` numbers, of which the others are ignored, instead of
            the active ones alone. An ignored number still adds its noise to a flow's likelihood ratio. Defaults to
            ``False``.

    Examples:
        >>> from torchrl.envs import TransformedEnv
        >>> from torchrl_genpo.envs.xhand import NutBoltEnv, joint_limits
        >>> low, high = torch.as_tensor(joint_limits(), dtype=torch.float32)
        >>> env = TransformedEnv(NutBoltEnv(2), DeltaTarget(low, high, scale=0.04, active=range(8)))
        >>> td = env.step(env.reset().set("action", torch.ones(2, 8)))
        >>> (td["next", "joint_target"] - td["joint_target"])[0, 7:9]
        tensor([0.0400, 0.0000])
    """

    invertible = True

    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        *,
        scale: float,
        active: Sequence[int] | None = None,
        masked: bool = False,
    ) -> None:
        super().__init__(in_keys_inv=["action"], out_keys_inv=["action"])
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale}.")
        joints = list(range(len(low)) if active is None else active)
        if not joints or len(set(joints)) < len(joints) or not set(joints) <= set(range(len(low))):
            raise ValueError(f"active must name joints from 0 to {len(low) - 1}, each once, got {joints}.")
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.register_buffer("active", torch.as_tensor(joints), persistent=False)
        self.scale, self.masked = scale, masked

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"].clamp(-1.0, 1.0)
        if self.masked:
            action = action[..., self.active]
        target = tensordict["joint_target"].index_add(-1, self.active, self.scale * action).clamp(self.low, self.high)
        return tensordict.update({"joint_target": target, "action": target})

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict.set("joint_target", tensordict["joint_target"])

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return tensordict_reset.set("joint_target", tensordict_reset["joint_position"].clamp(self.low, self.high))

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Adds the target."""
        spec = observation_spec["joint_position"]
        low, high = (bound.expand(spec.shape) for bound in (self.low, self.high))
        observation_spec["joint_target"] = Bounded(low, high, shape=spec.shape, dtype=spec.dtype, device=spec.device)
        return observation_spec

    def transform_action_spec(self, action_spec: Composite) -> Composite:
        """Replaces absolute targets by changes in ``[-1, 1]``."""
        spec = action_spec["action"]
        shape = (*spec.shape[:-1], spec.shape[-1] if self.masked else len(self.active))
        action_spec["action"] = Bounded(-1.0, 1.0, shape=shape, dtype=spec.dtype, device=spec.device)
        return action_spec


class ActionDelay(Transform):
    """Delays actions by up to ``max_delay`` steps, a number that is drawn at every reset.

    It stands before the transform that makes the actions, because transforms see an action last to first. Until the
    first action arrives, the environment gets the joint positions of the reset. The delay, ``action_delay``
    ``[..., 1]``, is there for a critic; the actions on their way are ``action_queue`` ``[..., max_delay, n]``.

    Args:
        max_delay (int): the longest delay in steps; all delays up to it are equally likely.
    """

    invertible = True

    def __init__(self, max_delay: int) -> None:
        super().__init__(in_keys_inv=["action"], out_keys_inv=["action"])
        if max_delay < 0:
            raise ValueError(f"max_delay must not be negative, got {max_delay}.")
        self.max_delay = max_delay

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        queue = torch.cat([tensordict["action"].unsqueeze(-2), tensordict["action_queue"]], -2)
        index = tensordict["action_delay"].long().unsqueeze(-1)
        due = queue.take_along_dim(index, -2).squeeze(-2)
        return tensordict.update({"action_queue": queue[..., :-1, :], "action": due})

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict.update(tensordict.select("action_queue", "action_delay"))

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        initial = tensordict_reset["joint_position"]
        drawn = torch.randint(self.max_delay + 1, (*initial.shape[:-1], 1), generator=_generator(self))
        queue = initial.unsqueeze(-2).repeat_interleave(self.max_delay, -2)
        return tensordict_reset.update({"action_delay": drawn.to(initial), "action_queue": queue})

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Adds delay and queue."""
        spec = observation_spec["joint_position"]
        *batch, size = spec.shape
        kind = {"dtype": spec.dtype, "device": spec.device}
        observation_spec["action_delay"] = Bounded(0, self.max_delay, shape=(*batch, 1), **kind)
        observation_spec["action_queue"] = Unbounded((*batch, self.max_delay, size), **kind)
        return observation_spec


class Noise(Transform):
    """Adds to an observation, or to the action, an offset drawn at every reset and white noise drawn at every step.

    The offset is there for a critic as ``<in_key>_bias``. An action has the shape of ``joint_position``.

    Args:
        bias (float): the standard deviation of the offset.
        white (float): the standard deviation of the noise.

    Keyword Args:
        in_key (str): the key of the observation, or ``"action"``.
        out_key (str, optional): the key of the noisy observation. Defaults to ``in_key``.
    """

    invertible = True

    def __init__(self, bias: float, white: float, *, in_key: str, out_key: str | None = None) -> None:
        self.is_of_action = in_key == "action"
        if self.is_of_action:
            super().__init__(in_keys_inv=[in_key], out_keys_inv=[in_key])
        else:
            super().__init__(in_keys=[in_key], out_keys=[out_key or in_key])
        if not (0 <= bias < math.inf and 0 <= white < math.inf):
            raise ValueError(f"Standard deviations must be finite and not negative, got bias={bias}, white={white}.")
        self.bias, self.white = bias, white
        self._bias_key = f"{in_key}_bias"
        self._shape_key = "joint_position" if self.is_of_action else in_key

    def _draw(self, like: Tensor, deviation: float) -> Tensor:
        return deviation * torch.randn(like.shape, dtype=like.dtype, generator=_generator(self)).to(like.device)

    def _noisy(self, value: Tensor, bias: Tensor) -> Tensor:
        return value + bias + self._draw(value, self.white)

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self.is_of_action:
            tensordict.set("action", self._noisy(tensordict["action"], tensordict[self._bias_key]))
        return tensordict

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        bias = tensordict[self._bias_key]
        if not self.is_of_action:
            next_tensordict.set(self.out_keys[0], self._noisy(next_tensordict[self.in_keys[0]], bias))
        return next_tensordict.set(self._bias_key, bias)

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        value = tensordict_reset[self._shape_key]
        bias = self._draw(value, self.bias)
        if not self.is_of_action:
            tensordict_reset.set(self.out_keys[0], self._noisy(value, bias))
        return tensordict_reset.set(self._bias_key, bias)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Adds the noisy observation and the offset."""
        spec = observation_spec[self._shape_key]
        keys = [self._bias_key] if self.is_of_action else [self._bias_key, self.out_keys[0]]
        for key in keys:
            observation_spec[key] = Unbounded(spec.shape, dtype=spec.dtype, device=spec.device)
        return observation_spec


class History(Transform):
    """Keeps the last observations in one vector, the oldest first; a reset repeats its observation.

    TorchRL's ``CatFrames`` does the same with a buffer, which makes a checkpoint fit one batch size only.

    Args:
        length (int): the number of observations.

    Keyword Args:
        in_key (str): the key of an observation ``[..., n]``.
        out_key (str): the key of the vector ``[..., length * n]``, which later transforms must not change.
    """

    def __init__(self, length: int, *, in_key: str, out_key: str) -> None:
        super().__init__(in_keys=[in_key], out_keys=[out_key])
        if length < 1:
            raise ValueError(f"length must be at least 1 observation, got {length}.")
        if in_key == out_key:
            raise ValueError(f"in_key and out_key must differ, both are {in_key!r}.")
        self.num_frames = length

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        newest = next_tensordict[self.in_keys[0]]
        kept = tensordict[self.out_keys[0]][..., newest.shape[-1] :]
        return next_tensordict.set(self.out_keys[0], torch.cat([kept, newest], -1))

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        first = tensordict_reset[self.in_keys[0]]
        return tensordict_reset.set(self.out_keys[0], torch.cat([first] * self.num_frames, -1))

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Adds the vector."""
        spec = observation_spec[self.in_keys[0]]
        shape = (*spec.shape[:-1], spec.shape[-1] * self.num_frames)
        observation_spec[self.out_keys[0]] = Unbounded(shape, dtype=spec.dtype, device=spec.device)
        return observation_spec


def _generator(transform: Transform) -> torch.Generator | None:
    """Returns the environment's generator, if it has one."""
    return getattr(transform.parent, "generator", None)
