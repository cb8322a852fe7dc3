# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""GenPO++ as one of TorchRL's trainers."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives.utils import KLAdaptiveLR
from torchrl.trainers.algorithms.ppo import PPOTrainer
from torchrl.trainers.trainers import LRSchedulerHook, UpdateWeights

from torchrl_genpo.modules.sequence import flow_of
from torchrl_genpo.objectives.genpo import GenPOLoss

__all__ = ["GenPOTrainer"]


class GenPOTrainer(PPOTrainer):
    """Trains a reversible flow policy: :class:`~torchrl.trainers.algorithms.PPOTrainer` for a pair (action, memory).

    Every keyword, hook, log and checkpoint is that of ``PPOTrainer``. The trainer adds five things:

    - The collector starts with the weights of the loss. Hydra builds a network anew wherever a configuration names
      it, so ``PPOTrainer`` collects its first batch with another policy than the one that it trains.
    - ``loss_module.before_updates`` is called on every collected batch before its first update.
    - ``lr_scheduler`` may be a :class:`~torchrl.objectives.KLAdaptiveLR` (for Hydra its ``_target_`` with
      ``_partial_: true``). It is stepped once a batch with the mean ``kl_approx`` of the last epoch, because the KL to
      the policy that collected begins at 0 in each update.
    - The loss scores the action of the actor, where modules behind it, such as :class:`~torchrl_genpo.modules.Squash`,
      make another one of it. ``PPOTrainer`` would set the key to its own ``action_key``.
    - The ``inversion_error`` in the log is that of the first mini-batch after a collection, where only the numerics of
      the inversion can make a difference. Later mini-batches would add the change of the policy.

    Examples:
        >>> import torch
        >>> from torchrl.collectors import Collector
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
        >>> from torchrl.envs import GymEnv
        >>> from torchrl.modules import MLP, ValueOperator
        >>> from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP
        >>> from torchrl_genpo.training import GenPOTrainer
        >>> actor = ReversibleFlowActor(VelocityMLP(in_features=3, action_dim=1, num_cells=(32, 32)))
        >>> loss = GenPOLoss(actor, ValueOperator(MLP(in_features=3, out_features=1, num_cells=[32])))
        >>> trainer = GenPOTrainer(
        ...     collector=Collector(GymEnv("Pendulum-v1"), actor, frames_per_batch=64, total_frames=128),
        ...     total_frames=128,
        ...     frame_skip=1,
        ...     optim_steps_per_batch=None,
        ...     loss_module=loss,
        ...     optimizer=torch.optim.Adam(loss.parameters(), lr=3e-4),
        ...     replay_buffer=ReplayBuffer(
        ...         storage=LazyTensorStorage(64), sampler=SamplerWithoutReplacement(), batch_size=32
        ...     ),
        ...     progress_bar=False,
        ... )
        >>> trainer.train()
        >>> trainer.collected_frames
        128
    """

    _algo_name = "GenPO"

    def _setup_hook(self) -> None:
        if not isinstance(self.loss_module, GenPOLoss):
            raise TypeError(
                f"GenPOTrainer trains with a GenPOLoss, got {type(self.loss_module).__name__}: use PPOTrainer for it."
            )
        if (
            self.loss_module.tensor_keys.action == "action"
        ):  # TorchRL's default, which it writes over the loss's own key
            self.loss_module.set_keys(action=flow_of(self.loss_module.actor_network).action_key)
        for op, kwargs in self._post_steps_ops:
            hook = getattr(op, "__wrapped__", op)
            if isinstance(hook, UpdateWeights):
                op(**kwargs)
            elif isinstance(hook, LRSchedulerHook) and isinstance(hook.scheduler, KLAdaptiveLR):
                hook.scheduler = _WithKL(hook.scheduler, self)
        super()._setup_hook()

    def _process_batch_hook(self, batch: TensorDictBase) -> TensorDictBase:
        return self.loss_module.before_updates(super()._process_batch_hook(batch))

    def optim_steps(self, batch: TensorDictBase) -> None:
        """Makes the updates of one collected batch."""
        self._has_updated = False
        super().optim_steps(batch)

    def _pre_epoch_hook(self, batch: TensorDictBase, **kwargs: Any) -> TensorDictBase:
        self._last_epoch: list[Tensor] = []  # kl_approx of its mini-batches
        return super()._pre_epoch_hook(batch, **kwargs)

    def _process_loss_hook(self, sub_batch: TensorDictBase, losses_td: TensorDictBase) -> TensorDictBase:
        if self._has_updated:
            losses_td = losses_td.exclude("inversion_error")
        self._has_updated = True
        self._last_epoch.append(losses_td["kl_approx"].detach())
        return super()._process_loss_hook(sub_batch, losses_td)


class _WithKL:
    """Hands the KL to a schedule, which TorchRL's hook steps without it."""

    def __init__(self, schedule: KLAdaptiveLR, trainer: GenPOTrainer) -> None:
        self._schedule, self._trainer = schedule, weakref.proxy(trainer)

    def step(self) -> None:
        self._schedule.step(torch.stack(self._trainer._last_epoch).mean())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._schedule, name)
