# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The density of the executed action itself: the pair's, with the memory integrated out."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Chi2
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from torchrl_genpo.flow.distribution import ReversibleFlow

__all__ = ["MarginalEstimate", "marginal_log_prob", "propose_memory"]

DEGREES_OF_FREEDOM = 8.0  # the proposal has heavier tails than the normal law, and is yet efficient for 20 dimensions
GAUSS_NEWTON_STEPS = 4
NUM_STARTS = 8  # the search begins at so many points where no memory is known
NUM_DRAWS = 32  # so many memories tell the extent of the broad law
BROAD_WEIGHT = 0.1


class MarginalEstimate(NamedTuple):
    """An estimate of ``log p(action)``, ``[...]``, and its effective sample size, ``[...]``."""

    log_prob: Tensor
    effective_sample_size: Tensor


def marginal_log_prob(pair_log_prob: Tensor, log_proposal: Tensor) -> MarginalEstimate:
    """Estimates the log density of an action by the log of the mean of importance weights.

    The mean of the weights is an unbiased estimate of the density; its log is biased low by about half of its
    relative variance.

    Args:
        pair_log_prob (Tensor): log density of each pair (action, sampled memory), ``[n, ...]``.
        log_proposal (Tensor): log density of each sampled memory, ``[n, ...]``.
    """
    log_weight = pair_log_prob - log_proposal
    log_sum = log_weight.logsumexp(0)
    size = (2 * log_sum - (2 * log_weight).logsumexp(0)).exp()
    return MarginalEstimate(log_sum - math.log(len(log_weight)), size)


@torch.no_grad()
def propose_memory(
    flow: ReversibleFlow, action: Tensor, num_samples: int, memory: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Draws memories for given actions from a proposal close to their conditional law.

    The map from noise to pair has a constant determinant for each observation, so
    :math:`\log p(m \mid a) = -\tfrac12 |z(a, m)|^2 + \text{const}`, a nonlinear least-squares problem in :math:`m`.
    Gauss-Newton finds a minimum, and around it the proposal is Laplace's, with the covariance
    :math:`(J^\top J)^{-1}`, :math:`J = \partial z / \partial m`, as a Student-t (weights stay bounded where the normal
    would be too narrow). The stored memory of an action is itself a draw from the conditional law, so it lies near a
    mode that matters, and one step with the Jacobian there is enough. Without one, for a strongly bent flow has
    several modes, the search begins at several points; the proposal is the mixture of what they find, weighed by
    Laplace's evidence, and of a broad law with the mean and variance of the memories that the flow draws, lest a mode
    be missed.

    It costs one inversion with its Jacobian, of one forward-mode derivative for each of the ``d`` numbers of a memory,
    or ``GAUSS_NEWTON_STEPS + 1`` at each starting point where no memory is known.

    Args:
        flow (ReversibleFlow): the distribution of pairs.
        action (Tensor): ``[*batch, d]``.
        num_samples (int): memories an action.
        memory (Tensor, optional): one that came with the action, where the search begins, ``[*batch, d]``. Defaults to
            a state that had the velocity at the action, and memories that the flow draws.

    Returns:
        Memories ``[n, *batch, d]`` and their log proposal density ``[n, *batch]``.
    """
    action = action.double()
    broad = None
    if memory is None:
        drawn = flow.sample((NUM_DRAWS, *action.shape[: action.ndim - 1 - len(flow.batch_shape)]))[1].double()
        broad = drawn.mean(0), drawn.std(0)
        mean = torch.cat([_straight_memory(flow, action).unsqueeze(0), drawn[: NUM_STARTS - 1]])
    else:
        mean = memory.double().unsqueeze(0)

    def residual(m: Tensor) -> Tensor:
        return torch.cat(flow.to_noise(action.expand_as(m), m), -1).double()

    z, jacobian = _linearise(residual, mean)
    for _ in range(GAUSS_NEWTON_STEPS if memory is None else 1):
        step = -torch.linalg.lstsq(jacobian, z.unsqueeze(-1)).solution.squeeze(-1)
        # halve the step where it overshoots
        length = torch.ones_like(z[..., :1])
        for _ in range(4):
            worse = residual(mean + length * step).square().sum(-1, keepdim=True) > z.square().sum(-1, keepdim=True)
            length = torch.where(worse, length / 2, length)
        mean = mean + length * step
        if memory is None:
            z, jacobian = _linearise(residual, mean)
    precision_root = torch.linalg.qr(jacobian).R
    log_weight = (-0.5 * z.square().sum(-1) - _log_abs_diagonal(precision_root)).log_softmax(0)
    if broad is not None:
        mean = torch.cat([mean, broad[0].unsqueeze(0)])
        precision_root = torch.cat([precision_root, broad[1].reciprocal().diag_embed().unsqueeze(0)])
        log_weight = torch.cat([log_weight + math.log1p(-BROAD_WEIGHT), log_weight[:1] * 0 + math.log(BROAD_WEIGHT)])
    return _sample_mixture(mean, precision_root, log_weight, num_samples)


def _straight_memory(flow: ReversibleFlow, action: Tensor) -> Tensor:
    """The memory ``[*batch, d]`` of a state that came with the velocity that it has at the action."""
    at, _ = flow.to_standard(action, torch.zeros_like(action))
    dt = flow.solver.dt
    return flow.from_standard(at, at - dt * flow.velocity(at, 1 - dt).double())[1]


def _linearise(function: Callable[[Tensor], Tensor], m: Tensor) -> tuple[Tensor, Tensor]:
    """Value ``[..., r]`` and Jacobian ``[..., r, n]`` of a function of the last dimension, by forward mode."""

    def derivative(tangent: Tensor) -> Any:
        return torch.func.jvp(function, (m,), (tangent,))

    size = m.shape[-1]
    basis = torch.eye(size, dtype=m.dtype, device=m.device).view(size, *[1] * (m.ndim - 1), size).expand(size, *m.shape)
    with _kernels_with_forward_mode():
        # out_dims: the value is computed once
        value, columns = torch.func.vmap(derivative, out_dims=(None, 0))(basis)  # type: ignore[arg-type]
    jacobian = columns.movedim(0, -1)
    # LAPACK refuses the whole batch for a number that is not finite; the density of that action is none in any case
    is_finite = value.isfinite().all(-1, keepdim=True) & jacobian.isfinite().all(-1).all(-1, keepdim=True)
    identity = torch.eye(*jacobian.shape[-2:], dtype=m.dtype, device=m.device)
    return value.where(is_finite, 0.0), jacobian.where(is_finite.unsqueeze(-1), identity)


@contextlib.contextmanager
def _kernels_with_forward_mode() -> Iterator[None]:
    """Switches off the fused kernels of a transformer, and the warning of slow ones (Mish's derivative)."""
    is_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)


def _log_abs_diagonal(triangular: Tensor) -> Tensor:
    return triangular.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


def _sample_mixture(
    mean: Tensor, precision_root: Tensor, log_weight: Tensor, num_samples: int
) -> tuple[Tensor, Tensor]:
    """Samples ``[n, *batch, r]`` and log density ``[n, *batch]`` of a mixture of Student-t laws.

    Args:
        mean (Tensor): ``[s, *batch, r]``.
        precision_root (Tensor): upper triangular ``R``, ``[s, *batch, r, r]``; the scale matrix is ``(R^T R)^-1``.
        log_weight (Tensor): ``[s, *batch]``.
        num_samples (int): ``n``.
    """
    nu, size = DEGREES_OF_FREEDOM, mean.shape[-1]
    shape = (num_samples, *mean.shape[1:])
    noise = torch.randn(shape, dtype=mean.dtype, device=mean.device)
    chi2 = Chi2(torch.full_like(noise[..., :1], nu)).sample()
    offset = noise * (nu / chi2).sqrt()
    weights = log_weight.exp().movedim(0, -1).expand(*shape[:-1], -1)
    which = torch.multinomial(weights.reshape(-1, len(mean)), 1).view(1, *shape[:-1], 1)
    roots, means = precision_root.unsqueeze(1), mean.unsqueeze(1)  # [s, 1, *batch, ...]
    root, centre = roots.take_along_dim(which.unsqueeze(-1), 0)[0], means.take_along_dim(which, 0)[0]
    # m = mean + R^-1 offset: no squared condition number
    memories = centre + torch.linalg.solve_triangular(root, offset.unsqueeze(-1), upper=True).squeeze(-1)
    log_norm = math.lgamma((nu + size) / 2) - math.lgamma(nu / 2) - size / 2 * math.log(nu * math.pi)
    distance = (roots @ (memories - means).unsqueeze(-1)).squeeze(-1).square().sum(-1)  # [s, n, *batch]
    log_density = log_norm + _log_abs_diagonal(roots) - (nu + size) / 2 * (distance / nu).log1p()
    return memories, (log_density + log_weight.unsqueeze(1)).logsumexp(0)
