# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Clipped PPO on the exact likelihood ratio of a pair, which is all that the method needs."""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule, TensorDictModuleBase, dispatch
from torch import Tensor, nn
from torchrl.objectives import ClipPPOLoss, PPOLoss, ValueEstimators

from torchrl_genpo.flow import Pair, ReversibleFlow
from torchrl_genpo.modules.actor import ReversibleFlowActor
from torchrl_genpo.modules.sequence import dist_of, flow_of, steps

__all__ = ["PairLoss"]

# TorchRL's losses pass over what none of them knows
KEYWORDS = {name for loss in (ClipPPOLoss, PPOLoss) for name in inspect.signature(loss.__init__).parameters}


class PairLoss(ClipPPOLoss):
    r"""Clipped PPO on the exact likelihood ratio of a reversible flow policy.

    It is a :class:`~torchrl.objectives.ClipPPOLoss` with the same keywords and outputs. The ratio is that
    of the densities of the pair (action, memory); for two policies with the same solver and a unit
    start it is :math:`\exp\tfrac12(|z_\text{old}|^2 - |z_\text{new}|^2)` with :math:`z` the recovered
    noise (arXiv 2606.06967). Its conditional mean given the action is the ratio of the action
    densities, so a trust region on the pair is one on the action.

    The policy may be a sequence of modules, such as a normaliser, an encoder, the actor and the units of its action,
    of which everything before the actor is trained too. The keys of the loss are those of the actor in it.

    One more key is read, ``action_memory``, and one more output written: ``inversion_error``, the
    largest gap in the batch between the log density of the pair that was stored and the one computed
    now. At unchanged parameters (the first mini-batch after collection) it is the numerical error of
    the inversion; later it also holds the change of the policy.

    With ``delay_actor=True`` the proximal policy has its own delayed parameters but the present buffers, such as the
    statistics of a normaliser: they are not trained, and no policy ever acted with delayed ones. Move a policy that has
    such buffers to its device and dtype before the loss is made, for a loss that is moved later has buffers of its own.

    ``make_value_estimator`` takes every estimator of ``ClipPPOLoss`` but ``VTrace``, whose importance weights are
    those of a new action of the policy and not of the stored one (TorchRL 0.14).

    Args:
        actor_network (TensorDictModule): the policy: a :class:`~torchrl_genpo.ReversibleFlowActor`, or a sequence with
            one.
        critic_network (TensorDictModule, optional): the value operator.

    Keyword Args:
        entropy_bonus (bool, optional): adds the entropy of the pair to the objective. It needs noise whose width is
            learned, by the actor's ``gaussian`` or its start: else that entropy is a constant. Defaults to ``False``.
        **kwargs: any other keyword of :class:`~torchrl.objectives.ClipPPOLoss` (``clip_epsilon``,
            ``critic_coeff``, ``normalize_advantage``, ``delay_actor``, ``reduction``, ...).

    Raises:
        TypeError: if ``actor_network`` has no :class:`~torchrl_genpo.ReversibleFlowActor`, or more than one
            probabilistic module, and for a keyword that no loss has.
        ValueError: for ``entropy_bonus=True`` where that entropy is constant, or a keyword that has no effect; in
            ``forward``, for an empty batch, or random actions that the flow did not draw.
        KeyError: in ``forward``, if the data lacks the memory.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import MLP, ValueOperator
        >>> from torchrl_genpo import ReversibleFlowActor, VelocityMLP
        >>> from torchrl_genpo.objectives import PairLoss
        >>> actor = ReversibleFlowActor(VelocityMLP(in_features=4, action_dim=2, num_cells=(32, 32)))
        >>> critic = ValueOperator(MLP(in_features=4, out_features=1, num_cells=[32]))
        >>> loss = PairLoss(actor, critic, clip_epsilon=0.2)
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
    out_keys: list[NestedKey]

    def __init__(
        self,
        actor_network: TensorDictModuleBase | None = None,
        critic_network: TensorDictModule | None = None,
        *,
        entropy_bonus: bool = False,
        **kwargs: Any,
    ) -> None:
        # TorchRL's losses take both names
        policy = kwargs.pop("actor", None) if actor_network is None else actor_network
        actor = flow_of(policy)
        if not isinstance(actor, ReversibleFlowActor):
            raise TypeError(
                f"{type(self).__name__} scores a ReversibleFlowActor, got {type(actor).__name__}. "
                "For other policies use torchrl.objectives.ClipPPOLoss."
            )
        for step in steps(policy):
            if step is not actor and isinstance(step, ProbabilisticTensorDictModule):
                raise TypeError(
                    f"{type(self).__name__} scores the ReversibleFlowActor of a policy alone, and this one also draws "
                    f"from a {type(step).__name__}. Use torchrl.objectives.ClipPPOLoss, which scores both."
                )
        if entropy_bonus and actor.gaussian is None and actor.start.has_constant_entropy:
            raise ValueError(
                "entropy_bonus=True has no effect here: the map is volume-preserving up to a constant, so the entropy "
                f"of the pair (action, memory) is a constant without gradient for a fixed start ({actor.start}) and no "
                "scale. Give the actor a gaussian whose scale is learned, or use entropy_bonus=False."
            )
        if kwargs.get("entropy_coeff") and not entropy_bonus:
            raise ValueError(f"entropy_coeff={kwargs['entropy_coeff']} has no effect without entropy_bonus=True.")
        if unknown := kwargs.keys() - KEYWORDS:
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {sorted(unknown)[0]!r}.")
        super().__init__(policy, critic_network, entropy_bonus=entropy_bonus, **kwargs)
        self.set_keys(action=actor.action_key, action_memory=actor.memory_key, sample_log_prob=actor.log_prob_keys[0])
        self._buffer_keys: list[NestedKey] = []
        if self.delay_actor:
            params = self.actor_network_params.items(True, True)
            self._buffer_keys = [key for key, value in params if not isinstance(value, nn.Parameter)]
        self.out_keys = [*self.out_keys, "inversion_error"]
        self._current: tuple[ReversibleFlow, Tensor] | None = None

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        if self.tensor_keys.action_memory not in self._in_keys:
            self._in_keys.append(self.tensor_keys.action_memory)

    def before_updates(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Prepares a collected batch for its updates.

        Raises:
            ValueError: for random actions that the flow did not draw.
        """
        self._refuse_random_frames(tensordict)
        return tensordict

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes the losses and diagnostics; see :class:`~torchrl.objectives.ClipPPOLoss`."""
        action, memory = self._read_pair(tensordict)
        if memory.device.type == "cpu" and not torch.compiler.is_compiling():
            # elsewhere the look would wait for the device; before_updates looks too
            self._refuse_random_frames(tensordict)
        if not action.numel():
            raise ValueError(f"The loss of an empty batch is undefined, got one of {tuple(tensordict.shape)}.")
        td_out = super().forward(tensordict)
        assert self._current is not None
        (dist, log_prob), self._current = self._current, None
        gap = (log_prob - tensordict.get(self.tensor_keys.sample_log_prob).detach()).abs()
        gap = self._reduce_loss(gap, tensordict, reduction="none")  # 0 where a mask says that there was no step
        td_out.set("inversion_error", gap.amax())
        return td_out.update(self._other_losses(dist, tensordict))

    def _other_losses(self, dist: ReversibleFlow, tensordict: TensorDictBase) -> dict[str, Tensor]:
        """What an objective adds to that of PPO, by the name of the output.

        Args:
            dist (ReversibleFlow): of the present policy, for the data; it holds the live network, see ``_in_place``.
            tensordict (TensorDictBase): the data.
        """
        return {}

    def _get_cur_log_prob(
        self, tensordict: TensorDictBase, params: TensorDictParams | None = None
    ) -> tuple[Tensor, ReversibleFlow, bool]:
        pair = self._read_pair(tensordict)
        if any(part.requires_grad for part in pair):
            raise RuntimeError("The stored action or its memory requires grad: detach the data.")
        is_current = params is None
        if params is None:
            params = self.actor_network_params
        else:
            for key in self._buffer_keys:  # TorchRL's updaters of target parameters leave buffers as they were
                params.get(key).copy_(self.actor_network_params.get(key))
        with self._in_place(params):
            dist = dist_of(self.actor_network, tensordict)
            log_prob = dist.log_prob(*pair)  # here, because the distribution holds the live network
        if is_current:
            self._current = dist, log_prob.detach()  # for forward, which takes them away
        return log_prob, dist, False

    def _read_pair(self, tensordict: TensorDictBase) -> Pair:
        return ReversibleFlowActor.read_pair(tensordict, self.tensor_keys.action, self.tensor_keys.action_memory)

    def _in_place(self, params: TensorDictParams) -> Any:
        """The context in which the policy has these parameters."""
        if not self.functional:
            return contextlib.nullcontext()
        return params.to_module(self.actor_network, preserve_module_state=False)

    def _refuse_random_frames(self, tensordict: TensorDictBase) -> None:
        """Refuses frames of a random policy, in which a collector sets memory and density to 0.

        A memory of one number can be 0 by itself, once in ten million; where a step is padding the action is 0, too.
        """
        action, memory = self._read_pair(tensordict)
        log_prob = tensordict.get(self.tensor_keys.sample_log_prob, None)
        is_filled_up = (memory == 0).all(-1) & (action != 0).any(-1)
        if log_prob is not None and (is_filled_up & (log_prob == 0)).any():
            raise ValueError(
                "The data has actions with a memory and a log density of exactly 0, which no flow drew: collect with "
                "the policy itself, init_random_frames=0."
            )

    def get_extra_state(self) -> dict[str, Any]:
        """That of the actor, whose parameters the state dict of a loss holds."""
        return flow_of(self.actor_network).get_extra_state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuses the parameters of another density."""
        flow_of(self.actor_network).set_extra_state(state)
