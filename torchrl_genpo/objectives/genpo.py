# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The GenPO++ objective."""

from __future__ import annotations

from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from torch import Tensor

from torchrl_genpo.flow import Pair, ReversibleFlow
from torchrl_genpo.modules.inputs import read
from torchrl_genpo.modules.sequence import encode, flow_of
from torchrl_genpo.objectives.action_entropy import MemoryDensity
from torchrl_genpo.objectives.flow_matching import flow_matching
from torchrl_genpo.objectives.pair import PairLoss
from torchrl_genpo.objectives.reference import Reference

__all__ = ["GenPOLoss"]

DRAWN_KEYS = ("memory_samples", "memory_log_proposal", "pair_gap")  # what the loss reads of draw_memories


class GenPOLoss(PairLoss):
    r"""Clipped PPO on the exact likelihood ratio of a reversible flow policy, and what else exact likelihoods allow.

    It is :class:`~torchrl_genpo.objectives.PairLoss`, which says what a policy may be and what is read and written: PPO
    by the ratio of the densities of the pair (action, memory), whose conditional mean given the action is the ratio of
    the action (arXiv 2606.06967).

    ``ratio="action"`` uses that conditional mean instead, the likelihood ratio of the executed action
    alone: the densities of the action before and after are estimated with the same sampled memories,
    which :meth:`draw_memories` adds to each collected batch before its first update.
    It costs as many inversions a sample as there are memories; ``clip_fraction`` and ``kl_approx`` are
    then those of the action, and ``inversion_error`` is always the gap that :meth:`draw_memories` found.

    Args:
        actor_network (TensorDictModule): the policy: a :class:`~torchrl_genpo.ReversibleFlowActor`, or a sequence with
            one.
        critic_network (TensorDictModule, optional): the value operator.

    Keyword Args:
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
        **kwargs: any other keyword of :class:`~torchrl_genpo.objectives.PairLoss` and
            :class:`~torchrl.objectives.ClipPPOLoss`.

    Raises:
        TypeError: beside the cases of ``PairLoss``, if ``reference`` has no
            :class:`~torchrl_genpo.ReversibleFlowActor`, or, for ``action_entropy_coeff``, a velocity has no
            ``in_features``.
        ValueError: beside those cases, for an unknown ratio, a reference with actions of another size, a coefficient
            below zero, an anchor of an actor with a ``gaussian``, or a keyword that has no effect.
        KeyError: in ``forward``, if the data lacks what :meth:`draw_memories` writes, or the anchor.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import MLP, ValueOperator
        >>> from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP
        >>> pretrained = ReversibleFlowActor(VelocityMLP(in_features=4, action_dim=2, num_cells=(32, 32)))
        >>> critic = ValueOperator(MLP(in_features=4, out_features=1, num_cells=[32]))
        >>> loss = GenPOLoss(pretrained, critic, reference=pretrained, reference_coeff=0.3)
        >>> data = pretrained(TensorDict(observation=torch.randn(8, 4), batch_size=[8])).detach()
        >>> data["advantage"], data["value_target"] = torch.randn(2, 8, 1)
        >>> out = loss(data)
        >>> bool(out["kl_reference"].abs() < 1e-4)  # nothing was updated yet
        True
        >>> (out["loss_objective"] + out["loss_critic"] + out["loss_reference"]).backward()
    """

    def __init__(
        self,
        actor_network: TensorDictModuleBase | None = None,
        critic_network: TensorDictModule | None = None,
        *,
        ratio: Literal["pair", "action"] = "pair",
        num_memories: int | None = None,
        action_entropy_coeff: float = 0.0,
        reference: TensorDictModuleBase | None = None,
        reference_coeff: float | None = None,
        anchor_coeff: float = 0.0,
        **kwargs: Any,
    ) -> None:
        policy = kwargs.pop("actor", None) if actor_network is None else actor_network
        if ratio not in ("pair", "action"):
            raise ValueError(f"ratio must be 'pair' or 'action', got {ratio!r}.")
        if num_memories is not None and ratio != "action":
            raise ValueError(f"num_memories={num_memories} has no effect with ratio={ratio!r}; drop it.")
        self.ratio = ratio
        self.num_memories = 8 if num_memories is None else num_memories
        super().__init__(policy, critic_network, **kwargs)
        actor = flow_of(policy)
        if ratio == "action":
            self.set_keys(sample_log_prob="marginal_log_prob")
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
        self.reference = None if reference is None else Reference(policy, reference)
        if reference_coeff is not None and (reference is None or not reference_coeff >= 0):
            raise ValueError(
                f"reference_coeff={reference_coeff} must not be negative, and has no effect without a reference."
            )
        if reference is not None:
            self.register_coeff_buffer("reference_coeff", 0.1 if reference_coeff is None else reference_coeff)
        if anchor_coeff < 0 or (anchor_coeff and actor.gaussian is not None):
            raise ValueError(
                f"anchor_coeff={anchor_coeff} must not be negative, and flow matching trains no actor with a gaussian."
            )
        self.anchor_coeff = anchor_coeff

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        if self.ratio == "action":
            self._in_keys += [key for key in DRAWN_KEYS if key not in self._in_keys]

    def _own_out_keys(self) -> list[NestedKey]:
        keys = super()._own_out_keys()
        if self.memory_density is not None:
            keys += ["action_entropy", "loss_action_entropy"]
        if self.reference is not None:
            keys += ["kl_reference", "loss_reference"]
        return [*keys, "loss_anchor"] if self.anchor_coeff else keys

    def before_updates(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Prepares a collected batch for its updates: draws memories if the ratio is that of the action.

        Raises:
            ValueError: for random actions that the flow did not draw.
        """
        tensordict = super().before_updates(tensordict)
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
        if self.ratio == "action" and any(tensordict.get(key, None) is None for key in DRAWN_KEYS):
            raise KeyError(
                "ratio='action' needs memories that were sampled under the policy that collected the data: call "
                "loss.draw_memories(data) once on every batch before the first update."
            )
        td_out = super().forward(tensordict)
        if self.memory_density is not None or self.reference is not None:
            with self._in_place(self.actor_network_params):
                self._add_terms_of_new_pairs(td_out, tensordict)
        if self.anchor_coeff:
            td_out.set("loss_anchor", self.anchor_coeff * self._match_anchor(tensordict))
        return td_out

    def _score(self, dist: ReversibleFlow, pair: Pair, tensordict: TensorDictBase) -> Tensor:
        if self.ratio == "pair":
            return super()._score(dist, pair, tensordict)
        action, _ = pair
        memories, log_proposal = (tensordict.get(key).movedim(tensordict.ndim, 0) for key in DRAWN_KEYS[:2])
        event_ndim = action.ndim - tensordict.ndim
        return dist.estimate_action_log_prob(action, memories, log_proposal, event_ndim).log_prob

    def _inversion_gap(self, tensordict: TensorDictBase) -> Tensor:
        return super()._inversion_gap(tensordict) if self.ratio == "pair" else tensordict.get("pair_gap")

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
