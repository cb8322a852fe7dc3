# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The GenPO++ objective."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule, TensorDictModuleBase, dispatch
from torch import Tensor, nn
from torchrl.objectives import ClipPPOLoss, ValueEstimators

from torchrl_genpo.flow import Pair, ReversibleFlow
from torchrl_genpo.modules.actor import ReversibleFlowActor
from torchrl_genpo.modules.inputs import read
from torchrl_genpo.modules.sequence import encode, flow_of, steps
from torchrl_genpo.objectives.action_entropy import MemoryDensity
from torchrl_genpo.objectives.flow_matching import flow_matching
from torchrl_genpo.objectives.reference import Reference

__all__ = ["GenPOLoss"]

DRAWN_KEYS = ("memory_samples", "memory_log_proposal", "pair_gap")  # what the loss reads of draw_memories


class GenPOLoss(ClipPPOLoss):
    r"""Clipped PPO on the exact likelihood ratio of a reversible flow policy.

    It is a :class:`~torchrl.objectives.ClipPPOLoss` with the same keywords and outputs. The ratio is that
    of the densities of the pair (action, memory); for two policies with the same solver and a unit
    start it is :math:`\exp\tfrac12(|z_\text{old}|^2 - |z_\text{new}|^2)` with :math:`z` the recovered
    noise (arXiv 2606.06967). Its conditional mean given the action is the ratio of the action
    densities, so a trust region on the pair is one on the action.

    ``ratio="action"`` uses that conditional mean instead, the likelihood ratio of the executed action
    alone: the densities of the action before and after are estimated with the same sampled memories,
    which :meth:`draw_memories` adds to each collected batch before its first update.
    It costs as many inversions a sample as there are memories; ``clip_fraction`` and ``kl_approx`` are
    then those of the action.

    The policy may be a sequence of modules, such as a normaliser, an encoder, the actor and the units of its action,
    of which everything before the actor is trained too. The keys of the loss are those of the actor in it.

    One more key is read, ``action_memory``, and one more output written: ``inversion_error``, the
    largest gap in the batch between the log density of the pair that was stored and the one computed
    now. At unchanged parameters (the first mini-batch after collection) it is the numerical error of
    the inversion; later it also holds the change of the policy. (With ``ratio="action"`` it is always
    the gap that :meth:`draw_memories` found, before the first update.)

    With ``delay_actor=True`` the proximal policy has its own delayed parameters but the present buffers, such as the
    statistics of a normaliser: they are not trained, and no policy ever acted with delayed ones. Move a policy that has
    such buffers to its device and dtype before the loss is made, for a loss that is moved later has buffers of its own.

    Args:
        actor_network (TensorDictModule): the policy: a :class:`~torchrl_genpo.ReversibleFlowActor`, or a sequence with
            one.
        critic_network (TensorDictModule, optional): the value operator.

    Keyword Args:
        entropy_bonus (bool, optional): adds the entropy of the pair to the objective. It needs a start
            with a learned scale: with a fixed one that entropy is a constant. Defaults to ``False``.
        ratio (str, optional): ``"pair"``, the exact ratio of the pair, or ``"action"``, the estimated one of
            the action alone. Defaults to ``"pair"``.
        action_entropy_coeff (float, optional): weight of a bonus on the entropy of the action, which keeps several good
            actions: a lower bound by a fitted :class:`~torchrl_genpo.objectives.MemoryDensity`, whose parameters are
            the loss's own. It needs a velocity with a size ``in_features`` of its observations. Outputs
            ``action_entropy`` and ``loss_action_entropy`` are then written. Defaults to ``0``, none.
        reference (TensorDictModule, optional): a policy with a reversible flow of actions of the same size, near which
            the trained one is kept: :math:`KL(\pi \| \pi_\text{ref})` of the pairs is added to the loss (as in arXiv
            2607.19399), by one new pair a sample, right in the mean. It is copied as it is now, with what normalises
            its observations, and frozen; the copy is part of the loss's state dict. If all parameters of the policy
            but those of its start are frozen and equal to the reference's, the divergence is that of the two starts,
            in closed form. Outputs ``kl_reference`` and ``loss_reference`` are then written. Defaults to none.
        reference_coeff (float, optional): weight of that divergence, a buffer. Defaults to ``0.1``.
        anchor_coeff (float, optional): weight of :class:`~torchrl_genpo.FlowMatchingLoss` on good actions that come
            beside each mini-batch: the data then has a nested ``anchor`` of the same batch size, with observations, the
            flow's ``action`` and, where it is padded, ``action_is_pad``. The output ``loss_anchor`` is then written.
            Defaults to ``0``, none.
        num_memories (int, optional): number of memories that :meth:`draw_memories` samples for each action; for, and
            only for, ``ratio="action"``. Defaults to ``8``.
        **kwargs: any other keyword of :class:`~torchrl.objectives.ClipPPOLoss` (``clip_epsilon``,
            ``critic_coeff``, ``normalize_advantage``, ``delay_actor``, ``reduction``, ...).

    ``make_value_estimator`` takes every estimator of ``ClipPPOLoss`` but ``VTrace``, whose importance weights are
    those of a new action of the policy and not of the stored one (TorchRL 0.14).

    Raises:
        TypeError: if ``actor_network`` or ``reference`` has no :class:`~torchrl_genpo.ReversibleFlowActor`, the former
            has more than one probabilistic module, or, for ``action_entropy_coeff``, a velocity without
            ``in_features``.
        ValueError: for ``entropy_bonus=True`` with a start of constant entropy, an unknown ratio, a reference with
            actions of another size, a coefficient below zero, an anchor of an actor with a ``loc``, or a keyword that
            has no effect; in ``forward``, for an empty batch, or random actions that the flow did not draw.
        KeyError: in ``forward``, if the data lacks the memory, or what :meth:`draw_memories` writes.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import MLP, ValueOperator
        >>> from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP
        >>> actor = ReversibleFlowActor(VelocityMLP(in_features=4, action_dim=2, num_cells=(32, 32)))
        >>> critic = ValueOperator(MLP(in_features=4, out_features=1, num_cells=[32]))
        >>> loss = GenPOLoss(actor, critic, clip_epsilon=0.2)
        >>> data = actor(TensorDict(observation=torch.randn(8, 4), batch_size=[8])).detach()
        >>> data["advantage"], data["value_target"] = torch.randn(2, 8, 1)
        >>> out = loss(data)
        >>> bool((out["max_ratio"] - 1).abs() < 1e-4)  # nothing was updated yet
        True
        >>> (out["loss_objective"] + out["loss_critic"]).backward()
    """

    @dataclass
    class _AcceptedKeys(ClipPPOLoss._AcceptedKeys):
        """The keys of ``ClipPPOLoss``, and ``action_memory``."""

        action_memory: NestedKey = "action_memory"

    # TorchRL's V-trace scores another action of the policy in place of the stored one
    SUPPORTED_VALUE_ESTIMATORS = tuple(
        e for e in ClipPPOLoss.SUPPORTED_VALUE_ESTIMATORS if e is not ValueEstimators.VTrace
    )
    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    _out_keys: list[NestedKey] | None

    def __init__(
        self,
        actor_network: TensorDictModuleBase | None = None,
        critic_network: TensorDictModule | None = None,
        *,
        entropy_bonus: bool = False,
        ratio: Literal["pair", "action"] = "pair",
        num_memories: int | None = None,
        action_entropy_coeff: float = 0.0,
        reference: TensorDictModuleBase | None = None,
        reference_coeff: float | None = None,
        anchor_coeff: float = 0.0,
        **kwargs: Any,
    ) -> None:
        # TorchRL's losses take both names
        policy = kwargs.pop("actor", None) if actor_network is None else actor_network
        actor = flow_of(policy)
        if not isinstance(actor, ReversibleFlowActor):
            raise TypeError(
                f"GenPOLoss scores a ReversibleFlowActor, got {type(actor).__name__}. "
                "For other policies use torchrl.objectives.ClipPPOLoss."
            )
        for step in steps(policy):
            if step is not actor and isinstance(step, ProbabilisticTensorDictModule):
                raise TypeError(
                    f"GenPOLoss scores the ReversibleFlowActor of a policy alone, and this one also draws from a "
                    f"{type(step).__name__}. Use torchrl.objectives.ClipPPOLoss, which scores both."
                )
        if ratio not in ("pair", "action"):
            raise ValueError(f"ratio must be 'pair' or 'action', got {ratio!r}.")
        if entropy_bonus and actor.start.has_constant_entropy:
            raise ValueError(
                "entropy_bonus=True has no effect here: the map is volume-preserving up to a constant, so with a "
                f"fixed start ({actor.start}) the entropy of the pair (action, memory) is a constant without "
                "gradient. Use IndependentStart(scale='learned', action_dim=...) or entropy_bonus=False."
            )
        if kwargs.get("entropy_coeff") and not entropy_bonus:
            raise ValueError(f"entropy_coeff={kwargs['entropy_coeff']} has no effect without entropy_bonus=True.")
        if num_memories is not None and ratio != "action":
            raise ValueError(f"num_memories={num_memories} has no effect with ratio={ratio!r}; drop it.")
        near = None if reference is None else Reference(policy, reference)
        if reference_coeff is not None and (reference is None or not reference_coeff >= 0):
            raise ValueError(
                f"reference_coeff={reference_coeff} must not be negative, and has no effect without a reference."
            )
        if anchor_coeff < 0 or (anchor_coeff and actor.loc is not None):
            raise ValueError(
                f"anchor_coeff={anchor_coeff} must not be negative, and flow matching trains no actor with a loc."
            )
        self.ratio = ratio
        self.anchor_coeff = anchor_coeff
        self.num_memories = 8 if num_memories is None else num_memories
        super().__init__(policy, critic_network, entropy_bonus=entropy_bonus, **kwargs)
        log_prob_key = actor.log_prob_keys[0] if ratio == "pair" else "marginal_log_prob"
        self.set_keys(action=actor.action_key, action_memory=actor.memory_key, sample_log_prob=log_prob_key)
        self._buffer_keys: list[NestedKey] = []
        if self.delay_actor:
            params = self.actor_network_params.items(True, True)
            self._buffer_keys = [key for key, value in params if not isinstance(value, nn.Parameter)]
        self._current_log_prob: Tensor | None = None
        self.memory_density: MemoryDensity | None = None
        if action_entropy_coeff:
            size = getattr(actor.velocity, "in_features", None)
            if not isinstance(size, int):
                raise TypeError(
                    f"action_entropy_coeff={action_entropy_coeff} needs a velocity that has the size of its "
                    f"observations as in_features, which {type(actor.velocity).__name__} has not."
                )
            self.register_coeff_buffer("action_entropy_coeff", action_entropy_coeff)
            density = MemoryDensity(size, actor.velocity.action_dim)
            self.memory_density = density.to(next(actor.velocity.parameters()))

        self.reference = near
        if reference is not None:
            self.register_coeff_buffer("reference_coeff", 0.1 if reference_coeff is None else reference_coeff)

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        keys = [self.tensor_keys.action_memory]
        if self.ratio == "action":
            keys += DRAWN_KEYS
        self._in_keys += [key for key in keys if key not in self._in_keys]

    @property
    def out_keys(self) -> list[NestedKey]:
        """The outputs of ``ClipPPOLoss``, ``inversion_error``, and those of what else was asked for."""
        if self._out_keys is None:
            self._out_keys = [*super().out_keys, "inversion_error"]
            if self.memory_density is not None:
                self._out_keys += ["action_entropy", "loss_action_entropy"]
            if self.reference is not None:
                self._out_keys += ["kl_reference", "loss_reference"]
            if self.anchor_coeff:
                self._out_keys.append("loss_anchor")
        return self._out_keys

    @out_keys.setter
    def out_keys(self, values: list[NestedKey]) -> None:
        self._out_keys = values

    def before_updates(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Prepares a collected batch for its updates: draws memories if the ratio is that of the action.

        Raises:
            ValueError: for random actions that the flow did not draw.
        """
        self._refuse_random_frames(*self._read_pair(tensordict))
        return self.draw_memories(tensordict) if self.ratio == "action" else tensordict

    @torch.no_grad()
    def draw_memories(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Adds what ``ratio="action"`` needs to a collected batch, see :meth:`ReversibleFlowActor.draw_memories`.

        It is to be called before the first update, under the parameters that collected the batch. The estimated log
        density of the action is written where the loss reads it, ``sample_log_prob``.
        """
        pair = self._read_pair(tensordict)
        with self._in_place(self.actor_network_params):
            actor, seen = encode(self.actor_network, tensordict)
            seen = seen.select(*actor.in_keys, *actor.log_prob_keys)  # the loss may read the pair under other names
            for key, value in zip(actor.dist_sample_keys, pair, strict=True):
                seen.set(key, value)
            drawn = actor.draw_memories(seen, self.num_memories)
        tensordict.update(drawn.select(*DRAWN_KEYS, "effective_sample_size"))
        return tensordict.set(self.tensor_keys.sample_log_prob, drawn["marginal_log_prob"])

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes the losses and diagnostics; see :class:`~torchrl.objectives.ClipPPOLoss`."""
        action, memory = self._read_pair(tensordict)
        if memory.device.type == "cpu" and not torch.compiler.is_compiling():
            # elsewhere the look would wait for the device; before_updates looks too
            self._refuse_random_frames(action, memory)
        if not action.numel():
            raise ValueError(f"The loss of an empty batch is undefined, got one of {tuple(tensordict.shape)}.")
        if self.ratio == "action" and any(tensordict.get(key, None) is None for key in DRAWN_KEYS):
            raise KeyError(
                "ratio='action' needs memories that were sampled under the policy that collected the data: call "
                "loss.draw_memories(data) once on every batch before the first update."
            )
        td_out = super().forward(tensordict)
        log_prob, self._current_log_prob = self._current_log_prob, None
        if self.ratio == "action":
            gap = tensordict.get("pair_gap")
        else:
            gap = (log_prob - tensordict.get(self.tensor_keys.sample_log_prob).detach()).abs()
        if self.memory_density is not None or self.reference is not None:
            with self._in_place(self.actor_network_params):
                self._add_terms_of_new_pairs(td_out, tensordict)
        if self.anchor_coeff:
            td_out.set("loss_anchor", self.anchor_coeff * self._match_anchor(tensordict))
        gap = self._reduce_loss(gap, tensordict, reduction="none")  # 0 where a mask says that there was no step
        return td_out.set("inversion_error", gap.amax())

    def _get_cur_log_prob(
        self, tensordict: TensorDictBase, params: TensorDictParams | None = None
    ) -> tuple[Tensor, ReversibleFlow, bool]:
        action, memory = self._read_pair(tensordict)
        if action.requires_grad or memory.requires_grad:
            raise RuntimeError("The stored action or its memory requires grad: detach the data.")
        is_current = params is None
        if params is None:
            params = self.actor_network_params
        else:
            for key in self._buffer_keys:  # TorchRL's updaters of target parameters leave buffers as they were
                params.get(key).copy_(self.actor_network_params.get(key))
        with self._in_place(params):
            _, dist = self._encode(tensordict)
            # scored here, because the distribution holds the live network
            if self.ratio == "action":
                memories, log_proposal = (tensordict.get(key).movedim(tensordict.ndim, 0) for key in DRAWN_KEYS[:2])
                event_ndim = action.ndim - tensordict.ndim
                log_prob = dist.estimate_action_log_prob(action, memories, log_proposal, event_ndim).log_prob
            else:
                log_prob = dist.log_prob(action, memory)
        if is_current:
            self._current_log_prob = log_prob.detach()  # handed to forward, which takes it away
        return log_prob, dist, False

    def _read_pair(self, tensordict: TensorDictBase) -> Pair:
        return ReversibleFlowActor.read_pair(tensordict, self.tensor_keys.action, self.tensor_keys.action_memory)

    def _encode(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, ReversibleFlow]:
        """What the actor reads, and the distribution of the pair without the stored one, which it would score."""
        actor, seen = encode(self.actor_network, tensordict)
        seen = seen.select(*actor.in_keys)
        return seen, actor.get_dist(seen)

    def _add_terms_of_new_pairs(self, td_out: TensorDictBase, tensordict: TensorDictBase) -> None:
        """Adds a lower bound on the entropy of the action and the divergence from the reference, of one pair each."""
        seen, dist = self._encode(tensordict)
        if self.memory_density is not None:
            # what an encoder makes of observations is not shaped by the density
            observations = [value.detach() for value in read(seen, *flow_of(self.actor_network).in_keys)]
            entropy = dist.entropy() + self.memory_density.log_prob(*dist.rsample(), *observations)
            entropy = self._reduce_loss(entropy, tensordict)
            td_out.set("action_entropy", entropy.detach())
            td_out.set("loss_action_entropy", -self.action_entropy_coeff * entropy)
        if self.reference is not None:
            divergence = self._reduce_loss(self.reference(dist, tensordict), tensordict)
            td_out.set("kl_reference", divergence.detach())
            td_out.set("loss_reference", self.reference_coeff * divergence)

    def _match_anchor(self, tensordict: TensorDictBase) -> Tensor:
        """The loss of flow matching on the good actions that came with the data."""
        anchor = tensordict.get("anchor", None)
        if anchor is None:
            raise KeyError(
                f"anchor_coeff={self.anchor_coeff} needs good actions in the data: set data['anchor'], a tensordict of "
                f"its batch size with observations and {self.tensor_keys.action!r}."
            )
        (action,) = read(anchor, self.tensor_keys.action)
        with self._in_place(self.actor_network_params):
            return flow_matching(self.actor_network, anchor, action, anchor.get("action_is_pad", None)).mean()

    def _in_place(self, params: TensorDictParams) -> Any:
        """The context in which the policy has these parameters."""
        if not self.functional:
            return contextlib.nullcontext()
        return params.to_module(self.actor_network, preserve_module_state=False)

    @staticmethod
    def _refuse_random_frames(action: Tensor, memory: Tensor) -> None:
        """Refuses frames of a random policy, which a collector fills up with memories of 0."""
        if ((memory == 0).all(-1) & (action != 0).any(-1)).any():  # both are 0 where a step is padding
            raise ValueError(
                "The data has actions with a memory of exactly 0, which no flow drew: collect with the policy itself, "
                "init_random_frames=0."
            )

    def get_extra_state(self) -> dict[str, Any]:
        """That of the actor, whose parameters the state dict of a loss holds."""
        return flow_of(self.actor_network).get_extra_state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuses the parameters of another density."""
        flow_of(self.actor_network).set_extra_state(state)
