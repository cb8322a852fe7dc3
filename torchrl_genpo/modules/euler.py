# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Sampling a flow by Euler's rule, where no density is needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential, dispatch
from torch import Tensor, nn
from torchrl.envs import ExplorationType
from torchrl.envs.utils import exploration_type

from torchrl_genpo.flow import ConditionedVelocity, Velocity, euler
from torchrl_genpo.modules.inputs import as_keys, network_dtype, read
from torchrl_genpo.modules.sequence import flow_of, steps

__all__ = ["EulerActor", "draw_noise"]


class EulerActor(TensorDictModuleBase):
    """Samples a flow by Euler's rule, as a pre-trained flow is meant to be sampled; the action has no density.

    Args:
        velocity (Velocity): such as :class:`~torchrl_genpo.VelocityMLP`.
        num_steps (int, optional): velocity evaluations an action. Defaults to ``10``.

    Keyword Args:
        in_keys (NestedKey or list of NestedKey, optional): the observations. Defaults to ``["observation"]``.
        action_key (NestedKey, optional): defaults to ``"action"``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_genpo import ReversibleFlowActor, VelocityMLP
        >>> from torchrl_genpo.modules import EulerActor
        >>> actor = ReversibleFlowActor(VelocityMLP(in_features=4, action_dim=2, num_cells=(32, 32)))
        >>> data = TensorDict(observation=torch.randn(8, 4), batch_size=[8])
        >>> EulerActor.of(actor)(data)["action"].shape  # the same velocity, sampled as it was pre-trained
        torch.Size([8, 2])
    """

    def __init__(
        self,
        velocity: Velocity,
        num_steps: int = 10,
        *,
        in_keys: NestedKey | Sequence[NestedKey] = "observation",
        action_key: NestedKey = "action",
    ) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        self.velocity = velocity
        self.num_steps = num_steps
        self.action_key = action_key
        self.in_keys, self.out_keys = as_keys(in_keys), [action_key]

    @classmethod
    def of(cls, policy: nn.Module, num_steps: int | None = None) -> TensorDictModuleBase:
        """Samples the velocity of another policy, with the same keys and, by default, its solver's number of steps.

        Args:
            policy (nn.Module): a :class:`~torchrl_genpo.ReversibleFlowActor`, or a sequence with one, of which a
                sequence with this module in its place is made.
            num_steps (int, optional): velocity evaluations an action. Defaults to ``solver.num_steps`` of the actor.

        Raises:
            ValueError: for an actor with a ``gaussian``.
        """
        actor = flow_of(policy)
        if getattr(actor, "gaussian", None) is not None:
            raise ValueError("Euler's rule samples a velocity alone, and this actor bends a gaussian.")
        num_steps = actor.solver.num_steps if num_steps is None else num_steps
        euler_actor = cls(actor.velocity, num_steps, in_keys=actor.in_keys, action_key=actor.action_key)
        if policy is actor:
            return euler_actor
        return TensorDictSequential(*(euler_actor if step is actor else step for step in steps(policy)))

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the action, which comes from zero noise unless the exploration type is ``RANDOM``."""
        observations = read(tensordict, *self.in_keys)
        velocity = ConditionedVelocity(self.velocity, self.velocity.condition(*observations))
        shape = (*observations[0].shape[:-1], self.velocity.action_dim)
        x = draw_noise(shape, network_dtype(self.velocity, observations[0]), observations[0].device)
        return tensordict.set(self.action_key, euler(velocity, x, self.num_steps))


def draw_noise(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Draws normal noise, or returns zeros unless the exploration type is ``RANDOM``."""
    is_random = exploration_type() in (None, ExplorationType.RANDOM)
    return (torch.randn if is_random else torch.zeros)(tuple(shape), dtype=dtype, device=device)
