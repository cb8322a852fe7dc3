# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Flow matching, which trains a flow policy on demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor, nn
from torchrl.objectives.common import LossModule

from torchrl_genpo.flow import Velocity, check_velocity
from torchrl_genpo.modules.inputs import condition, network_dtype, read
from torchrl_genpo.modules.sequence import flow_of, steps

__all__ = ["FlowMatchingLoss", "flow_matching", "flow_matching_error"]


def flow_matching_error(velocity: Velocity, context: Any, action: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Error ``[..., d]`` of a velocity on the straight path from noise to action, where it should be their difference.

    Args:
        velocity (Velocity): the network.
        context (Any): what ``velocity.condition`` returned for the observations.
        action (Tensor): ``[..., d]``, end of the path.
        noise (Tensor): ``[..., d]``, beginning of the path.
        time (Tensor): ``[...]``, the place on it, in ``[0, 1]``.

    Examples:
        >>> import torch
        >>> from torchrl_genpo import VelocityMLP
        >>> velocity = VelocityMLP(in_features=4, action_dim=2, num_cells=(32,))
        >>> context = velocity.condition(torch.randn(8, 4))
        >>> flow_matching_error(velocity, context, torch.zeros(8, 2), torch.randn(8, 2), torch.rand(8)).shape
        torch.Size([8, 2])
    """
    if action.shape[-1] != velocity.action_dim:
        raise ValueError(f"The flow has actions of size {velocity.action_dim}, got {action.shape[-1]}.")
    dtype = network_dtype(velocity, action)
    action, noise, time = action.to(dtype), noise.to(dtype), time.to(dtype)
    x = torch.lerp(noise, action, time.unsqueeze(-1))
    value = velocity(x, time, context)
    check_velocity(value, x)
    return value - (action - noise)


def flow_matching(
    policy: nn.Module, tensordict: TensorDictBase, action: Tensor, is_pad: Tensor | None = None
) -> Tensor:
    """Mean square ``[...]`` of :func:`flow_matching_error` at one noise and time a sample.

    Args:
        policy (nn.Module): as of :class:`FlowMatchingLoss`.
        tensordict (TensorDictBase): what it reads.
        action (Tensor): the action of its flow, ``[..., d]``.
        is_pad (Tensor, optional): ``[..., d]``, which numbers of the action do not count. Defaults to none.
    """
    action = action if action.is_floating_point() else action.to(torch.get_default_dtype())
    velocity, context = condition(policy, tensordict)
    samples = action.shape[:-1]
    if isinstance(context, Tensor) and context.shape[: len(samples)] != samples:
        raise ValueError(
            f"The actions {list(action.shape)} are of the samples {list(samples)}, and the observations of others, "
            f"which became a context {list(context.shape)}."
        )
    noise, time = torch.randn_like(action), torch.rand_like(action[..., 0])
    error = flow_matching_error(velocity, context, action, noise, time)
    if is_pad is None:
        return error.square().mean(-1)
    if is_pad.shape != error.shape:
        raise ValueError(
            f"The padding must have the shape of the action, {list(error.shape)}, got {list(is_pad.shape)}."
        )
    is_real = is_pad.logical_not()
    return (error.square() * is_real).sum(-1) / is_real.sum(-1).clamp_min(1)


class FlowMatchingLoss(LossModule):
    r"""Rectified flow, conditioned on the observation, for every policy that has a velocity.

    With :math:`x_1` the action of the data, :math:`x_0 \sim N(0, I)` and :math:`t \sim U[0, 1]`, one of each for
    every sample,

    .. math:: L = \mathbb{E}\, \big| v_\theta\big((1-t)\, x_0 + t\, x_1,\, t \mid o\big) - (x_1 - x_0) \big|^2 / d .

    The velocity is trained, and what the policy has before it, such as an encoder. Any solver and start can then
    integrate it; a
    :class:`~torchrl_genpo.ConsistentStart` expects the :math:`x_0` that was trained, the paper's independent
    start a narrower one (``benchmarks/results/fidelity.md``).

    References:
        Lipman et al., "Flow Matching for Generative Modeling", arXiv 2210.02747.
        Liu et al., "Flow Straight and Fast", arXiv 2209.03003 (rectified flow).

    Args:
        actor_network (TensorDictModule): the policy: a :class:`~torchrl_genpo.ReversibleFlowActor`, any other module
            with ``velocity``, ``in_keys`` and ``action_key``, or a sequence with one of them. The action of the data
            is that module's own, before the units of the task, from which ``normalize`` of an ``ActionScale`` or
            ``Squash`` makes it.

    Keyword Args:
        reduction (str, optional): ``"none"``, ``"mean"`` or ``"sum"`` over the samples. Defaults to
            ``"mean"``.

    Raises:
        TypeError: if ``actor_network`` has no velocity.
        ValueError: for an actor with a ``gaussian``, or an unknown reduction; in ``forward``, for the mean over an
            empty batch.
        KeyError: in ``forward``, if the data lacks the action of the flow.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_genpo import FlowMatchingLoss, ReversibleFlowActor, VelocityMLP
        >>> actor = ReversibleFlowActor(VelocityMLP(in_features=4, action_dim=2, num_cells=(32, 32)))
        >>> loss = FlowMatchingLoss(actor)
        >>> data = TensorDict(observation=torch.randn(8, 4), action=torch.randn(8, 2), batch_size=[8])
        >>> loss(data)["loss_flow_matching"].backward()
        >>> loss(observation=data["observation"], action=data["action"]).shape
        torch.Size([])
    """

    @dataclass
    class _AcceptedKeys:
        """The keys of the action (by default the actor's own) and of the mask that says where it is padding."""

        action: NestedKey = "action"
        action_is_pad: NestedKey = "action_is_pad"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    out_keys: list[NestedKey] = ["loss_flow_matching"]  # noqa: RUF012  # TorchRL's convention

    actor_network: Any
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(self, actor_network: TensorDictModuleBase, *, reduction: str = "mean") -> None:
        actor = flow_of(actor_network)
        if getattr(actor, "gaussian", None) is not None:
            raise ValueError("Flow matching trains a velocity alone, and this actor bends a gaussian: leave that out.")
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}.")
        self._in_keys: list[NestedKey] | None = None
        super().__init__()
        self.reduction = reduction
        self.convert_to_functional(actor_network, "actor_network")
        self.set_keys(action=actor.action_key)

    @property
    def in_keys(self) -> list[NestedKey]:
        """The keys of the observations and of the action."""
        if self._in_keys is None:
            self._in_keys = [*self.actor_network.in_keys, self.tensor_keys.action]
        return self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        self._in_keys = None

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes ``loss_flow_matching`` for observations ``[..., n]`` and actions ``[..., d]``.

        Numbers of the action that ``action_is_pad`` ``[..., d]`` marks as padding, if it is there, do not count.
        """
        key = self.tensor_keys.action
        last = steps(self.actor_network)[-1]
        if tensordict.get(key, None) is None and hasattr(last, "normalize"):
            raise KeyError(
                f"The data has no {key!r}, the action of the flow before {type(last).__name__} brings it to the units "
                f"of the task. Write that module's normalize(action) under this key."
            )
        (action,) = read(tensordict, key)
        if self.reduction == "mean" and not action.numel():
            raise ValueError(f"The mean over an empty batch is undefined, got actions of {tuple(action.shape)}.")
        is_pad = tensordict.get(self.tensor_keys.action_is_pad, None)
        with self.actor_network_params.to_module(self.actor_network):
            loss = flow_matching(self.actor_network, tensordict, action, is_pad)
        loss = self._reduce_loss(loss, tensordict)
        return TensorDict(
            {"loss_flow_matching": loss}, batch_size=[] if self.reduction != "none" else action.shape[:-1]
        )
