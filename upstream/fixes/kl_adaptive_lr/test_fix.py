# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""``KLAdaptiveLR`` as the ``lr_scheduler`` of a trainer."""

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.objectives import KLAdaptiveLR
from torchrl.trainers.trainers import LRSchedulerHook


class Loss(nn.Module):
    """Writes the given divergences, one a call."""

    def __init__(self, kls):
        super().__init__()
        self.kls = iter(kls)

    def forward(self, tensordict):
        return TensorDict(kl_approx=torch.tensor(next(self.kls)))


class Trainer:
    """What the hook uses of a trainer."""

    num_epochs = 2

    def __init__(self, loss_module):
        self.loss_module, self._optim_count, self.ops = loss_module, 0, {}

    def register_op(self, dest, op):
        self.ops[dest] = op

    def register_module(self, name, module):
        pass

    def update(self, mini_batches):
        for _ in range(mini_batches):
            self._optim_count += 1
            self.loss_module(None)
            if "post_optim" in self.ops:
                self.ops["post_optim"]()
        if "post_steps" in self.ops:
            self.ops["post_steps"](None)


@pytest.mark.parametrize(
    ("interval", "kls", "factor"),
    [
        ("batch", [0.0, 0.0, 0.1, 0.1], 1 / 1.5),  # the last of two epochs counts
        ("batch", [0.0, 0.0, 0.001, 0.001], 1.5),
        ("batch", [9.0, 9.0, 0.01, 0.01], 1.0),
        ("optim", [0.1, 0.001, 0.1, 0.1], 1.5**-2),
    ],
)
def test_the_rate_follows_the_kl_of_the_loss(interval, kls, factor):
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1e-3)
    hook = LRSchedulerHook(KLAdaptiveLR(optimizer, target_kl=0.01), interval)
    trainer = Trainer(Loss(kls))
    hook.register(trainer)
    trainer.update(len(kls))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * factor)


def test_a_loss_without_a_kl_is_named():
    class Silent(nn.Module):
        def forward(self, tensordict):
            return TensorDict(loss=torch.zeros(()))

    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1e-3)
    trainer = Trainer(Silent())
    LRSchedulerHook(KLAdaptiveLR(optimizer, target_kl=0.01)).register(trainer)
    with pytest.raises(RuntimeError, match="kl_approx"):
        trainer.update(1)


def test_other_schedules_are_stepped_as_before():
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    trainer = Trainer(Loss([0.0] * 3))
    LRSchedulerHook(schedule).register(trainer)
    trainer.update(0)
    assert optimizer.param_groups[0]["lr"] == 1e-3, "no update yet"
    optimizer.step()
    trainer.update(1)
    assert optimizer.param_groups[0]["lr"] == 5e-4
