# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A transformer as the velocity of a flow over chunks of actions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrl_genpo.flow.velocity import OUTPUT_GAIN, TimeEmbedding, joined

__all__ = ["VelocityTransformer"]


class VelocityTransformer(nn.Module):
    """A transformer over chunks of actions, with one token for each action and one for observation and time.

    It is PyTorch's own ``nn.TransformerEncoder``, with the layer norm first and without dropout, for a likelihood must
    not be random. Of its parameters only the positions grow with the length of the chunk.

    Args:
        in_features (int): size of the observation (of all observations together, if there are several).
        action_dim (int): size ``d`` of the whole chunk, one action after the other.
        chunk_size (int): actions of a chunk; a divisor of ``action_dim``.
        width (int, optional): size of a token. Defaults to ``128``.
        num_layers (int, optional): encoder layers. Defaults to ``3``.
        num_heads (int, optional): attention heads; a divisor of ``width``. Defaults to ``4``.
        time_embedding_dim (int, optional): number of sines and cosines that encode the time. Defaults to ``32``.

    Raises:
        ValueError: if a size is not positive or does not divide.

    References:
        Chi et al., "Diffusion Policy", arXiv 2303.04137 (transformers over chunks of actions).

    Examples:
        >>> import torch
        >>> from torchrl_genpo import VelocityTransformer
        >>> velocity = VelocityTransformer(in_features=4, action_dim=16, chunk_size=8, width=32, num_heads=2)
        >>> context = velocity.condition(torch.randn(5, 4))
        >>> velocity(torch.randn(5, 16), 0.2, context).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        in_features: int,
        action_dim: int,
        chunk_size: int,
        width: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        time_embedding_dim: int = 32,
    ) -> None:
        super().__init__()
        if min(in_features, action_dim, chunk_size, width, num_layers, num_heads) < 1:
            raise ValueError(
                "All sizes must be at least 1, got "
                f"{in_features=}, {action_dim=}, {chunk_size=}, {width=}, {num_layers=}, {num_heads=}."
            )
        if action_dim % chunk_size:
            raise ValueError(f"An action of size {action_dim} is no chunk of {chunk_size} actions of one size.")
        if width % num_heads:
            raise ValueError(f"width={width} is not divisible by num_heads={num_heads}.")
        self.in_features, self.action_dim, self.chunk_size = in_features, action_dim, chunk_size
        self.settings = {"num_heads": num_heads}
        self.context_dim = width
        self.observation_layer = nn.Sequential(nn.Linear(in_features, width), nn.SiLU(), nn.Linear(width, width))
        self.time_embedding = TimeEmbedding(time_embedding_dim)
        self.time_layer = nn.Linear(time_embedding_dim, width)
        self.state_layer = nn.Linear(action_dim // chunk_size, width)
        self.position = nn.Parameter(torch.empty(chunk_size, width))
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.output_layer = nn.Linear(width, action_dim // chunk_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws PyTorch's initial weights anew for every layer, and a small last layer."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                module.reset_parameters()
            elif isinstance(module, nn.MultiheadAttention):
                module._reset_parameters()
        nn.init.normal_(self.position, std=0.02)
        nn.init.orthogonal_(self.output_layer.weight, OUTPUT_GAIN)
        nn.init.zeros_(self.output_layer.bias)

    def condition(self, *observations: Tensor) -> Tensor:
        """The observation's embedding, ``[..., width]``.

        Args:
            *observations (Tensor): one or more observations ``[..., n_k]``, whose sizes ``n_k`` sum to ``in_features``.

        Raises:
            ValueError: if the sizes do not sum to ``in_features``.
        """
        return self.observation_layer(joined(self, observations))

    def forward(self, x: Tensor, t: float | Tensor, context: Tensor) -> Tensor:
        actions = self.state_layer(x.unflatten(-1, (self.chunk_size, -1))) + self.position
        first = context + self.time_layer(self.time_embedding(t))
        # samples may have more leading dimensions than their observations
        first = first.expand(*actions.shape[:-2], -1).unsqueeze(-2)
        tokens = torch.cat([first, actions], -2)
        encoded = self.encoder(tokens.reshape(-1, *tokens.shape[-2:])).view_as(tokens)
        return self.output_layer(encoded[..., 1:, :]).flatten(-2)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, action_dim={self.action_dim}, chunk_size={self.chunk_size}"
