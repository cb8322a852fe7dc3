# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The Kullback-Leibler divergence of two reversible flows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchrl_genpo.flow.consistent import ConsistentStart
from torchrl_genpo.flow.start import IndependentStart, Start
from torchrl_genpo.flow.steering import SteeredStart

if TYPE_CHECKING:
    from torchrl_genpo.flow.distribution import ReversibleFlow

__all__ = ["divergence"]


def divergence(p: ReversibleFlow, q: ReversibleFlow, num_samples: int = 1) -> Tensor:
    r"""The divergence :math:`KL(p \| q)` of the pairs, see :meth:`ReversibleFlow.kl_divergence`."""
    if (p.batch_shape, p.event_shape) != (q.batch_shape, q.event_shape):
        raise ValueError(f"The divergence needs two flows of the same shapes, got {p} and {q}.")
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be an integer of at least 1, got {num_samples!r}.")
    if p.moves_noise_as(q) and _has_closed_form(p.start, q.start):
        return _closed_form(p, q)
    pair, log_prob = p.rsample_and_log_prob((num_samples,))
    return (log_prob - q.log_prob(*pair)).mean(0)


def _has_closed_form(p: Start, q: Start) -> bool:
    """Whether the starts make their pairs of normal noises that differ by an affine map."""
    kinds = [type(start.base if isinstance(start, SteeredStart) else start) for start in (p, q)]
    return kinds[0] is kinds[1] and kinds[0] in (IndependentStart, ConsistentStart)


def _closed_form(p: ReversibleFlow, q: ReversibleFlow) -> Tensor:
    """That of the normal noise from which q would make the pairs of p, to the standard normal noise of q.

    The former noise is ``m + A z``, whose divergence is ``(|A|^2 + |m|^2 - 2d) / 2 - log|det A|``. ``A`` mixes the two
    noises of one number of an action at most, so three evaluations give all of it.
    """
    velocity, solver = p.velocity, p.solver
    zeros = torch.zeros((*p.batch_shape, p.action_dim), dtype=p.dtype, device=p.device)

    def noise_of_q(noise: Tensor, memory_noise: Tensor) -> Tensor:
        pair = p.start.from_noise(velocity, noise, memory_noise, solver=solver)
        return torch.cat(q.start.to_noise(velocity, *pair, solver=solver), -1)

    mean = noise_of_q(zeros, zeros)
    columns = torch.stack([noise_of_q(zeros + 1, zeros), noise_of_q(zeros, zeros + 1)]) - mean
    excess = columns.square().sum((0, -1)) + mean.square().sum(-1) - 2 * p.action_dim
    return (excess / 2 - p.log_abs_det + q.log_abs_det).to(p.density_dtype)
