# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What one batch does to the networks: advantages, mini-batches, learning rates, sigma."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.modules import ValueOperator
from torchrl.objectives import ClipPPOLoss, KLAdaptiveLR, SoftUpdate
from torchrl.objectives.value import GAE

from torchrl_genpo.configuration import make_adaptive_sigma
from torchrl_genpo.distributed import Ranks
from torchrl_genpo.envs import IsaacLabSymmetry
from torchrl_genpo.models import has_exact_density, noise_parameters, observation_keys
from torchrl_genpo.training.evaluation import compare_ratios
from torchrl_genpo.training.numbers import check_data, check_finite
from torchrl_genpo.training.update import augment, batch_keys, make_update, prepare, update_metrics

__all__ = ["Learner"]


class Learner:
    """Optimizer, its schedules, and the passes over a batch.

    Args:
        cfg (DictConfig): of the run, see ``torchrl_genpo/config/genpo.yaml``.
        env (EnvBase): says which observations there are.
        actor (TensorDictModule): the policy.
        critic (ValueOperator): the value network.
        loss (ClipPPOLoss): of both.
        ranks (Ranks): the processes that train together.
    """

    def __init__(
        self,
        cfg: DictConfig,
        env: EnvBase,
        actor: TensorDictModule,
        critic: ValueOperator,
        loss: ClipPPOLoss,
        ranks: Ranks,
    ) -> None:
        optim = cfg.optim
        self.cfg, self.actor, self.critic, self.loss, self.ranks = cfg, actor, critic, loss, ranks
        self._finite_keys = [("next", key) for key in (*observation_keys(env), "reward")]
        self.gae = GAE(gamma=cfg.loss.gamma, lmbda=cfg.loss.gae_lambda, value_network=critic, average_gae=False)
        self.symmetry = IsaacLabSymmetry(env) if cfg.env.get("symmetry") else None
        images = 1 if self.symmetry is None else self.symmetry.order
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(cfg.collector.frames_per_batch * images, device=cfg.device),
            sampler=SamplerWithoutReplacement(),
            batch_size=cfg.loss.mini_batch_size * images,
        )
        self._actor_parameters = [p for p in loss.actor_network_params.parameters() if p.requires_grad]
        groups = [
            {"params": self._actor_parameters, "lr": optim.lr},
            {"params": list(loss.critic_network_params.parameters()), "lr": optim.critic_lr or optim.lr},
        ]
        noise = [] if optim.noise_lr is None else noise_parameters(loss)
        if noise:
            groups[0]["params"] = [p for p in self._actor_parameters if all(p is not other for other in noise)]
            groups.append({"params": noise, "lr": optim.noise_lr})
        self._rates = [group["lr"] for group in groups]
        self.optimizer = torch.optim.Adam(groups, eps=1e-5, fused=True)
        self.schedule = None
        if optim.schedule == "kl_adaptive":
            self.schedule = KLAdaptiveLR(self.optimizer, optim.target_kl, min_lr=optim.min_lr, max_lr=optim.max_lr)
        self.adaptive_sigma = make_adaptive_sigma(cfg, actor)
        decay = cfg.loss.proximal_decay
        proximal = None if decay is None else SoftUpdate(loss, eps=decay)
        self._updates = {  # a CUDA graph goes on giving the actor gradients, or none, as when it was captured
            is_warming_up: make_update(
                loss,
                self.optimizer,
                optim.max_grad_norm,
                compile_mode=cfg.compile.mode if cfg.compile.enabled else None,
                cudagraphs=cfg.compile.cudagraphs,
                ranks=ranks,
                proximal=proximal,
            )
            for is_warming_up in (True, False)
        }

    def learn(self, data: TensorDictBase, frames_before: int) -> dict[str, float]:
        """Improves policy and critic by a collected batch.

        Args:
            data (TensorDictBase): ``[*envs, time]``; value and advantage are added to it.
            frames_before (int): of the run, before this batch.

        Returns:
            What is logged of it, by the name of its column.

        Raises:
            DivergedError: for a number that is not finite in the data, the loss, its gradient or the parameters.
        """
        cfg = self.cfg
        written = [key for key in ("action", "action_log_prob") if key in data.keys()]
        check_data(data, [*self._finite_keys, *written], self.ranks)
        batch = self._prepare(data)
        watched = None
        if has_exact_density(self.actor) and cfg.diagnostics.samples:
            spread = batch[:: max(1, len(batch) // cfg.diagnostics.samples)]  # over all environments and steps
            watched = self.actor.draw_memories(spread[: cfg.diagnostics.samples], cfg.diagnostics.num_memories)
        is_warming_up = frames_before < cfg.optim.critic_warmup
        for parameter in self._actor_parameters:
            parameter.requires_grad_(not is_warming_up)
        if cfg.optim.schedule == "linear":
            remaining = 1 - frames_before / cfg.collector.total_frames
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * remaining
            self._restore_critic_rate()
        self.buffer.empty()
        self.buffer.extend(batch)
        outputs = []
        for _ in range(cfg.loss.epochs):
            outputs += [self._updates[is_warming_up](mini_batch) for mini_batch in self.buffer]
        check_finite(dict(self.loss.named_parameters()), "the parameters after the update", self.ranks)
        if not is_warming_up:
            self._follow_kl(outputs[-(len(outputs) // cfg.loss.epochs) :])

        row = {"train/lr": float(self.optimizer.param_groups[0]["lr"]), "train/undone": 0}
        row |= update_metrics(torch.stack(outputs))
        if watched is not None:
            ratios = compare_ratios(self.actor, watched, cfg.loss.clip_epsilon)
            row |= {f"diagnostics/{key}": value for key, value in ratios.items()}
        if self.adaptive_sigma is not None:
            row["train/sigma"] = self.actor.solver.sigma
            quantity = torch.tensor(row[f"train/{cfg.solver.adapt.quantity}"], device=cfg.device)
            self.adaptive_sigma.step(self.ranks.mean(quantity).item())
        return row

    def _prepare(self, data: TensorDictBase) -> TensorDictBase:
        """The samples ``[n]`` to draw mini-batches from, with advantages, mirror images and what the loss keeps."""
        with torch.no_grad():
            self.gae(data)
        batch = data.select(*batch_keys(self.loss, self.actor), strict=False).reshape(-1)
        if self.symmetry is not None:
            batch = augment(batch, self.symmetry, self.actor, self.critic, self.cfg.loss.mini_batch_size)
        return prepare(self.loss, batch)

    def _follow_kl(self, last_epoch: list[TensorDictBase]) -> None:
        """Sets an adaptive rate once an update, by its last epoch.

        The KL is to the policy that collected, 0 at first in each update: a step on every mini-batch would swing the
        rate between its limits within the update.
        """
        if self.schedule is None:
            return
        self.schedule.step(self.ranks.mean(torch.stack([out["kl_approx"] for out in last_epoch]).mean()))
        self._restore_critic_rate()

    def _restore_critic_rate(self) -> None:
        """A rate of the critic's own follows no schedule."""
        if self.cfg.optim.critic_lr is not None:
            self.optimizer.param_groups[1]["lr"] = self._rates[1]
