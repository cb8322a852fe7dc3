# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A lower bound on the entropy of the action, by a fitted density of its memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrl.modules import MLP, IndependentNormal

__all__ = ["MemoryDensity"]


class MemoryDensity(nn.Module):
    r"""A normal density :math:`q(\text{memory} \mid \text{action}, o)` about the action.

    The entropy of an action follows from that of the pair, which is exact, and this density:

    .. math:: H(a) = H(a, m) - H(m \mid a) \geq H(a, m) + \mathbb{E} \log q(m \mid a, o) ,

    with equality where :math:`q` is the true one (Agakov and Barber, "An Auxiliary Variational Method", 2004). The same
    gradient that fits :math:`q` to the pairs makes the policy one whose memories its actions tell.

    Args:
        in_features (int): size of the observations together.
        action_dim (int): ``d``.
        num_cells (int, optional): width of the hidden layer. Defaults to ``64``.

    Examples:
        >>> import torch
        >>> density = MemoryDensity(in_features=4, action_dim=2)
        >>> action, memory, observation = torch.randn(8, 2), torch.randn(8, 2), torch.randn(8, 4)
        >>> density.log_prob(action, memory, observation).shape
        torch.Size([8])
    """

    def __init__(self, in_features: int, action_dim: int, num_cells: int = 64) -> None:
        super().__init__()
        self.network = MLP(
            in_features=action_dim + in_features,
            out_features=2 * action_dim,
            num_cells=[num_cells],
            activation_class=nn.SiLU,
        )
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)  # at first the memory is the action and a standard normal deviation

    def log_prob(self, action: Tensor, memory: Tensor, *observations: Tensor) -> Tensor:
        """Log density ``[...]`` of memories ``[..., d]`` of actions ``[..., d]`` at observations ``[..., n_k]``."""
        loc, log_scale = self.network(torch.cat([action, *observations], -1)).chunk(2, -1)
        return IndependentNormal(action + loc, log_scale.exp()).log_prob(memory)
