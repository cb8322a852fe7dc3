# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The GenPO++ objective."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor

from torchrl_genpo.flow import ReversibleFlow
from torchrl_genpo.modules.inputs import read
from torchrl_genpo.modules.sequence import flow_of
from torchrl_genpo.objectives.flow_matching import flow_matching
from torchrl_genpo.objectives.pair import PairLoss
from torchrl_genpo.objectives.reference import Reference

__all__ = ["GenPOLoss"]


class GenPOLoss(PairLoss):
    r"""Clipped PPO on the exact likelihood ratio of a reversible flow policy, and what else exact likelihoods allow.

    It is :class:`~torchrl_genpo.objectives.PairLoss`, which says what a policy may be and what is read and written: PPO
    by the ratio of the densities of the pair (action, memory), whose conditional mean given the action is the ratio of
    the action (arXiv 2606.06967).

    Args:
        actor_network (TensorDictModule): the policy: a :class:`~torchrl_genpo.ReversibleFlowActor`, or a sequence with
            one.
        critic_network (TensorDictModule, optional): the value operator.

    Keyword Args:
        reference (TensorDictModule, optional): a policy with a reversible flow of actions of the same size, near which
            the trained one is kept: :math:`KL(\pi \| \pi_\text{ref})` of the pairs is added to the loss (as in arXiv
            2607.19399), by one new pair a sample, right in the mean. It is copied as it is now, with what normalises
            its observations, and frozen; the copy is part of the loss's state dict. If all of the policy but its start
            is frozen and equal to the reference when the loss is made, the divergence is that of the two starts, in
            closed form; its normaliser has to stand still then. Outputs ``kl_reference`` and ``loss_reference`` are
            written. Defaults to none.
        reference_coeff (float, optional): weight of that divergence, a buffer. Defaults to ``0.1``.
        anchor_coeff (float, optional): weight of :class:`~torchrl_genpo.FlowMatchingLoss` on good actions that come
            beside each mini-batch: the data then has a nested ``anchor`` of the same batch size, with observations, the
            flow's ``action`` and, where it is padded, ``action_is_pad``. The output ``loss_anchor`` is then written.
            Defaults to ``0``, none.
        **kwargs: any other keyword of :class:`~torchrl_genpo.objectives.PairLoss` and
            :class:`~torchrl.objectives.ClipPPOLoss`.

    Raises:
        TypeError: beside the cases of ``PairLoss``, if ``reference`` has no
            :class:`~torchrl_genpo.ReversibleFlowActor`.
        ValueError: beside those cases, for a reference with actions of another size, a coefficient below zero, an
            anchor of an actor with a ``gaussian``, or a keyword that has no effect.
        KeyError: in ``forward``, if the data lacks the anchor.

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
        reference: TensorDictModuleBase | None = None,
        reference_coeff: float | None = None,
        anchor_coeff: float = 0.0,
        **kwargs: Any,
    ) -> None:
        policy = kwargs.pop("actor", None) if actor_network is None else actor_network
        super().__init__(policy, critic_network, **kwargs)
        self.reference = None if reference is None else Reference(policy, reference)
        for name, coeff in (("reference_coeff", reference_coeff), ("anchor_coeff", anchor_coeff)):
            if coeff is not None and not coeff >= 0:
                raise ValueError(f"{name}={coeff} must not be negative.")
        if reference_coeff is not None and reference is None:
            raise ValueError(f"reference_coeff={reference_coeff} has no effect without a reference.")
        if anchor_coeff and flow_of(policy).gaussian is not None:
            raise ValueError(f"anchor_coeff={anchor_coeff}: flow matching trains no actor with a gaussian.")
        if reference is not None:
            coeff, device = 0.1 if reference_coeff is None else reference_coeff, next(self.parameters()).device
            self.register_coeff_buffer("reference_coeff", coeff, device=device)
        self.anchor_coeff = anchor_coeff
        if reference is not None:
            self.out_keys = [*self.out_keys, "kl_reference", "loss_reference"]
        if anchor_coeff:
            self.out_keys = [*self.out_keys, "loss_anchor"]

    def _other_losses(self, dist: ReversibleFlow, tensordict: TensorDictBase) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self.reference is not None:
            with self._in_place(self.actor_network_params):
                divergence = self._reduce_loss(self.reference(dist, tensordict), tensordict)
            found |= {"kl_reference": divergence.detach(), "loss_reference": self.reference_coeff * divergence}
        if self.anchor_coeff:
            found["loss_anchor"] = self.anchor_coeff * self._match_anchor(tensordict)
        return found

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
            losses = flow_matching(self.actor_network, anchor, action, anchor.get("action_is_pad", None))
        return self._reduce_loss(losses, anchor)
