# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What one batch does to the networks: reward scale, advantages, mini-batches, learning rates, normalisation."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.objectives import ClipPPOLoss, KLAdaptiveLR, SoftUpdate
from torchrl.objectives.value import GAE

from torchrl_genpo.config.schema import TrainOptions
from torchrl_genpo.training.build import (
    head_parameters,
    noise_parameters,
    normalizers,
    observation_keys,
    parameter_groups,
)
from torchrl_genpo.training.demonstrations import Anchor
from torchrl_genpo.training.evaluation import RatioWatch
from torchrl_genpo.training.finite import check_data, check_finite
from torchrl_genpo.training.ranks import Ranks
from torchrl_genpo.training.reward_scale import RewardScale
from torchrl_genpo.training.update import batch_keys, make_update, update_metrics

__all__ = ["Learner"]

LARGEST_COEFF = 1e6  # of an adapted weight, whose least is its inverse


class Learner:
    """Optimizer, its schedules, the running statistics, and the passes over a batch.

    Args:
        options (TrainOptions): of the run.
        env (EnvBase): says which observations there are.
        policy (TensorDictSequential): the policy.
        critic (TensorDictSequential): the value network.
        loss (ClipPPOLoss): of both.
        ranks (Ranks): the processes that train together.

    Attributes:
        optimizer (Optimizer): over the parameters of ``loss``.
        schedule (KLAdaptiveLR or None): of its learning rates.
        anchor (Anchor or None): the good actions that every mini-batch comes with.
        reward_scale (RewardScale or None): the scale of the rewards, unless they stay as they are.
    """

    def __init__(
        self,
        options: TrainOptions,
        env: EnvBase,
        policy: TensorDictSequential,
        critic: TensorDictSequential,
        loss: ClipPPOLoss,
        ranks: Ranks,
    ) -> None:
        optim = options.optim
        self.options, self.policy, self.critic, self.loss, self.ranks = options, policy, critic, loss, ranks
        keys = observation_keys(env)
        self._finite_keys = [*(("next", key) for key in (*keys, "reward")), *keys]
        self._normalizers = normalizers(policy, critic) if options.env.normalize_observation else []
        if options.policy.trainable != "all":  # a frozen network goes on reading what it was trained on
            frozen = {id(normalizer) for normalizer in normalizers(policy)}
            self._normalizers = [each for each in self._normalizers if id(each) not in frozen]
        self.reward_scale = RewardScale().to(options.device) if options.env.scale_reward else None
        self.is_recurrent = options.policy.is_recurrent
        self.gae = GAE(
            gamma=options.loss.gamma,
            lmbda=options.loss.gae_lambda,
            value_network=critic,
            average_gae=False,
            deactivate_vmap=self.is_recurrent,  # vmap cannot follow a GRU
        )
        # a policy that remembers is trained on the sequences of whole environments, others on single steps
        steps = options.steps_per_env if self.is_recurrent else 1
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(options.collector.frames_per_batch // steps, device=options.device),
            sampler=SamplerWithoutReplacement(),
            batch_size=options.loss.mini_batch_size // steps,
        )
        self.anchor = Anchor(options, policy) if options.anchor.coeff else None
        self._actor_parameters = [p for p in loss.actor_network_params.parameters() if p.requires_grad]
        actor, *own = parameter_groups(
            self._actor_parameters,
            optim.lr,
            (noise_parameters(loss.actor_network_params), optim.noise_lr),
            (head_parameters(loss.actor_network_params) if options.policy.head_sizes else [], optim.head_rate),
        )
        groups = [actor, {"params": self._other_parameters(), "lr": optim.critic_lr or optim.lr}, *own]
        self._rates = [group["lr"] for group in groups]
        self.optimizer = torch.optim.Adam(groups, eps=1e-5, fused=True)
        self.schedule = None
        if optim.schedule == "kl_adaptive":
            self.schedule = KLAdaptiveLR(self.optimizer, optim.target_kl, min_lr=optim.min_lr, max_lr=optim.max_lr)
        decay = options.loss.proximal_decay
        proximal = None if decay is None else SoftUpdate(loss, eps=decay)
        self._updates = {  # a CUDA graph goes on giving the actor gradients, or none, as when it was captured
            is_warming_up: make_update(
                loss,
                self.optimizer,
                optim.max_grad_norm,
                compile_mode=options.compile.mode if options.compile.enabled else None,
                cudagraphs=options.compile.cudagraphs,
                ranks=ranks,
                proximal=proximal,
            )
            for is_warming_up in (True, False)
        }

    def _other_parameters(self) -> list[nn.Parameter]:
        """Those of the critic, without an encoder that it shares with the policy."""
        shared = {id(parameter) for parameter in self._actor_parameters}
        return [p for p in self.loss.parameters() if p.requires_grad and id(p) not in shared]

    def learn(self, data: TensorDictBase, frames_before: int) -> dict[str, float]:
        """Improves policy and critic by a collected batch, then lets it move the normalisation.

        Args:
            data (TensorDictBase): ``[*envs, time]``, raw; values, advantages and the scale of its rewards are changed
                in place.
            frames_before (int): of the run, before this batch.

        Returns:
            What is logged of it, by the name of its column.

        Raises:
            DivergedError: for a number that is not finite in the data, the loss, its gradient or the parameters.
        """
        options = self.options
        written = [key for key in ("action", "action_log_prob") if key in data.keys()]
        check_data(data, [*self._finite_keys, *written], self.ranks)
        if self.anchor is not None:
            self.anchor.extend(data)
        batch = self._prepare(data)
        watch = None
        if options.policy.has_pair and options.diagnostics.samples:
            spread = batch.reshape(-1)
            spread = spread[:: max(1, len(spread) // options.diagnostics.samples)]  # over all environments and steps
            watch = RatioWatch(self.policy, spread[: options.diagnostics.samples], options.diagnostics.num_memories)
        is_warming_up = frames_before < options.optim.critic_warmup
        for parameter in self._actor_parameters:
            parameter.requires_grad_(not is_warming_up)
        if options.optim.schedule == "linear":
            remaining = 1 - frames_before / options.collector.total_frames
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * remaining
            self._restore_critic_rate()
        self.buffer.empty()
        self.buffer.extend(batch)
        outputs = []
        for _ in range(options.loss.epochs):
            for mini_batch in self.buffer:
                if self.anchor is not None:
                    mini_batch["anchor"] = self.anchor.sample(len(mini_batch))
                outputs.append(self._updates[is_warming_up](mini_batch))
        check_finite(dict(self.loss.named_parameters()), "the parameters after the update", self.ranks)
        if not is_warming_up:
            last_epoch = outputs[-(len(outputs) // options.loss.epochs) :]
            self._follow_kl(last_epoch)
            self._follow_reference(last_epoch)

        row = {"train/lr": float(self.optimizer.param_groups[0]["lr"]), "train/undone": 0}
        row |= update_metrics(torch.stack(outputs))
        if watch is not None:
            ratios = watch.compare(options.loss.clip_epsilon)
            row |= {f"diagnostics/{key}": value for key, value in ratios.items()}
        for normalizer in self._normalizers:  # last: stored and recomputed densities are of the same statistics
            normalizer.update(data.get(normalizer.in_keys[0]), self.ranks.sum)
        return row

    def _prepare(self, data: TensorDictBase) -> TensorDictBase:
        """The samples ``[n]``, or sequences ``[n, time]``, to draw from, with all that the loss keeps beside them."""
        if self.reward_scale is not None:
            self.reward_scale(data, self.ranks.sum)
        with torch.no_grad():
            self.gae(data)
        batch = data.select(*batch_keys(self.loss, self.policy), strict=False)
        batch = batch.reshape(-1, *batch.shape[-1:]) if self.is_recurrent else batch.reshape(-1)
        return self.loss.before_updates(batch) if hasattr(self.loss, "before_updates") else batch

    def _follow_kl(self, last_epoch: list[TensorDictBase]) -> None:
        """Sets an adaptive rate once an update, by its last epoch.

        The KL is to the policy that collected (with ``loss.proximal_decay`` to the average of past policies), least at
        the beginning of each update: a step on every mini-batch would swing the rate between its limits within it.
        """
        if self.schedule is None:
            return
        self.schedule.step(self.ranks.mean(torch.stack([out["kl_approx"] for out in last_epoch]).mean()))
        self._restore_critic_rate()

    def _follow_reference(self, last_epoch: list[TensorDictBase]) -> None:
        """Adapts the weight of the divergence from a reference, as PPO's penalty is adapted (arXiv 1707.06347)."""
        target = self.options.loss.reference_target
        if target is None:
            return
        divergence = self.ranks.mean(torch.stack([out["kl_reference"] for out in last_epoch]).mean())
        coeff = self.loss.reference_coeff
        if divergence > 1.5 * target:
            coeff.copy_((2 * coeff).clamp(max=LARGEST_COEFF))
        elif divergence < target / 1.5:
            coeff.copy_((coeff / 2).clamp(min=1 / LARGEST_COEFF))  # from 0 there would be no way back

    def _restore_critic_rate(self) -> None:
        """Keeps the critic's rate where it has one of its own, which follows no schedule."""
        if self.options.optim.critic_lr is not None:
            self.optimizer.param_groups[1]["lr"] = self._rates[1]
