# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Explicit rules: how a flow is integrated where nothing has to be inverted."""

from __future__ import annotations

from torch import Tensor

from torchrl_genpo.flow.solver import VelocityField

__all__ = ["euler", "midpoint"]


def euler(velocity: VelocityField, x: Tensor, num_steps: int) -> Tensor:
    """Carries ``x [..., d]`` from time 0 to 1 by Euler's rule: first order, one evaluation a step.

    Examples:
        >>> import torch
        >>> round(euler(lambda x, t: x, torch.ones(1), num_steps=1000).item(), 2)  # e
        2.72
    """
    for i in range(num_steps):
        x = x + velocity(x, i / num_steps) / num_steps
    return x


def midpoint(velocity: VelocityField, x: Tensor, num_steps: int) -> Tensor:
    """Carries ``x [..., d]`` from time 0 to 1 by the midpoint rule: second order, two evaluations a step.

    Examples:
        >>> import torch
        >>> round(midpoint(lambda x, t: x, torch.ones(1), num_steps=20).item(), 2)  # e
        2.72
    """
    for i in range(num_steps):
        half_way = x + velocity(x, i / num_steps) / (2 * num_steps)
        x = x + velocity(half_way, (i + 0.5) / num_steps) / num_steps
    return x
