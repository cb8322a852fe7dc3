# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A Gymnasium task as a policy reads and writes it: flat vectors of 32-bit floats, pictures apart, bounded actions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary

__all__ = ["PolicySpaces"]

GOAL = ("achieved_goal", "desired_goal")  # Gymnasium-Robotics' names of what belongs to an observation
TOLD = ("reached_goal", "success")  # what evaluations read
WRAP = "wrap the task in gymnasium.wrappers.{} where it is registered"


class PolicySpaces(gymnasium.Wrapper):
    """Presents the observations and actions of one task as the policies of this package read and write them.

    An observation of floats is flattened to a vector, and a picture (``uint8``, ``[height, width, channels]`` with 1, 3
    or 4 channels) becomes ``pixels`` ``[channels, height, width]`` in ``[0, 1]``. Of a dictionary, this is done to
    ``observation`` and to the one picture, or to the one called ``pixels``. The goals ``achieved_goal`` and
    ``desired_goal`` of a task that is told its goal follow in the vector ``observation``. ``critic_observation``,
    ``success`` and ``reached_goal`` stay under their names, as vectors. Everything else is left out, because nothing
    reads it.

    An action is a vector, too: it is clipped to the task's bounds, and the task is given it in its own shape and dtype.
    A reward, ``terminated`` and ``truncated`` may be arrays of one number.

    Args:
        env (gymnasium.Env): the task.
        name (str): of the task, for errors.

    Attributes:
        left_out (list of str): the entries of the task's observation that nothing reads.
        conversions (dict): by key, in words, how an observation is made of the task's; keys that are as the task gives
            them are not there.

    Raises:
        ValueError: if the observations have nothing that a policy can read, or the actions cannot be scaled from
            ``[-1, 1]``.

    Examples:
        >>> import gymnasium, numpy as np
        >>> from torchrl_genpo.envs.gym import PolicySpaces
        >>> env = PolicySpaces(gymnasium.make("InvertedPendulum-v5"), "InvertedPendulum-v5")
        >>> env.observation_space.shape, env.observation_space.dtype
        ((4,), dtype('float32'))
    """

    def __init__(self, env: gymnasium.Env, name: str) -> None:
        super().__init__(env)
        self._name = name
        self._entries = _entries(env.observation_space)
        pictures = [str(key) for key, space in self._entries.items() if _is_picture(space)]
        self._picture = "pixels" if "pixels" in pictures else pictures[0] if pictures else None
        if len(pictures) > 1 and self._picture != "pixels":
            raise ValueError(
                f"{name} observes several pictures, {', '.join(pictures)}: call the one that the policy reads "
                "'pixels', or stack their channels."
            )
        self._parts = {
            key: parts
            for key, parts in (
                ("observation", [key for key in ("observation", *GOAL) if self._has_vector(key)]),
                ("critic_observation", [key for key in ("critic_observation",) if self._has_vector(key)]),
                *((key, [key]) for key in TOLD if _is_numeric(self._entries.get(key))),
            )
            if parts
        }
        if "observation" not in self._entries and self._picture is None:
            raise ValueError(
                f"{name} observes {', '.join(map(str, self._entries))}, and nothing called 'observation', which the "
                f"policy reads, nor a picture: {WRAP.format('FlattenObservation')}."
            )
        read = {part for parts in self._parts.values() for part in parts} | {self._picture}
        self.left_out = [str(key) for key in self._entries if key not in read]
        spaces: dict[str, Any] = {key: self._vector_space(parts) for key, parts in self._parts.items()}
        if self._picture is not None:
            height, width, channels = self._entries[self._picture].shape
            spaces["pixels"] = Box(0.0, 1.0, (channels, height, width), np.float32)
        self.observation_space = spaces["observation"] if list(spaces) == ["observation"] else Dict(spaces)
        self.action_space = _vector_action(name, env.action_space)
        self.conversions = self._describe_conversions()

    def _describe_conversions(self) -> dict[str, str]:
        shapes = {key: list(space.shape or ()) for key, space in self._entries.items()}
        found = {
            key: f"{key} = {' and '.join(f'{part} {shapes[part]}' for part in parts)}, flattened and joined"
            for key, parts in self._parts.items()
            if parts != [key] or len(shapes[key]) != 1
        }
        if self._picture is not None:
            shape = shapes[self._picture]
            found["pixels"] = f"pixels = {self._picture} {shape} (uint8) / 255, as {[shape[-1], *shape[:-1]]}"
        return found

    def _has_vector(self, key: str) -> bool:
        """Whether there is such an entry and it is no picture; it must then be a ``Box`` of floating numbers."""
        space = self._entries.get(key)
        if space is None or _is_picture(space):
            return False
        if isinstance(space, Box) and np.issubdtype(space.dtype, np.floating):
            if not math.prod(space.shape):
                raise ValueError(f"{self._name}: {key!r} of shape {space.shape} has no numbers; leave it out.")
            return True
        if isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) > 1:
            remedy = "a picture is [height, width, channels] with 1, 3 or 4 channels"
        elif isinstance(space, (Box, MultiBinary)):
            remedy = WRAP.format("DtypeObservation(env, np.float32)")
        else:
            remedy = WRAP.format("FlattenObservation, and in DtypeObservation(env, np.float32)")
        raise ValueError(
            f"{self._name} observes {space} as {key!r}; the policy needs a Box of floating numbers: {remedy}."
        )

    def _vector_space(self, parts: list[str]) -> Box:
        low: list[np.ndarray] = []
        high: list[np.ndarray] = []
        with np.errstate(over="ignore"):  # the bounds of a float64 may be infinite as a float32
            for space in (self._entries[part] for part in parts):
                for bound, all_bounds in zip(_bounds(space), (low, high), strict=True):
                    all_bounds.append(np.broadcast_to(np.asarray(bound, np.float32), space.shape).ravel())
        return Box(np.concatenate(low), np.concatenate(high), dtype=np.float32)

    def _read(self, raw: Any) -> Any:
        raw = raw if isinstance(raw, Mapping) else {"observation": raw}
        observation = {key: np.concatenate([self._vector(raw, p) for p in ps]) for key, ps in self._parts.items()}
        if self._picture is not None:
            picture = np.asarray(raw[self._picture])
            self._check_shape(self._picture, picture)
            observation["pixels"] = np.moveaxis(picture, -1, 0).astype(np.float32) / 255
        return observation if isinstance(self.observation_space, Dict) else observation["observation"]

    def _vector(self, raw: Mapping[str, Any], part: str) -> np.ndarray:
        value = np.asarray(raw[part], np.float32)
        self._check_shape(part, value)
        return value.ravel()

    def _check_shape(self, part: str, value: np.ndarray) -> None:
        if value.shape != self._entries[part].shape:
            raise ValueError(
                f"{self._name} observed {part!r} of shape {value.shape}; its space has {self._entries[part].shape}."
            )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode of the task."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._read(observation), info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Executes a vector ``[d]``, clipped to the task's bounds, as an action of the task's own shape."""
        space: Any = self.env.action_space
        executed = np.clip(np.reshape(action, space.shape), space.low, space.high)
        observation, reward, terminated, truncated, info = self.env.step(np.asarray(executed, space.dtype))
        return (
            self._read(observation),
            float(self._number("reward", reward)),
            bool(self._number("terminated", terminated)),
            bool(self._number("truncated", truncated)),
            info,
        )

    def _number(self, what: str, value: Any) -> Any:
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "biuf":
            raise ValueError(f"{self._name} returned {what} = {value!r} of shape {array.shape}; it must be one number.")
        return array.item()


def _entries(space: gymnasium.Space) -> dict[str, Any]:
    return dict(space.spaces) if isinstance(space, Dict) else {"observation": space}


def _is_picture(space: Any) -> bool:
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[-1] in (1, 3, 4)


def _is_numeric(space: Any) -> bool:
    return isinstance(space, (Box, Discrete, MultiBinary)) and 0 not in (space.shape or ())


def _bounds(space: Any) -> tuple[Any, Any]:
    if isinstance(space, Discrete):
        return space.start, space.start + space.n - 1
    return (space.low, space.high) if isinstance(space, Box) else (0, 1)


def _vector_action(name: str, space: Any) -> Box:
    """The actions of a task as a vector of 32-bit floats; refuses what ``[-1, 1]`` cannot be mapped to."""
    if not isinstance(space, Box):
        raise ValueError(f"{name} has a {type(space).__name__} action space; a flow needs a Box.")
    what = f"{name} has the action space {space}"
    if not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"{what}; a flow needs floating numbers: declare a Box of them, and round in the task.")
    if not math.prod(space.shape):
        raise ValueError(f"{what}; a flow needs at least one number.")
    if not space.is_bounded():
        raise ValueError(f"{what}, which is actions without bounds; give its Box a low and a high.")
    with np.errstate(over="ignore"):
        low, high = space.low.astype(np.float32).ravel(), space.high.astype(np.float32).ravel()
        if (low == high).any():
            raise ValueError(
                f"{what}, whose component {np.argmax(low == high)} (of the flat vector) has one value as a float32, "
                f"{low[np.argmax(low == high)]}: leave it out of the actions."
            )
        if not np.isfinite(np.abs(low) + np.abs(high)).all():
            raise ValueError(f"{what}, whose range is not finite as a float32: give bounds that the task makes use of.")
    return Box(low, high, dtype=np.float32)
