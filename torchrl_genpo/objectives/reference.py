# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A frozen policy near which another one is kept."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_genpo.flow import ReversibleFlow
from torchrl_genpo.modules.actor import ReversibleFlowActor
from torchrl_genpo.modules.sequence import dist_of, flow_of

__all__ = ["Reference"]


class Reference(nn.Module):
    """A copy of a policy, frozen as it is now, and the divergence of another policy from it.

    Args:
        policy (TensorDictModule): the policy that is trained, with a :class:`~torchrl_genpo.ReversibleFlowActor`.
        reference (TensorDictModule): the policy that is copied.

    Raises:
        TypeError: if the reference has no :class:`~torchrl_genpo.ReversibleFlowActor`.
        ValueError: if its actions are of another size.
    """

    def __init__(self, policy: TensorDictModuleBase, reference: TensorDictModuleBase) -> None:
        super().__init__()
        actor, other = flow_of(policy), ReversibleFlowActor.find_in(reference)
        size, own = other.velocity.action_dim, actor.velocity.action_dim
        if size != own:
            raise ValueError(f"The reference has actions of size {size}, the policy of size {own}.")
        self._is_same_flow = _is_same_flow(policy, reference)
        self.policy = deepcopy(reference).requires_grad_(False)

    def forward(self, dist: ReversibleFlow, tensordict: TensorDictBase) -> Tensor:
        """Divergence ``[*batch]`` of the policy's distribution from the reference for the data's observations.

        It is that of the starts, in closed form, where nothing else is trained, and else of one new pair a sample.
        """
        if self._is_same_flow:
            return dist.kl_divergence(dist.with_start(flow_of(self.policy).start))
        return dist.kl_divergence(dist_of(self.policy, tensordict))


def _is_same_flow(policy: nn.Module, reference: nn.Module) -> bool:
    """Whether the two differ in their starts alone, and nothing else of the policy is trained."""
    (own, kinds), (other, others) = _all_but_start(policy), _all_but_start(reference)
    is_equal = own.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in own.items())
    return kinds == others and is_equal and not any(value.requires_grad for value in own.values())


def _all_but_start(policy: nn.Module) -> tuple[dict[str, Tensor], list[Any]]:
    """The parameters and buffers of a policy without those of its start, and the rest of what it computes with."""
    actor = flow_of(policy)
    start = {id(part) for part in (*actor.start.modules(), *actor.start.parameters(), *actor.start.buffers())}
    tensors = (*policy.named_parameters(), *policy.named_buffers())
    values = {name: value for name, value in tensors if id(value) not in start}
    kinds = [type(module) for module in policy.modules() if id(module) not in start]
    settings = actor.get_extra_state()
    return values, [*kinds, settings["solver"], settings["velocity"]]
