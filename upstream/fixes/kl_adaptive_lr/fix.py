# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Hands ``kl_approx`` of the loss to a ``KLAdaptiveLR``."""

# ruff: noqa: F821  # names of the file that it goes into

TARGET = "torchrl/trainers/trainers.py"


class LRSchedulerHook:
    def __call__(self, batch: TensorDictBase | None = None) -> TensorDictBase | None:
        trainer = None if self._trainer_ref is None else self._trainer_ref()
        if trainer is not None:
            # warming up, for instance with random frames, must not move the rate
            has_optimized = trainer._optim_count != self._last_optim_count
            self._last_optim_count = trainer._optim_count
            if not has_optimized:
                return batch
        if hasattr(self.scheduler, "target_kl"):
            self.scheduler.step(self._mean_kl(1 if trainer is None else trainer.num_epochs))
        else:
            self.scheduler.step()
        return batch

    def _mean_kl(self, num_epochs: int) -> torch.Tensor:
        """Mean ``kl_approx`` of the last epoch; the KL to the policy that collected is 0 at first in each update."""
        if not self._kls:
            raise RuntimeError(
                "KLAdaptiveLR needs the output 'kl_approx' of the loss, which this trainer's loss did not write."
            )
        last = self._kls[-max(1, len(self._kls) // num_epochs) :]
        self._kls = []
        return torch.stack(last).mean()

    def _keep_kl(self, loss_module: Any, args: Any, output: Any) -> None:
        """Is called after every forward of the loss."""
        kl = output.get("kl_approx", None)
        if kl is not None:
            self._kls.append(kl.detach())

    def register(self, trainer: Trainer, name: str = "lr_scheduler"):
        self._trainer_ref = weakref.ref(trainer)
        if hasattr(self.scheduler, "target_kl"):
            self._kls = []
            trainer.loss_module.register_forward_hook(self._keep_kl)
        trainer.register_op("post_steps" if self.interval == "batch" else "post_optim", self)
        trainer.register_module(name, self)
