# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The reversible flow policy as a TensorDict module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import InteractionType, composite_lp_aggregate, dispatch, set_skip_existing
from tensordict.utils import unravel_key
from torch import Tensor, nn
from torchrl.data.tensor_specs import Composite, TensorSpec
from torchrl.modules.tensordict_module.probabilistic import SafeProbabilisticModule

from torchrl_genpo.flow import (
    ConditionedVelocity,
    IndependentStart,
    Pair,
    PairSolver,
    ReversibleFlow,
    ReversibleSolver,
    Start,
    Velocity,
)
from torchrl_genpo.modules.inputs import as_keys, network_dtype, read
from torchrl_genpo.modules.sequence import encode, flow_of

__all__ = ["ReversibleFlowActor"]


class ReversibleFlowActor(SafeProbabilisticModule):
    """A flow policy with exact likelihoods, as one probabilistic TensorDict module.

    It reads observations and writes ``action`` ``[..., d]``, ``action_memory`` ``[..., d]`` and ``action_log_prob``
    ``[...]``. The environment executes the action; the memory is stored beside it because only the pair can be
    inverted, and ``action_log_prob`` is the log density of the pair (arXiv 2606.06967). Collection costs
    ``solver.num_steps`` velocity evaluations and no inversion.

    Under ``ExplorationType.RANDOM`` the noise is drawn; ``DETERMINISTIC``, ``MODE``, ``MEAN`` and ``MEDIAN`` all mean
    zero noise.

    It may be a part of a sequence, behind a normaliser or an encoder and before the units of the action. The losses
    of this package take the whole sequence.

    Args:
        velocity (Velocity): a module with ``action_dim``, ``condition(*observations)`` and
            ``(x, t, context)``, such as :class:`~torchrl_genpo.VelocityMLP`.

    Keyword Args:
        solver (PairSolver, optional): defaults to ``ReversibleSolver()``.
        start (Start, optional): defaults to ``IndependentStart()``, the paper's.
        gaussian (nn.Module, optional): a module from the observations, several joined along their last dimension, to
            ``loc`` and ``scale`` ``[..., d]`` of a Gaussian policy, computed once, such as a network and
            ``AddStateIndependentNormalScale``. The actor is that policy while its velocity is zero, and the velocity
            bends its standardised noise. Where an encoder stands before the actor, a linear layer and a small velocity
            read its features for the price of a Gaussian policy. Defaults to none, for which the actions are what the
            solver makes of the start.
        in_keys (NestedKey or list of NestedKey, optional): the observations, passed to
            ``velocity.condition`` in this order; a tuple is one nested key. Defaults to ``"observation"``.
        action_key (NestedKey, optional): defaults to ``"action"``.
        memory_key (NestedKey, optional): defaults to ``"action_memory"``.
        log_prob_key (NestedKey, optional): defaults to ``"action_log_prob"``.
        spec (TensorSpec, optional): spec of the action; it is recorded and never enforced.
        safe (bool, optional): must be ``False``, because to project the action after it was scored would
            break the likelihood. Bounds belong to the environment.
        default_interaction_type (InteractionType, optional): what to do outside of
            ``set_exploration_type``. Defaults to ``RANDOM``.

    Raises:
        ValueError: for ``safe=True``, a spec of discrete actions, or a start whose size is not the velocity's; when it
            is called, for a velocity of another shape than its state; by ``load_state_dict``, for the state of another
            density.
        TypeError: if ``velocity`` lacks a part of the protocol.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_genpo import ReversibleFlowActor, VelocityMLP
        >>> actor = ReversibleFlowActor(VelocityMLP(in_features=4, action_dim=2, num_cells=(32, 32)))
        >>> td = actor(TensorDict(observation=torch.randn(8, 4), batch_size=[8]))
        >>> sorted(td.keys())
        ['action', 'action_log_prob', 'action_memory', 'observation']
        >>> torch.allclose(actor.log_prob(td), td["action_log_prob"], atol=1e-4)
        True
    """

    flow_class: type[ReversibleFlow] = ReversibleFlow

    def __init__(
        self,
        velocity: Velocity,
        *,
        solver: PairSolver | None = None,
        start: Start | None = None,
        gaussian: nn.Module | None = None,
        in_keys: NestedKey | Sequence[NestedKey] = "observation",
        action_key: NestedKey = "action",
        memory_key: NestedKey = "action_memory",
        log_prob_key: NestedKey = "action_log_prob",
        spec: TensorSpec | None = None,
        safe: bool = False,
        default_interaction_type: InteractionType = InteractionType.RANDOM,
    ) -> None:
        if not isinstance(velocity, nn.Module) or not isinstance(velocity, Velocity):
            raise TypeError(
                f"velocity must be a module with action_dim, condition(observation) and a call (x, t, context), "
                f"got {type(velocity).__name__}."
            )
        if safe:
            raise ValueError(
                "safe=True would project the action after it was scored, and the stored likelihood would no "
                "longer be that of the action. Bound the action in the environment (clip it there) instead."
            )
        start = IndependentStart() if start is None else start
        solver = ReversibleSolver() if solver is None else solver
        start_dim = getattr(start, "action_dim", None)
        if start_dim is not None and start_dim != velocity.action_dim:
            raise ValueError(f"The start has action_dim={start_dim}, the velocity action_dim={velocity.action_dim}.")
        if isinstance(spec, Composite):
            spec = spec[action_key]
        if spec is not None and spec.domain != "continuous":
            raise ValueError(f"A flow has continuous actions; the spec is {type(spec).__name__}, {spec.domain}.")
        if spec is not None and spec.ndim and spec.shape[-1] != velocity.action_dim:
            raise ValueError(f"The spec has actions of size {spec.shape[-1]}, the velocity {velocity.action_dim}.")
        log_prob_key = unravel_key(log_prob_key)
        # one density for the pair, whichever way TensorDict is set to treat the densities of several keys
        aggregate = composite_lp_aggregate(nowarn=True)
        super().__init__(
            in_keys=as_keys(in_keys),
            out_keys=[unravel_key(action_key), unravel_key(memory_key)],
            spec=None,
            distribution_class=self.flow_class,
            default_interaction_type=default_interaction_type,
            return_log_prob=True,
            **({"log_prob_key": log_prob_key} if aggregate else {"log_prob_keys": [log_prob_key]}),
        )
        if spec is not None:
            self._spec[self.action_key] = spec.clone()
        self.velocity = velocity
        self.start = start
        self.solver = solver
        self.gaussian = gaussian
        if gaussian is not None:  # the law without a velocity, by which a Gaussian's deviation is that of the action
            self.register_buffer("memory_weight", start.memory_weight(solver))
            self.register_buffer("width", start.width(solver))

    @property
    def action_key(self) -> NestedKey:
        """Key of the action."""
        return self.dist_sample_keys[0]

    @property
    def memory_key(self) -> NestedKey:
        """Key of the memory."""
        return self.dist_sample_keys[1]

    @dispatch(auto_batch_size=False)
    @set_skip_existing(None)
    def forward(
        self, tensordict: TensorDictBase, tensordict_out: TensorDictBase | None = None, _requires_sample: bool = True
    ) -> TensorDictBase:
        """Writes the action, its memory and the log density of the pair."""
        if tensordict_out is None:
            tensordict_out = tensordict
        # a collector's tensordict still holds the last step's pair, which must not be scored here
        keys = self.in_keys if _requires_sample else [*self.in_keys, *self.dist_sample_keys]
        return super().forward(tensordict.select(*keys), tensordict_out, _requires_sample=_requires_sample)

    def get_dist(self, tensordict: TensorDictBase) -> ReversibleFlow:
        """The distribution of the pair for the observations of a tensordict.

        If the tensordict holds a pair, it is scored at once, and ``dist.log_prob(action)`` returns its density.
        (TorchRL's PPO builds the distribution inside of ``params.to_module`` but scores outside of it, where a
        distribution that holds the network would silently use other parameters.)
        """
        pair = (tensordict.get(self.action_key, None), tensordict.get(self.memory_key, None))
        return self._build_dist(tensordict, None if pair[0] is None or pair[1] is None else pair)

    build_dist_from_params = get_dist

    def log_prob(self, tensordict: TensorDictBase, *, dist: ReversibleFlow | None = None) -> Tensor:
        """Log density ``[...]`` of the pair that is stored in the tensordict.

        Raises:
            KeyError: if the action or its memory is missing.
        """
        if dist is None:
            dist = self._build_dist(tensordict)
        return dist.log_prob(*self.read_pair(tensordict, self.action_key, self.memory_key))

    def log_ratio(self, tensordict: TensorDictBase, reference: nn.Module) -> Tensor:
        """Log likelihood ratio ``[...]`` of the stored pair, of this actor to another policy.

        Args:
            tensordict (TensorDictBase): the pair, what this actor reads, and what ``reference`` reads.
            reference (nn.Module): another actor, or a sequence with one, of any velocity, solver and start.

        Raises:
            KeyError: if the data lacks a key of the two.
            TypeError: if ``reference`` has no density of pairs.

        Examples:
            >>> import torch
            >>> from tensordict import TensorDict
            >>> from torchrl_genpo import ReversibleFlowActor, VelocityMLP
            >>> actor, reference = (ReversibleFlowActor(VelocityMLP(in_features=4, action_dim=2)) for _ in range(2))
            >>> data = reference(TensorDict(observation=torch.randn(8, 4), batch_size=[8]))
            >>> actor.log_ratio(data, reference).shape
            torch.Size([8])
        """
        other = self.find_in(reference)
        _, seen = encode(reference, tensordict)
        pair = self.read_pair(tensordict, self.action_key, self.memory_key)
        return self.log_prob(tensordict) - other._build_dist(seen).log_prob(*pair)

    def action_log_prob(self, tensordict: TensorDictBase, num_samples: int = 64) -> Tensor:
        """Log density ``[...]`` of stored actions alone, such as those of demonstrations, which have no memory.

        It is estimated with memories that are drawn for the actions, see :meth:`ReversibleFlow.action_log_prob`, and
        is differentiable in the parameters: ``-actor.action_log_prob(demonstrations).mean()`` trains on likelihood.

        Args:
            tensordict (TensorDictBase): what the actor reads, and actions ``[..., d]``; a memory is not read.
            num_samples (int, optional): memories an action. Defaults to ``64``.

        Raises:
            KeyError: if the action or an observation is missing.
            ValueError: if the batch size of the tensordict is not that of the actions.

        Examples:
            >>> import torch
            >>> from tensordict import TensorDict
            >>> from torchrl_genpo import ReversibleFlowActor, VelocityMLP
            >>> actor = ReversibleFlowActor(VelocityMLP(in_features=4, action_dim=2))
            >>> data = TensorDict(observation=torch.randn(8, 4), action=torch.randn(8, 2), batch_size=[8])
            >>> actor.action_log_prob(data, num_samples=16).shape
            torch.Size([8])
        """
        (action,) = read(tensordict, self.action_key)
        if action.ndim != tensordict.ndim + 1:
            raise ValueError(
                f"Actions {list(action.shape)} in a tensordict of batch size {list(tensordict.shape)}: give it the "
                "batch size of its actions, agents included (of agents that a velocity mixes there is no estimate)."
            )
        return self._build_dist(tensordict).action_log_prob(action, num_samples).log_prob

    def get_extra_state(self) -> dict[str, Any]:
        """What fixes the density beside the parameters, for the state dict."""
        velocity = getattr(self.velocity, "settings", {})
        return {"solver": self.solver.settings, "start": self.start.settings, "velocity": velocity}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuses the parameters of another density, as which they would load without a word."""
        mine = self.get_extra_state()
        for part in mine:
            for name in mine[part].keys() | state[part].keys():
                here, there = mine[part].get(name), state[part].get(name)
                if here != there:
                    raise ValueError(
                        f"The state is that of another density: its {part} has {name}={there!r}, that of this actor "
                        f"{name}={here!r}."
                    )

    def __repr__(self) -> str:
        keys = f"in_keys={self.in_keys}, out_keys={self.out_keys}"
        parts = {"velocity": self.velocity, "solver": self.solver, "start": self.start, "gaussian": self.gaussian}
        lines = [f"{name}={part!r}".replace("\n", "\n    ") for name, part in parts.items()]
        return f"{type(self).__name__}(\n    " + ",\n    ".join([*lines, keys]) + ")"

    @staticmethod
    def find_in(policy: nn.Module) -> ReversibleFlowActor:
        """The actor of a policy that is a reference: the policy itself, or a member of the sequence.

        Raises:
            TypeError: if it has no density of pairs.
        """
        actor = flow_of(policy)
        if not isinstance(actor, ReversibleFlowActor):
            raise TypeError(f"A reference needs a density of pairs, as ReversibleFlowActor's, got {actor}.")
        return actor

    @staticmethod
    def read_pair(tensordict: TensorDictBase, action_key: NestedKey, memory_key: NestedKey) -> Pair:
        """Reads the pair of a tensordict, or raises a ``KeyError`` that names what is missing."""
        action, memory = tensordict.get(action_key, None), tensordict.get(memory_key, None)
        for key, value in ((action_key, action), (memory_key, memory)):
            if value is None:
                raise KeyError(
                    f"The data has no {key!r}: a reversible flow can only score an action together with its memory. "
                    f"Keep both {action_key!r} and {memory_key!r}, as ReversibleFlowActor wrote them."
                )
        return action, memory

    def _build_dist(self, tensordict: TensorDictBase, scored: Pair | None = None) -> ReversibleFlow:
        observations = read(tensordict, *self.in_keys)
        context = self.velocity.condition(*observations)
        shape = observations[0].shape[:-1]
        if isinstance(context, Tensor) and context.shape[: len(shape)] != shape:
            raise ValueError(
                f"An observation {list(observations[0].shape)} became a context {list(context.shape)}, which has not "
                f"the same samples {list(shape)}. An observation is a vector: put an encoder of images before the "
                "actor, as examples/pixels.py does."
            )
        return self.flow_class(
            ConditionedVelocity(self.velocity, context),
            self.velocity.action_dim,
            self.solver,
            self.start,
            shape,
            dtype=network_dtype(self.velocity, observations[0]),
            device=observations[0].device,
            scored=scored,
            **self._location(*observations),
        )

    def _location(self, *observations: Tensor) -> dict[str, Any]:
        """The mean and the scale of the pairs for these observations, as keywords of :class:`ReversibleFlow`."""
        if self.gaussian is None:
            return {}
        found = self.gaussian(torch.cat(observations, -1) if len(observations) > 1 else observations[0])
        if not isinstance(found, tuple) or len(found) != 2:
            raise TypeError(
                f"gaussian must return a loc and a scale, got {type(found).__name__}: add a scale to the mean of a "
                "network by tensordict.nn.AddStateIndependentNormalScale."
            )
        loc, scale = found
        if loc.shape[-1] != self.velocity.action_dim:
            raise ValueError(f"gaussian must return {self.velocity.action_dim} numbers an action, got {loc.shape[-1]}.")
        return {"loc": loc, "scale": scale / self.width, "memory_weight": self.memory_weight}
