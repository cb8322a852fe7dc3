# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the transforms of an environment do between a policy and the base environment, and which of it is exported."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from tensordict.utils import unravel_key
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.envs import Compose, EnvBase, ExplorationType, SerialEnv, Transform, TransformedEnv, set_exploration_type
from torchrl.envs import transforms as stock
from torchrl.envs.batched_envs import BatchedEnvBase
from torchrl.envs.transforms._base import _CallableTransform
from torchrl.envs.transforms.module import ModuleTransform

from torchrl_genpo.envs.isaaclab.transforms import LastObservationAtReset
from torchrl_genpo.envs.xhand import DeltaTarget, Noise
from torchrl_genpo.modules.export import IS_INIT

__all__ = ["BaseView"]

STATISTICS = (stock.VecNorm, stock.VecNormV2)
HELD = (
    *(stock.ActionScaling, stock.CatTensors, stock.CenterCrop),
    *(stock.ClipTransform, stock.Crop, stock.DTypeCastTransform),
    *(stock.DoubleToFloat, stock.FlattenAction, stock.FlattenObservation),
    *(stock.GrayScale, stock.ObservationNorm, stock.PermuteTransform),
    *(stock.RenameTransform, stock.Resize, stock.SignTransform),
    *(stock.SqueezeTransform, stock.ToTensorImage, stock.UnsqueezeTransform),
)
"""Transforms that are functions of what they read, with parameters that stand still; an exported model holds them."""

PASSED = (
    *(stock.AutoResetTransform, stock.BatchSizeTransform),
    *(stock.DeviceCastTransform, stock.ExcludeTransform, stock.EndOfLifeTransform),
    *(stock.FiniteTensorDictCheck, stock.FrameSkipTransform),
    *(stock.NoopResetEnv, stock.PinMemoryTransform, stock.RemoveEmptySpecs),
    *(stock.SelectTransform, stock.TerminateTransform, stock.Timer),
    *(stock.VecGymEnvTransform, stock.RandomTruncationTransform, LastObservationAtReset),
)
"""Transforms that change neither the numbers that a policy reads in an episode nor its action."""

FORWARD_ONLY = (*PASSED, _CallableTransform, stock.CatFrames)
"""Transforms that do not change an action, though they define an inverse."""

FORWARD = ("_call", "_step", "_reset", "_apply_transform")
INVERSE = ("_inv_call", "inv", "_inv_apply_transform")


class TransformModule(TensorDictModuleBase):
    """Transforms as a module of a policy, in the order in which they run.

    Args:
        transforms (list of Transform): those of observations, or, with ``inverse``, those of the action.
        in_keys (list of NestedKey): what they read.
        out_keys (list of NestedKey): what they write.

    Keyword Args:
        inverse (bool): whether they are inverted.
    """

    def __init__(
        self, transforms: list[Transform], in_keys: list[NestedKey], out_keys: list[NestedKey], *, inverse: bool
    ) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(map(_detached, transforms))
        self.in_keys, self.out_keys, self._inverse = in_keys, out_keys, inverse

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes what the transforms make."""
        for transform in self.transforms:
            function: Any = transform._inv_call if self._inverse else transform._call
            tensordict = function(tensordict)
        return tensordict


class Recorder(Transform):
    """Keeps what passes between two transforms of an environment, with the copies through which frames are skipped."""

    invertible = True

    def __init__(self) -> None:
        super().__init__()
        self.observed: list[TensorDictBase] = []  # lists, which copies share
        self.executed: list[TensorDictBase] = []

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        self.observed[:] = [next_tensordict.clone()]
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self._call(tensordict_reset)

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.executed.append(tensordict.clone())
        return tensordict


class BaseView:
    """A policy as the base environment meets it, through the transforms of the environment that it was trained in.

    Of the transforms of the action it takes all; only ``DeltaTarget``, which moves the targets of a hand, is left to
    the hand. Of the transforms of observations it takes those that an exported model can hold, from the policy
    inwards, up to the first that it cannot, because that one has a memory, draws, or is unknown. There the model begins
    to read. Running statistics stand still, and the first environment of a batch is the one that is looked at.

    Args:
        policy (TensorDictModuleBase): the policy.
        env (EnvBase): the environment that it was trained in, which is reset and stepped.

    Attributes:
        policy (TensorDictSequential): the policy with the transforms that it takes.
        action_key (NestedKey): the key of the action that the base environment executes.
        action_spec (TensorSpec): what the base environment takes.
        left (list of Transform): those that make what the model reads of what the base environment gives.
        frame_skip (int): the number of steps for which the base environment is given the same action.

    Raises:
        ValueError: if a transform of the action cannot be taken, or the environment has several actions, or transforms
            in other processes.
    """

    def __init__(self, policy: TensorDictModuleBase, env: EnvBase) -> None:
        if len(env.action_keys) != 1:
            raise ValueError(f"A policy of one action can be exported; the environment has {env.action_keys}.")
        base, transforms = _unwrap(env)
        chain = [still for transform in transforms for still in _stand_still(transform)]
        still = TransformedEnv(base, Compose(*chain))  # kept, for transforms ask it for their keys
        still.reset()  # from which some learn their shapes
        keys = [unravel_key(key) for key in policy.in_keys]
        state = [key for key in keys if unravel_key(("next", key)) in policy.out_keys]
        observed = [key for key in keys if key not in [*state, IS_INIT]]
        inner, before, read = _of_observations(chain, set(observed))
        outer, after, self.action_key = _of_action(chain, env_key := unravel_key(env.action_keys[0]))
        if env_key not in policy.out_keys:
            raise ValueError(f"The environment takes {env_key!r}; the policy writes {policy.out_keys}.")
        self._before = before
        self.policy = TensorDictSequential(
            TransformModule(before, sorted(read, key=str), observed, inverse=False),
            policy,
            TransformModule(after, [env_key], [self.action_key], inverse=True),
        )
        self.left = _makers(chain[:inner], read)
        self.frame_skip = math.prod(int(t.frame_skip) for t in chain if isinstance(t, stock.FrameSkipTransform))
        self._observed, self._executed = Recorder(), Recorder()
        parts: list[Transform] = []
        for place, transform in enumerate([*chain, None]):
            parts += [self._observed] * (place == inner) + [self._executed] * (place == outer)
            parts += [] if transform is None else [_detached(transform)]
        self._env = TransformedEnv(base, Compose(*parts))
        self.action_spec: TensorSpec = self._executed.parent.full_action_spec[self.action_key]

    def example(self) -> TensorDictBase:
        """What the model reads after a reset, with the state of a recurrent policy."""
        tensordict = self._env.reset()
        (example,) = self._observed.observed
        for key in self.policy.in_keys:
            if key not in example.keys(True, True) and key in tensordict.keys(True, True):
                example.set(key, tensordict.get(key))  # a state is no observation
            first = next((transform for transform in self._before if key in transform.in_keys), None)
            if isinstance(first, stock.DTypeCastTransform):  # whoever makes the observation may as well cast it
                example.set(key, example.get(key).to(first.dtype_out))
        return example

    @torch.no_grad()
    def play(self, policy: nn.Module, episodes: int, max_steps: int) -> Iterator[tuple[bool, TensorDictBase, Tensor]]:
        """Plays episodes with the deterministic policy, each to its end or for ``max_steps``.

        Yields:
            Whether a step is the first of its episode, what the model reads in it, and the actions ``[k, ..., d]`` that
            the base environment received (one, unless it is skipped), all of the first environment of the batch.
        """
        for _ in range(episodes):
            tensordict = self._env.reset()
            for step in range(max_steps):
                (observed,) = self._observed.observed
                self._executed.executed.clear()
                with set_exploration_type(ExplorationType.DETERMINISTIC):
                    tensordict = self._env.step(policy(tensordict))
                actions = [_first(executed).get(self.action_key) for executed in self._executed.executed]
                yield step == 0, _first(observed), torch.stack(actions)
                if any(tensordict.get(unravel_key(("next", key))).any() for key in self._env.done_keys):
                    break
                tensordict = self._env.step_mdp(tensordict)


def _first(tensordict: TensorDictBase) -> TensorDictBase:
    """The first environment of a batch."""
    return tensordict.reshape(-1)[0]


def _unwrap(env: EnvBase) -> tuple[EnvBase, list[Transform]]:
    """The environment below all transforms, or the first of a batch of them, and the transforms, innermost first."""
    if isinstance(env, TransformedEnv):
        _ = env.full_action_spec  # from which some transforms learn their shapes
        base, transforms = _unwrap(env.base_env)
        return base, [*transforms, *_flatten(env.transform)]
    if isinstance(env, SerialEnv):
        if env.is_closed:
            env.start()
        return _unwrap(env._envs[0])
    if isinstance(env, BatchedEnvBase):
        raise ValueError(
            f"The transforms of a {type(env).__name__} are in other processes, where the exporter cannot see what they "
            "do to an action: give it an environment that is made without workers."
        )
    return env, []


def _flatten(transform: Transform) -> list[Transform]:
    if type(transform) is not Compose:  # a subclass does more than the parts
        return [transform]
    return [part for member in transform.transforms for part in _flatten(member)]


def _detached(transform: Transform) -> Transform:
    """A copy without an environment, which ignores keys that are not there."""
    transform = transform.clone()
    transform.set_missing_tolerance(True)
    return transform


def _stand_still(transform: Transform) -> list[Transform]:
    """A copy of a transform, for one environment and with its running statistics frozen."""
    if isinstance(transform, STATISTICS) and getattr(transform, "stateful", True):
        norm = transform.to_observation_norm()
        parts = [
            part for part in _flatten(norm) if part.in_keys[0] in transform.parent.full_observation_spec.keys(True)
        ]
    else:
        parts = [_detached(transform)]
    for part in parts:
        if type(part) is stock.ObservationNorm:
            is_standard = bool(part.standard_normal)
            del part.standard_normal  # a tensor, on whose value a tracer cannot branch
            part.standard_normal = is_standard
        if type(part) in (stock.ObservationNorm, stock.ActionScaling):
            inverse = bool(part.in_keys_inv)
            specs = transform.parent.full_action_spec if inverse else transform.parent.full_observation_spec
            key = part.in_keys_inv[0] if inverse else part.in_keys[0]
            if key not in specs.keys(True, True):  # of a reward
                continue
            ndim = specs[key].ndim - len(specs.shape)
            for name in ("loc", "scale"):
                value = getattr(part, name).detach()
                if value.ndim > ndim:  # of each environment of a batch
                    value = value.reshape(-1, *value.shape[value.ndim - ndim :])[0]
                setattr(part, name, value.clone())
    return parts


def _overrides(transform: Transform, *names: str) -> bool:
    return any(getattr(type(transform), name) is not getattr(Transform, name) for name in names)


def _sources(transform: Transform, keys: set[NestedKey]) -> set[NestedKey]:
    """What a transform reads to write these keys."""
    pairs = list(zip(transform.in_keys, transform.out_keys, strict=False))
    if len(transform.in_keys) != len(transform.out_keys):
        return set(transform.in_keys)
    return {source for source, written in pairs if written in keys}


def _written(transform: Transform) -> set[NestedKey]:
    primed = transform.primers.keys(True, True) if isinstance(transform, stock.TensorDictPrimer) else ()
    keys = (*(transform.out_keys or ()), *getattr(transform, "step_count_keys", ()), *primed)
    return {unravel_key(key) for key in keys}


def _of_observations(chain: list[Transform], keys: set[NestedKey]) -> tuple[int, list[Transform], set[NestedKey]]:
    """The place from which on a model can hold the transforms that make these keys, those, and what is there read."""
    held: list[Transform] = []
    for place, transform in reversed(list(enumerate(chain))):
        written = _written(transform) & keys
        if type(transform) in HELD:
            if written:
                held.insert(0, transform)
                keys = keys - written | _sources(transform, written)
            continue
        is_elsewhere = bool(_written(transform)) and not written
        if type(transform) in PASSED or is_elsewhere or not _overrides(transform, *FORWARD):
            continue
        return place + 1, held, keys
    return 0, held, keys


def _makers(chain: list[Transform], keys: set[NestedKey]) -> list[Transform]:
    """The transforms that make these keys, as far as they can be known."""
    found: list[Transform] = []
    for transform in reversed(chain):
        written = _written(transform)
        is_known = bool(written) or bool(transform.in_keys_inv) or type(transform) in (*HELD, *PASSED)
        if written & keys or (not is_known and _overrides(transform, *FORWARD)):
            found.insert(0, transform)
            keys = keys | set(transform.in_keys or ())
    return found


def _of_action(chain: list[Transform], key: NestedKey) -> tuple[int, list[Transform], NestedKey]:
    """The place of the executed action, the transforms that make it, outermost first, and its key there."""
    held: list[Transform] = []
    for place, transform in reversed(list(enumerate(chain))):
        if isinstance(transform, DeltaTarget):
            return place + 1, held, key
        is_forward = (isinstance(transform, ModuleTransform) and not transform.inverse) or (
            isinstance(transform, Noise) and not transform.is_of_action
        )
        if type(transform) in FORWARD_ONLY or is_forward or not _overrides(transform, *INVERSE):
            continue
        is_there = key in (transform.out_keys_inv or ())
        if not is_there and (type(transform) in HELD or not _overrides(transform, "_inv_call", "inv")):
            continue
        if type(transform) not in HELD:
            raise ValueError(
                f"{type(transform).__name__} changes the action between the policy and the environment in a way that "
                f"an exported model cannot hold: {transform}. Make it a module of the policy, behind the actor."
            )
        held.append(transform)
        key = transform.in_keys_inv[transform.out_keys_inv.index(key)]
    return 0, held, key
