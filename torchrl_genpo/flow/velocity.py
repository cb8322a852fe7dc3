# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Velocity fields v(x, t | observation), which are the networks of a flow policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = [
    "ConditionedVelocity",
    "TimeEmbedding",
    "Velocity",
    "VelocityMLP",
    "check_velocity",
]

OUTPUT_GAIN = 0.01  # the last layer is small: the first policy is almost the start itself, without saturated actions


@runtime_checkable
class Velocity(Protocol):
    """What a module must offer to be the velocity of a flow policy.

    ``condition`` is called once per observation and its result, the context, is passed to every
    evaluation: whatever depends on the observation alone belongs there.

    Observations are vectors: an encoder of images is a module before the actor (``examples/pixels.py``). What fixes
    the function of a velocity beside its parameters, such as an activation, belongs into an attribute ``settings``, a
    dict of plain values, which a state dict of the actor remembers.

    A velocity may mix several agents, ``x [..., agents, d]``: the sum over the agents of the log densities that the
    flow returns is then that of all of them together, while one agent's alone is no density.
    """

    action_dim: int

    def condition(self, *observations: Tensor) -> Any:
        """Turns observations ``[..., n]`` into the context of the calls that follow."""

    def __call__(self, x: Tensor, t: float | Tensor, context: Any) -> Tensor:
        """Velocity ``[..., d]`` at the state ``x [..., d]`` and time ``t`` in ``[0, 1]``.

        ``t`` is one number for all, or (in flow matching) a tensor ``[...]``.
        """


def check_velocity(value: Tensor, x: Tensor) -> None:
    """Refuses a velocity of another shape than its state, which would be broadcast to a wrong action."""
    if value.shape != x.shape:
        raise ValueError(
            f"The velocity of a state {list(x.shape)} must have its shape, but the network returned "
            f"{list(value.shape)}: it needs one output for each number of the action."
        )


class ConditionedVelocity:
    """A velocity with its context bound: the callable ``(x, t) -> [..., d]`` that solvers integrate.

    It repeats no evaluation that directly follows itself: a start that needs ``v(x_0, 0)`` shares
    that of the solver's first step. It is meant to live for one pass, while the parameters stay as they are.

    Args:
        velocity (Callable): the velocity ``(x, t, context) -> [..., d]``; it must be a module for
            ``gradient="reversible"``.
        context (Any, optional): what ``velocity.condition`` returned.
        dtype (torch.dtype, optional): dtype of the network. The states may have another one
            (:meth:`ReversibleSolver.state_dtype`). Defaults to that of ``x``.
    """

    def __init__(self, velocity: Callable[..., Tensor], context: Any = None, dtype: torch.dtype | None = None) -> None:
        self.velocity = velocity
        self.context = context
        self.dtype = dtype
        self._last: tuple[Tensor, float, bool, Tensor] | None = None

    def __call__(self, x: Tensor, t: float) -> Tensor:
        if self._last is not None:
            at, time, with_grad, value = self._last
            if at is x and time == t and with_grad == torch.is_grad_enabled():
                return value
        value = self.velocity(x if self.dtype is None else x.to(self.dtype), t, self.context)
        check_velocity(value, x)
        self._last = (x, t, torch.is_grad_enabled(), value)
        return value

    def functional(self) -> tuple[Callable[..., Tensor], list[Tensor]]:
        """A pure function ``(x, t, *tensors)``, and the tensors: context, parameters and buffers.

        Raises:
            TypeError: if the velocity is no module, or its context is no tensor.
        """
        module, context, dtype = self.velocity, self.context, self.dtype
        if not isinstance(module, nn.Module) or not isinstance(context, Tensor):
            raise TypeError(
                "gradient='reversible' needs a velocity that is a module and whose context is one tensor, got "
                f"{type(module).__name__} and {type(context).__name__}; use gradient='stored'."
            )
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}

        def function(x: Tensor, t: float, context: Tensor, *values: Tensor) -> Tensor:
            x = x if dtype is None else x.to(dtype)
            value = torch.func.functional_call(module, dict(zip(state, values, strict=True)), (x, t, context))
            check_velocity(value, x)
            return value

        return function, [context, *state.values()]


def joined(network: nn.Module, observations: Sequence[Tensor]) -> Tensor:
    """Joins the observations of a network that has a size ``in_features``, or refuses another size."""
    observation = observations[0] if len(observations) == 1 else torch.cat(list(observations), -1)
    if observation.shape[-1] != network.in_features:
        raise ValueError(
            f"{type(network).__name__} was built for observations of size {network.in_features}, got "
            f"{observation.shape[-1]}."
        )
    return observation


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time, at frequencies from 1 to 100, together of unit norm.

    Args:
        dim (int, optional): number of sines and cosines together; even, at least 4. Defaults to ``32``.

    Raises:
        ValueError: if ``dim`` is odd or below 4.

    Examples:
        >>> TimeEmbedding(dim=8)(0.2).shape
        torch.Size([8])
    """

    MAX_FREQUENCY = 100.0  # it resolves steps of 1/100 of the unit interval, finer than any solver here takes

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"time_embedding_dim must be an even number of at least 4, got {dim}.")
        self.out_features = dim
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.logspace(0, math.log10(self.MAX_FREQUENCY), dim // 2))

    def forward(self, t: float | Tensor) -> Tensor:
        """Embeds a time for the whole batch, ``[dim]``, or a tensor of times ``[...]``, ``[..., dim]``."""
        angle = self.frequencies * (t.unsqueeze(-1) if isinstance(t, Tensor) else t)
        return torch.cat([angle.sin(), angle.cos()], -1) * (2 / self.out_features) ** 0.5


class VelocityMLP(nn.Module):
    """An MLP velocity field whose first layer is split by input.

    The first layer, ``W [observation, x, emb(t)] + b``, is computed as ``(W_o observation + b) + W_x [x, emb(t)]``: the
    observation's share once per observation (:meth:`condition`), the other, of few columns, once per sample and step.
    It is the same function as the undivided layer.

    An observation that passes a large network in every step is dear. A small velocity that reads the features of an
    encoder, which bends the noise of a Gaussian of these features, costs little more than a Gaussian policy.

    Args:
        in_features (int): size of the observation (of all observations together, if there are several).
        action_dim (int): size ``d`` of the action.
        num_cells (sequence of int, optional): hidden layers. Defaults to ``(256, 256, 256)``.
        activation_class (type, optional): activation. Defaults to ``nn.SiLU``.
        time_embedding_dim (int, optional): number of sines and cosines that encode the time; even, at least 4. Defaults
            to ``32``.

    Raises:
        ValueError: if a size is not positive or the time embedding is odd or too small.
        TypeError: if the activation is no class of modules.

    Examples:
        >>> import torch
        >>> from torchrl_genpo import VelocityMLP
        >>> velocity = VelocityMLP(in_features=4, action_dim=2, num_cells=(32, 32))
        >>> context = velocity.condition(torch.randn(8, 4))
        >>> velocity(torch.randn(8, 2), 0.2, context).shape
        torch.Size([8, 2])
    """

    def __init__(
        self,
        in_features: int,
        action_dim: int,
        num_cells: Sequence[int] = (256, 256, 256),
        activation_class: type[nn.Module] = nn.SiLU,
        time_embedding_dim: int = 32,
    ) -> None:
        super().__init__()
        if in_features < 1 or action_dim < 1:
            raise ValueError(f"in_features and action_dim must be at least 1, got {in_features} and {action_dim}.")
        if not num_cells or min(num_cells) < 1:
            raise ValueError(f"num_cells must name at least one positive size, got {tuple(num_cells)}.")
        if isinstance(activation_class, nn.Module) or not callable(activation_class):
            raise TypeError(f"activation_class must be a class of modules, such as nn.Tanh, got {activation_class!r}.")
        self.in_features = in_features
        self.action_dim = action_dim
        self.context_dim = num_cells[0]
        self.settings = {"activation_class": type(activation_class()).__name__}
        self.time_embedding = TimeEmbedding(time_embedding_dim)
        width = num_cells[0]
        self.observation_layer = nn.Linear(in_features, width)
        self.state_layer = nn.Linear(action_dim + time_embedding_dim, width, bias=False)
        layers: list[nn.Module] = [activation_class()]
        for size, next_size in pairwise(num_cells):
            layers += [nn.Linear(size, next_size), activation_class()]
        self.trunk = nn.Sequential(*layers, nn.Linear(num_cells[-1], action_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws orthogonal weights, zero biases and a small last layer, as is usual for PPO."""
        linears = [m for m in self.trunk if isinstance(m, nn.Linear)]
        first = [self.observation_layer, self.state_layer]
        # orthogonal as one matrix, so that the split changes neither the function nor its initial law
        joint = torch.empty(self.observation_layer.out_features, sum(m.in_features for m in first))
        nn.init.orthogonal_(joint, math.sqrt(2))
        with torch.no_grad():
            for layer, block in zip(first, joint.split([m.in_features for m in first], dim=1), strict=True):
                layer.weight.copy_(block)
        nn.init.zeros_(self.observation_layer.bias)
        for layer in linears:
            nn.init.orthogonal_(layer.weight, OUTPUT_GAIN if layer is linears[-1] else math.sqrt(2))
            nn.init.zeros_(layer.bias)

    def condition(self, *observations: Tensor) -> Tensor:
        """The observation's share of the first layer, ``[..., num_cells[0]]``.

        Args:
            *observations (Tensor): one or more observations ``[..., n_k]``, whose sizes ``n_k`` sum to ``in_features``.

        Raises:
            ValueError: if the sizes do not sum to ``in_features``.
        """
        return self.observation_layer(joined(self, observations))

    def forward(self, x: Tensor, t: float | Tensor, context: Tensor) -> Tensor:
        time = self.time_embedding(t).expand(*x.shape[:-1], -1)
        return self.trunk(self.state_layer(torch.cat([x, time], -1)) + context)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, action_dim={self.action_dim}"
