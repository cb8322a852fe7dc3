# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Constant-memory gradients: the backward pass of a reversible solver reconstructs its states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torchrl_genpo.flow.solver import ReversibleSolver, VelocityField

__all__ = ["integrate_reversibly", "invert_reversibly"]


@torch.compiler.disable  # the backward pass calls autograd, which torch.compile cannot trace
def integrate_reversibly(
    solver: ReversibleSolver, velocity: VelocityField, x: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """Integrates as ``solver.integrate`` does; the backward pass steps back through the states and so inherits their
    rounding."""
    return _apply(solver, velocity, x, memory, inverse=False)


@torch.compiler.disable
def invert_reversibly(
    solver: ReversibleSolver, velocity: VelocityField, x: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """Inverts as ``solver.invert`` does; the backward pass steps forward again, which is the stable direction."""
    return _apply(solver, velocity, x, memory, inverse=True)


def _apply(solver: ReversibleSolver, velocity: Any, x: Tensor, memory: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    if not hasattr(velocity, "functional"):
        raise TypeError(
            "gradient='reversible' must know which tensors the velocity depends on: pass a ConditionedVelocity "
            f"(ReversibleFlowActor does), not a {type(velocity).__name__}; or use gradient='stored'."
        )
    function, tensors = velocity.functional()
    return _Reversible.apply(solver, function, inverse, x, memory, *tensors)


class _Reversible(torch.autograd.Function):
    """One pass of a solver, in either direction, that saves nothing but its results."""

    @staticmethod
    def forward(
        ctx: Any, solver: Any, function: Any, inverse: bool, x: Tensor, memory: Tensor, *tensors: Tensor
    ) -> Any:
        for i in reversed(range(solver.num_steps)) if inverse else range(solver.num_steps):
            v = function(memory if inverse else x, i * solver.dt, *tensors)
            x, memory = (solver.step_back if inverse else solver.step)(x, memory, v)
        ctx.solver, ctx.function, ctx.inverse, ctx.dtype = solver, function, inverse, v.dtype
        ctx.save_for_backward(x, memory, *tensors)
        return x, memory

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, grad_memory: Tensor) -> tuple[Tensor | None, ...]:
        solver, inverse = ctx.solver, ctx.inverse
        x, memory, *saved = ctx.saved_tensors
        inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in saved]
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        sums: list[Tensor | None] = [None] * len(wanted)
        for i in range(solver.num_steps) if inverse else reversed(range(solver.num_steps)):
            # the state at which this step evaluated the velocity is present on both of its sides
            at = (x if inverse else memory).detach().to(ctx.dtype).requires_grad_()
            with torch.enable_grad():
                v = ctx.function(at, i * solver.dt, *inputs)
            x, memory = (solver.step if inverse else solver.step_back)(x, memory, v.detach())
            gradient = solver.step_back_gradient if inverse else solver.step_gradient
            grad_x, grad_memory, grad_v = gradient(grad_x, grad_memory)
            grad_v = grad_v.to(v.dtype)
            grad_at, *parts = torch.autograd.grad(v, [at, *wanted], grad_v, allow_unused=True)
            if inverse:
                grad_memory = grad_memory + grad_at
            else:
                grad_x = grad_x + grad_at
            _add(sums, parts)
            del v, at, parts, grad_at, grad_v  # the next evaluation needs most memory
        filled = iter(sums)
        return (None, None, None, grad_x, grad_memory, *(next(filled) if t.requires_grad else None for t in saved))


def _add(sums: list[Tensor | None], parts: Sequence[Tensor | None]) -> None:
    for n, part in enumerate(parts):
        total = sums[n]
        if total is None:  # a copy: autograd may hand out one tensor as two gradients
            sums[n] = None if part is None else part.clone()
        elif part is not None:
            total.add_(part)
