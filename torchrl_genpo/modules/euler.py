# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Euler's rule: how a flow is sampled where no density is needed."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import ExplorationType
from torchrl.envs.utils import exploration_type

from torchrl_genpo.modules.actor import ReversibleFlowActor

__all__ = ["EulerActor"]


class EulerActor(TensorDictModuleBase):
    """Samples the flow of a policy by Euler's rule: no density, but what a pre-trained flow was meant for.

    Args:
        actor (ReversibleFlowActor): the policy; shares its velocity and keys.
        num_steps (int, optional): velocity evaluations an action. Defaults to the solver's.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_genpo import ReversibleFlowActor, VelocityMLP
        >>> from torchrl_genpo.modules import EulerActor
        >>> actor = ReversibleFlowActor(VelocityMLP(obs_dim=4, action_dim=2, hidden_sizes=(32, 32)))
        >>> EulerActor(actor)(TensorDict(observation=torch.randn(8, 4), batch_size=[8]))["action"].shape
        torch.Size([8, 2])
    """

    def __init__(self, actor: ReversibleFlowActor, num_steps: int | None = None) -> None:
        super().__init__()
        self.velocity = actor.velocity
        self.num_steps = actor.solver.num_steps if num_steps is None else num_steps
        self.in_keys, self.out_keys = actor.in_keys, [actor.action_key]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the action; from zero noise unless the exploration type is ``RANDOM``."""
        context = self.velocity.condition(*(tensordict.get(key) for key in self.in_keys))
        shape = (*tensordict.batch_size, self.velocity.action_dim)
        is_random = exploration_type() in (None, ExplorationType.RANDOM)
        x = (torch.randn if is_random else torch.zeros)(shape, device=tensordict.device)
        for step in range(self.num_steps):
            x = x + self.velocity(x, step / self.num_steps, context) / self.num_steps
        return tensordict.set(self.out_keys[0], x)
