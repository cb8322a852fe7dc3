# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Normalisation of observations and rewards, on TorchRL's VecNormV2, and a guard before it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torchrl.data import Binary, Composite, Unbounded
from torchrl.envs import ClipTransform, EnvBase, Transform, VecNormV2

__all__ = [
    "BatchNormalizer",
    "DiscountedReturn",
    "FlagNotFinite",
    "RewardScaling",
    "copy_normalization",
    "freeze_normalization",
    "frozen_normalization",
    "normalization_transforms",
]

OBSERVATION_CLIP = 10  # standard deviations

# VecNormV2 calls batched environments experimental; with reduce_batch_dims it is tested in tests/envs
warnings.filterwarnings("ignore", message="Support of .* for containers with non-empty batch-size")


class DiscountedReturn(Transform):
    """Adds the discounted sum of past rewards, ``discounted_return`` ``[..., 1]``, which starts anew with an episode.

    Args:
        gamma (float, optional): discount of the sum. Defaults to ``0.99``.
        reward_key (NestedKey, optional): defaults to ``"reward"``.
    """

    RETURN_KEY = "discounted_return"

    def __init__(self, gamma: float = 0.99, reward_key: NestedKey = "reward") -> None:
        super().__init__(in_keys=[reward_key], out_keys=[reward_key])
        self.gamma = gamma

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        discounted = self.gamma * tensordict.get(self.RETURN_KEY) + next_tensordict.get(self.in_keys[0])
        return next_tensordict.set(self.RETURN_KEY, discounted)

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        (key,) = self.in_keys
        spec = self.parent.full_reward_spec[key]
        tensordict_reset.set(self.RETURN_KEY, torch.zeros(spec.shape, dtype=spec.dtype, device=spec.device))
        return tensordict_reset

    def transform_output_spec(self, output_spec: Composite) -> Composite:
        """Adds the discounted return, which travels with the data from step to step."""
        output_spec = super().transform_output_spec(output_spec)
        spec = output_spec["full_reward_spec"][self.in_keys[0]]
        output_spec["full_observation_spec"][self.RETURN_KEY] = Unbounded(
            shape=spec.shape, dtype=spec.dtype, device=spec.device
        )
        return output_spec


class RewardScaling(DiscountedReturn):
    """Divides the reward by the running standard deviation of the discounted return.

    ``VecNormV2`` on the reward itself would also subtract its mean, which takes away what tells a
    task's living from its dead states. So only the scale is used, of the discounted sum of past
    rewards (the usual reward normalisation of PPO), and ``VecNormV2`` keeps its statistics.

    Args:
        gamma (float, optional): discount of the sum. Defaults to ``0.99``.
        reward_key (NestedKey, optional): defaults to ``"reward"``.
        clip (float, optional): the scaled reward is clipped to ``[-clip, clip]``. Defaults to ``10``.
    """

    def __init__(self, gamma: float = 0.99, reward_key: NestedKey = "reward", clip: float = 10.0) -> None:
        super().__init__(gamma, reward_key)
        self.clip = clip
        self.statistics = VecNormV2(in_keys=[self.RETURN_KEY], decay=1.0, reduce_batch_dims=True)

    def set_container(self, container: Transform | EnvBase) -> None:
        """Prepares the statistics, so that a checkpoint can be loaded before the first step."""
        super().set_container(container)
        if isinstance(self.parent, EnvBase):
            spec = self.parent.full_reward_spec[self.in_keys[0]]
            zeros = torch.zeros(spec.shape, dtype=torch.float64, device=spec.device)
            self.statistics._maybe_stateful_init(
                TensorDict({self.RETURN_KEY: zeros}, batch_size=self.parent.batch_size)
            )

    def freeze(self) -> RewardScaling:
        """Stops updating the statistics."""
        self.statistics.freeze()
        return self

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        (key,) = self.in_keys
        super()._step(tensordict, next_tensordict)
        reward, discounted = next_tensordict.get(key), next_tensordict.get(self.RETURN_KEY)
        statistics = TensorDict({self.RETURN_KEY: discounted.double()}, batch_size=next_tensordict.batch_size)
        self.statistics._step(statistics, statistics)
        scale = self.statistics.scale[self.RETURN_KEY].to(reward.dtype)
        next_tensordict.set(key, (reward / scale).clamp(-self.clip, self.clip))
        return next_tensordict


class FlagNotFinite(Transform):
    """Marks numbers that are not finite and replaces them by 0.

    Before a running normalisation, which would spread a single NaN to every environment and for ever. Writes
    ``("not_finite", <key>)``, bool ``[..., 1]``, for each key; whoever trains on the data has to look there, see
    :func:`~torchrl_genpo.training.check_data`.

    Args:
        in_keys (sequence of NestedKey): observations and rewards ``[..., n]``.

    Examples:
        >>> from torchrl_genpo.envs import make_env
        >>> td = make_env("pendulum", num_envs=2, normalize_observation=True, seed=0).rollout(3)
        >>> td["next", "not_finite", "observation"].any()
        tensor(False)
    """

    KEY = "not_finite"
    training_only = True  # an exported policy does without

    def __init__(self, in_keys: Sequence[NestedKey]) -> None:
        super().__init__(in_keys=in_keys, out_keys=in_keys)

    def _flag(self, key: NestedKey) -> tuple[str, str]:
        return self.KEY, key if isinstance(key, str) else ".".join(key)

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        for key in self.in_keys:
            value = next_tensordict.get(key, None)
            if value is not None:
                finite = torch.isfinite(value)
                next_tensordict.set(key, value.where(finite, 0))
                next_tensordict.set(self._flag(key), ~finite.all(-1, keepdim=True))
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        for key in self.in_keys:
            if key not in tensordict_reset.keys(True):  # a reward
                shape = (*self.parent.full_reward_spec[key].shape[:-1], 1)
                flag = torch.zeros(shape, dtype=torch.bool, device=tensordict_reset.device)
                tensordict_reset.set(self._flag(key), flag)
        return self._call(tensordict_reset)

    def transform_output_spec(self, output_spec: Composite) -> Composite:
        """Adds the marks."""
        output_spec = super().transform_output_spec(output_spec)
        observations, rewards = output_spec["full_observation_spec"], output_spec["full_reward_spec"]
        for key in self.in_keys:
            spec = (observations if key in observations.keys(True) else rewards)[key]
            observations[self._flag(key)] = Binary(shape=(*spec.shape[:-1], 1), dtype=torch.bool, device=spec.device)
        return output_spec


class _Normalization(VecNormV2):
    """``VecNormV2`` for numbers that hardly vary, whose mean of squares rounds to less than their squared mean."""

    def _norm(self, data: Any, loc: Any, var: Any, count: Any) -> Any:
        return super()._norm(data, loc, var.maximum(loc.pow(2)), count)  # var: the mean of squares


def normalization_transforms(
    observation_keys: Sequence[NestedKey], reward_gamma: float | None, *, deferred: bool = False
) -> list[Transform]:
    """Normalises observations, clipped to 10 standard deviations, and scales the reward.

    Args:
        observation_keys (sequence of NestedKey): none for no normalisation.
        reward_gamma (float, optional): discount of :class:`RewardScaling`; ``None`` for none.

    Keyword Args:
        deferred (bool, optional): leaves the numbers as they are, for :class:`BatchNormalizer`, which does it later
            and elsewhere. Defaults to ``False``.
    """
    guarded = [*observation_keys, *([] if reward_gamma is None else ["reward"])]
    transforms: list[Transform] = [FlagNotFinite(guarded)] if guarded else []
    if reward_gamma is not None:
        transforms.append((DiscountedReturn if deferred else RewardScaling)(reward_gamma))
    if observation_keys and not deferred:
        keys = list(observation_keys)
        transforms.append(_Normalization(in_keys=keys, decay=1.0, reduce_batch_dims=True))
        transforms.append(ClipTransform(in_keys=keys, low=-OBSERVATION_CLIP, high=OBSERVATION_CLIP))
    return transforms


class BatchNormalizer:
    """The running normalisation in an environment's transforms, applied to whole batches that others have collected.

    They come from environments with ``normalization_transforms(..., deferred=True)``. A batch is normalised with
    statistics that stand still; afterwards the raw batch may move the running ones (its first observations of
    episodes apart).

    Args:
        env (EnvBase): whose transforms hold the running statistics.

    Examples:
        >>> from torchrl_genpo.envs import BatchNormalizer, make_env
        >>> env = make_env("pendulum", num_envs=2, seed=0)
        >>> _ = env.rollout(5)
        >>> sorted(BatchNormalizer(env).statistics()["scale"].keys())
        ['observation', 'reward']
    """

    def __init__(self, env: EnvBase) -> None:
        running = [module for module in env.modules() if isinstance(module, VecNormV2)]
        self._observations = [module for module in running if DiscountedReturn.RETURN_KEY not in module.in_keys]
        self._rewards = [module for module in env.modules() if isinstance(module, RewardScaling)]

    @property
    def has_seen_data(self) -> bool:
        """Whether there is something to normalise with (or nothing to normalise)."""
        modules = [*self._observations, *(module.statistics for module in self._rewards)]
        return all(count > 0 for module in modules for count in module._count.values())

    def statistics(self) -> TensorDict:
        """The present ``loc`` and ``scale`` of observations, and ``scale`` of the reward, by key; in float32."""
        loc: dict[str, torch.Tensor] = {}
        scale: dict[str, torch.Tensor] = {}
        for module in self._observations:
            for key in module.in_keys:
                loc[key], scale[key] = module._loc[key].float(), self._deviation(module, key)
        for module in self._rewards:
            scale[module.in_keys[0]] = self._deviation(module.statistics, module.RETURN_KEY)
        return TensorDict({"loc": loc, "scale": scale})

    @staticmethod
    def _deviation(module: VecNormV2, key: str) -> torch.Tensor:
        variance = module._var[key] - module._loc[key].pow(2)  # _var: the mean of squares
        return variance.clamp_min(0).sqrt().clamp_min(module.eps).float()

    @staticmethod
    def normalize_observation(value: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """To the last bit the same wherever it is computed, so that a policy and its critics see one observation."""
        return ((value - loc) / scale).clamp(-OBSERVATION_CLIP, OBSERVATION_CLIP)

    def normalize(self, batch: TensorDictBase, statistics: TensorDictBase) -> None:
        """Normalises a batch ``[...]`` in place, by statistics ``[...]``: every step has its own."""
        for key, loc in statistics["loc"].items(True, True):
            for part in (batch, batch["next"]):
                part[key] = self.normalize_observation(part[key], loc, statistics["scale", key])
        for module in self._rewards:
            (key,) = module.in_keys
            batch["next", key] = (batch["next", key] / statistics["scale", key]).clamp(-module.clip, module.clip)

    def update(self, batch: TensorDictBase) -> None:
        """Moves the running statistics by what a raw batch holds."""
        modules = [*self._observations, *(module.statistics for module in self._rewards)]
        for module in modules:
            values = {key: batch["next", key].to(module._loc[key].dtype) for key in module.in_keys}
            seen = TensorDict(values, batch_size=batch.batch_size)
            module._step(seen, seen)


def freeze_normalization(env: EnvBase) -> EnvBase:
    """Stops every running statistic of an environment, as for evaluation."""
    for module in env.modules():
        if isinstance(module, VecNormV2):
            module.freeze()
    return env


def copy_normalization(source: EnvBase, target: EnvBase) -> None:
    """Gives an environment the running statistics of another, frozen."""
    target.transform.load_state_dict(source.transform.state_dict())
    freeze_normalization(target)


@contextlib.contextmanager
def frozen_normalization(env: EnvBase) -> Iterator[None]:
    """Stops every running statistic of an environment for the time of a ``with`` block."""
    running = [module for module in env.modules() if isinstance(module, VecNormV2) and not module.frozen]
    freeze_normalization(env)
    try:
        yield
    finally:
        for module in running:
            module.unfreeze()
