# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The running normalisation of observations, as a part of the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import unravel_key
from torch import Tensor

from torchrl_genpo.modules.inputs import read

__all__ = ["RunningNormalizer", "merge_moments"]

MIN_DEVIATION = 1e-4  # numbers that hardly vary are not blown up to the size of the others


@torch.no_grad()
def merge_moments(
    mean: Tensor, deviation: Tensor, count: Tensor, values: Tensor, reduce: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Adds a batch of numbers to a running mean, standard deviation and count, in place.

    Rows with a number that is not finite are left out. The result is that of all rows in one pass
    (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979).

    Args:
        mean (Tensor): the mean of the rows so far, ``[n]``, float64.
        deviation (Tensor): their standard deviation, ``[n]``, float64.
        count (Tensor): their number, a scalar, float64.
        values (Tensor): the batch, ``[..., n]``.
        reduce (Callable, optional): sums a tensor over all processes that train together.

    Examples:
        >>> mean, deviation, count = torch.zeros(1).double(), torch.ones(1).double(), torch.zeros(()).double()
        >>> merge_moments(mean, deviation, count, torch.tensor([[1.0], [3.0]]))
        >>> merge_moments(mean, deviation, count, torch.tensor([[5.0], [float("nan")]]))
        >>> mean.item(), round(deviation.item(), 3), count.item()
        (3.0, 1.633, 3.0)
    """
    rows = values.reshape(-1, mean.shape[-1]).to(mean.dtype)
    is_finite = torch.isfinite(rows).all(-1, keepdim=True)
    rows = rows.where(is_finite, 0.0)

    def total(value: Tensor) -> Tensor:
        return value if reduce is None else reduce(value)

    added = total(is_finite.sum().to(mean.dtype))
    added_mean = total(rows.sum(0)) / added.clamp_min(1)
    added_variance = total(((rows - added_mean).square() * is_finite).sum(0)) / added.clamp_min(1)
    weight = added / (count + added).clamp_min(1)
    shift = added_mean - mean
    variance = torch.lerp(deviation.square(), added_variance, weight) + weight * (1 - weight) * shift.square()
    mean.add_(weight * shift)
    deviation.copy_(variance.sqrt())
    count.add_(added)


class RunningNormalizer(TensorDictModuleBase):
    """Shifts and scales an observation by its running mean and standard deviation, and clips the result.

    It is the first module of a policy, and the critic may share it. Its statistics are buffers, so that the state dict,
    the synchronisation of workers, checkpoints and exports hold them without a line of their own. They stand still
    while a batch is collected and trained on, so that stored and recomputed densities belong to the same numbers;
    whoever trains calls :meth:`update` between two batches. Before the first update the observation is only clipped.

    The statistics are kept, and the normalisation is computed, in float64, whatever the policy is cast to. A number
    that never changed becomes 0. NaN becomes 0 too, as if it were the mean, so that one bad number does not reach the
    action.

    Args:
        size (int): the size ``n`` of the observation.

    Keyword Args:
        in_key (NestedKey, optional): the raw observation ``[..., n]``. Defaults to ``"observation"``.
        out_key (NestedKey, optional): the normalised one, in the dtype that the policy was cast to. Defaults to
            ``"normalized_observation"``.
        clip (float, optional): the largest absolute result, in standard deviations. Defaults to ``10``.

    Raises:
        ValueError: if ``size`` is below 1, ``clip`` is not positive, or both keys are the same; when it is called or
            updated, for an observation of another size.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_genpo.modules import RunningNormalizer
        >>> normalizer = RunningNormalizer(3)
        >>> normalizer.update(5 + 2 * torch.randn(1000, 3))
        >>> td = normalizer(TensorDict(observation=torch.full((4, 3), 5.0), batch_size=[4]))
        >>> bool((td["normalized_observation"].abs() < 0.2).all())
        True
    """

    def __init__(
        self,
        size: int,
        *,
        in_key: NestedKey = "observation",
        out_key: NestedKey = "normalized_observation",
        clip: float = 10.0,
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}.")
        if not clip > 0:
            raise ValueError(f"clip must be positive, got {clip}.")
        in_key, out_key = unravel_key(in_key), unravel_key(out_key)
        if in_key == out_key:
            raise ValueError(f"in_key and out_key are both {in_key!r}: the raw observation must be kept for training.")
        self.in_keys, self.out_keys = [in_key], [out_key]
        self.clip = clip
        self._out_dtype = torch.get_default_dtype()
        self.mean: Tensor
        self.deviation: Tensor
        self.count: Tensor
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("deviation", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def _apply(self, fn: Any, recurse: bool = True) -> RunningNormalizer:
        kept = dict(self._buffers)
        probe = torch.empty(0, dtype=self._out_dtype, device=self.mean.device)
        super()._apply(fn, recurse)
        self._out_dtype = fn(probe).dtype  # what the networks behind it compute in now
        for name, value in kept.items():  # moved to where the others go, but never rounded
            if value is not None and value.device.type != "meta":
                self._buffers[name] = value.to(self.get_buffer(name).device)
        return self

    def normalize(self, observation: Tensor) -> Tensor:
        """Normalises observations ``[..., n]`` of any dtype; returns the dtype that the policy was cast to."""
        self._check(observation)
        value = (observation.to(torch.float64) - self.mean) / self.deviation.clamp_min(MIN_DEVIATION)
        value = value.clamp(-self.clip, self.clip)
        return value.where(value == value, 0.0).to(self._out_dtype)

    def update(self, observation: Tensor, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Adds the raw observations of a batch to the statistics.

        Args:
            observation (Tensor): ``[..., n]``.
            reduce (Callable, optional): sums a tensor over all processes that train together.
        """
        self._check(observation)
        merge_moments(self.mean, self.deviation, self.count, observation, reduce)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the normalised observation."""
        return tensordict.set(self.out_keys[0], self.normalize(*read(tensordict, *self.in_keys)))

    def _check(self, observation: Tensor) -> None:
        if observation.shape[-1] != len(self.mean):
            raise ValueError(
                f"The normaliser was built for observations {self.in_keys[0]!r} of size {len(self.mean)}, got "
                f"{observation.shape[-1]}."
            )

    def extra_repr(self) -> str:
        return f"{len(self.mean)}, in_key={self.in_keys[0]!r}, out_key={self.out_keys[0]!r}, clip={self.clip:g}"
