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
    """``solver.integrate`` whose backward pass steps back through the states (and so inherits their rounding)."""
    return _apply(solver, velocity, x, memory, inverse=False)


@torch.compiler.disable
def invert_reversibly(
    solver: ReversibleSolver, velocity: VelocityField, x: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """``solver.invert`` whose backward pass steps forward again, the stable direction."""
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
    """One pass of a solver, in either direction, that saves its results only."""

    @staticmethod
    def forward(
        ctx: Any, solver: Any, function: Any, inverse: bool, x: Tensor, memory: Tensor, *tensors: Tensor
    ) -> Any:
        states = solver.split(x, memory)
        for i in reversed(range(solver.num_steps)) if inverse else range(solver.num_steps):
            v = function(states[1 if inverse else 0], i * solver.dt, *tensors)
            states = (solver.step_back if inverse else solver.step)(i, states, v)
        x, memory = solver.join(states)
        ctx.solver, ctx.function, ctx.inverse, ctx.dtype = solver, function, inverse, v.dtype
        ctx.save_for_backward(x, memory, *tensors)
        return x, memory

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, grad_memory: Tensor) -> tuple[Tensor | None, ...]:
        solver, inverse = ctx.solver, ctx.inverse
        x, memory, *saved = ctx.saved_tensors
        states, grads = solver.split(x, memory), solver.split(grad_x, grad_memory)
        inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in saved]
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        sums: list[Tensor | None] = [None] * len(wanted)
        for i in range(solver.num_steps) if inverse else reversed(range(solver.num_steps)):
            # the state that this step evaluated the velocity at, present on both of its sides
            at = states[0 if inverse else 1].detach().to(ctx.dtype).requires_grad_()
            with torch.enable_grad():
                v = ctx.function(at, i * solver.dt, *inputs)
            states = (solver.step if inverse else solver.step_back)(i, states, v.detach())
            grads, grad_v = (solver.step_back_gradient if inverse else solver.step_gradient)(i, grads)
            grad_v = grad_v.to(v.dtype)
            grad_at, *parts = torch.autograd.grad(v, [at, *wanted], grad_v, allow_unused=True)
            grads[1 if inverse else 0] = grads[1 if inverse else 0] + grad_at
            _add(sums, parts)
            del v, at, parts, grad_at, grad_v  # the next evaluation needs most memory
        grad_x, grad_memory = solver.join(grads)
        filled = iter(sums)
        return (None, None, None, grad_x, grad_memory, *(next(filled) if t.requires_grad else None for t in saved))


def _add(sums: list[Tensor | None], parts: Sequence[Tensor | None]) -> None:
    for n, part in enumerate(parts):
        total = sums[n]
        if total is None:  # a copy: autograd may hand out one tensor as two gradients
            sums[n] = None if part is None else part.clone()
        elif part is not None:
            total.add_(part)
