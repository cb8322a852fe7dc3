# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A transformer as velocity field, for long chunks of actions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrl_genpo.flow.velocity import Mish, SinusoidalTimeEmbedding

__all__ = ["VelocityTransformer"]


class VelocityTransformer(nn.Module):
    """A velocity field over chunks of actions: one token an action, one for observation and time.

    PyTorch's own ``nn.TransformerEncoder`` (layer norm first, no dropout: a likelihood must not be random). Parameters
    do not grow with the length of the chunk, but for its positions.

    Args:
        obs_dim (int): size of the observation (of all observations together, if there are several).
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
        >>> velocity = VelocityTransformer(obs_dim=4, action_dim=16, chunk_size=8, width=32, num_heads=2)
        >>> context = velocity.condition(torch.randn(5, 4))
        >>> velocity(torch.randn(5, 16), 0.2, context).shape
        torch.Size([5, 16])
    """

    OUTPUT_GAIN = 0.01  # as VelocityMLP: the first policy is almost the start itself

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        chunk_size: int,
        width: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        time_embedding_dim: int = 32,
    ) -> None:
        super().__init__()
        if min(obs_dim, action_dim, chunk_size, width, num_layers, num_heads) < 1:
            raise ValueError(
                "All sizes must be at least 1, got "
                f"{obs_dim=}, {action_dim=}, {chunk_size=}, {width=}, {num_layers=}, {num_heads=}."
            )
        if action_dim % chunk_size:
            raise ValueError(f"An action of size {action_dim} is no chunk of {chunk_size} actions of one size.")
        if width % num_heads:
            raise ValueError(f"width={width} is not divisible by num_heads={num_heads}.")
        self.obs_dim, self.action_dim, self.chunk_size = obs_dim, action_dim, chunk_size
        self.context_dim = width
        self.observation_layer = nn.Sequential(nn.Linear(obs_dim, width), Mish(), nn.Linear(width, width))
        self.time_embedding = SinusoidalTimeEmbedding(time_embedding_dim, (width,))
        self.time_layer = nn.Linear(width, width)
        self.state_layer = nn.Linear(action_dim // chunk_size, width)
        self.position = nn.Parameter(torch.empty(chunk_size, width))
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.output_layer = nn.Linear(width, action_dim // chunk_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's initial weights, drawn anew for every layer, and a small last layer."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                module.reset_parameters()
            elif isinstance(module, nn.MultiheadAttention):
                module._reset_parameters()
        nn.init.normal_(self.position, std=0.02)
        nn.init.orthogonal_(self.output_layer.weight, self.OUTPUT_GAIN)
        nn.init.zeros_(self.output_layer.bias)

    def condition(self, *observations: Tensor) -> Tensor:
        """The observation's embedding, ``[..., width]``.

        Args:
            *observations (Tensor): one or more, ``[..., n_k]`` with the ``n_k`` summing to ``obs_dim``.

        Raises:
            ValueError: if the sizes do not sum to ``obs_dim``.
        """
        observation = observations[0] if len(observations) == 1 else torch.cat(observations, -1)
        if observation.shape[-1] != self.obs_dim:
            raise ValueError(
                f"VelocityTransformer was built for observations of size {self.obs_dim}, got {observation.shape[-1]}."
            )
        return self.observation_layer(observation)

    def forward(self, x: Tensor, t: float | Tensor, context: Tensor) -> Tensor:
        actions = self.state_layer(x.unflatten(-1, (self.chunk_size, -1))) + self.position
        first = context + self.time_layer(self.time_embedding(t))
        # samples may have more leading dimensions than their observations
        first = first.expand(*actions.shape[:-2], -1).unsqueeze(-2)
        tokens = torch.cat([first, actions], -2)
        encoded = self.encoder(tokens.reshape(-1, *tokens.shape[-2:])).view_as(tokens)
        return self.output_layer(encoded[..., 1:, :]).flatten(-2)

    def extra_repr(self) -> str:
        return f"obs_dim={self.obs_dim}, action_dim={self.action_dim}, chunk_size={self.chunk_size}"
