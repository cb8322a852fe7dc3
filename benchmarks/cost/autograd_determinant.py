# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""GenPO's determinant by automatic differentiation, as its published code computes it: for timing."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_genpo import ReversibleFlow

__all__ = ["AutogradFlow"]


class AutogradFlow(ReversibleFlow):
    """A flow that computes the determinant of its map from the whole Jacobian of every sample.

    The result is the solver's constant, at the price of ``2d`` backward passes and a determinant, which the update
    differentiates once more.
    """

    def _log_prob_of_noise(self, noise: Tensor, memory_noise: Tensor) -> Tensor:
        is_differentiated = torch.is_grad_enabled()
        with torch.enable_grad():
            noises = torch.cat([noise, memory_noise], -1).detach().requires_grad_()
            pair = torch.cat(self.from_noise(*noises.tensor_split(2, -1)), -1)
            rows = [
                torch.autograd.grad(number.sum(), noises, retain_graph=True, create_graph=is_differentiated)[0]
                for number in pair.unbind(-1)
            ]
            log_det = torch.linalg.slogdet(torch.stack(rows, -2)).logabsdet
        by_formula = super()._log_prob_of_noise(noise, memory_noise)
        log_prob = by_formula + self.log_abs_det - log_det
        return log_prob if is_differentiated else log_prob.detach()
