# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""How losses and exporters look into a policy that is a sequence of modules."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential
from torch import nn

__all__ = ["dist_of", "encode", "flow_of", "steps"]


def steps(policy: nn.Module) -> list[nn.Module]:
    """The modules of a policy in the order in which they run, nested sequences unfolded.

    Examples:
        >>> from tensordict.nn import TensorDictModule as Mod, TensorDictSequential as Seq
        >>> copy = lambda a, b: Mod(nn.Identity(), [a], [b])
        >>> [step.out_keys for step in steps(Seq(copy("a", "b"), Seq(copy("b", "c"), copy("c", "d"))))]
        [['b'], ['c'], ['d']]
    """
    if not isinstance(policy, TensorDictSequential):
        return [policy]
    return [step for module in policy.module.children() for step in steps(module)]


def flow_of(policy: nn.Module) -> Any:
    """The module of a policy that has a ``velocity``: the policy itself, or the one such member of a sequence.

    Raises:
        TypeError: if there is none, or more than one.

    Examples:
        >>> from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
        >>> from torchrl_genpo import ReversibleFlowActor, VelocityMLP
        >>> encoder = TensorDictModule(nn.Linear(8, 4), in_keys=["observation"], out_keys=["features"])
        >>> actor = ReversibleFlowActor(VelocityMLP(4, 2), in_keys=["features"])
        >>> flow_of(ProbabilisticTensorDictSequential(encoder, actor)) is actor
        True
    """
    found = [step for step in steps(policy) if hasattr(step, "velocity")]
    if len(found) != 1:
        raise TypeError(
            f"A policy with one velocity is needed, such as ReversibleFlowActor or a sequence that holds one; "
            f"{type(policy).__name__} has {len(found)}."
        )
    return found[0]


def encode(policy: nn.Module, tensordict: TensorDictBase) -> tuple[Any, TensorDictBase]:
    """What the velocity of a policy is given: runs every module before it.

    Args:
        policy (nn.Module): see :func:`flow_of`.
        tensordict (TensorDictBase): with the raw observations; it is left as it is.

    Returns:
        The module that has the velocity, and a shallow copy of the tensordict with what the modules before it wrote.
    """
    flow = flow_of(policy)
    for step in steps(policy):
        if step is flow:
            break
        tensordict = step(tensordict.copy())
    return flow, tensordict


def dist_of(policy: nn.Module, tensordict: TensorDictBase) -> Any:
    """The distribution of a policy's flow for raw observations, whether or not a pair is stored beside them.

    Args:
        policy (nn.Module): a :class:`~torchrl_genpo.ReversibleFlowActor`, or a sequence with one.
        tensordict (TensorDictBase): with the raw observations; it is left as it is.

    Raises:
        TypeError: if there is no such actor, or more than one.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_genpo import ReversibleFlowActor, VelocityMLP
        >>> actor = ReversibleFlowActor(VelocityMLP(4, 2))
        >>> dist_of(actor, TensorDict(observation=torch.randn(8, 4), batch_size=[8]))
        ReversibleFlow(batch_shape=(8,), action_dim=2)
    """
    actor, seen = encode(policy, tensordict)
    return actor.get_dist(seen.select(*actor.in_keys))  # a stored pair would be scored at once
