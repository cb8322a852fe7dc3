# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What pre-training makes of demonstrations: their ranges, and a buffer of chunks of actions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyMemmapStorage, RandomSampler, TensorDictReplayBuffer
from torchrl.envs.transforms import ActionChunkTransform

__all__ = ["data_range", "make_chunk_buffer"]


def data_range(demonstrations: Sequence[TensorDictBase], key: NestedKey) -> tuple[Tensor, Tensor]:
    """Returns the location and scale ``[n]`` with which ``(value - loc) / scale`` of the data lies in ``[-1, 1]``.

    A number that never changes is only shifted.

    Args:
        demonstrations (sequence of TensorDict): see :func:`read_demonstrations`.
        key (NestedKey): the entry, ``"observation"`` or ``"action"``.

    Raises:
        ValueError: if there is no demonstration.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_genpo.data import data_range
        >>> steps = TensorDict(observation=torch.rand(5, 3), action=torch.rand(5, 2), batch_size=[5])
        >>> loc, scale = data_range([steps], "observation")
        >>> bool((((steps["observation"] - loc) / scale).abs() < 1.001).all())
        True
    """
    if not demonstrations:
        raise ValueError("There is no demonstration to take the range of.")
    values = torch.cat([demonstration[key] for demonstration in demonstrations])
    low, high = values.amin(0), values.amax(0)
    scale = (high - low) / 2
    return (low + high) / 2, torch.where(scale > 1e-6, scale, torch.ones_like(scale))


def make_chunk_buffer(
    demonstrations: Sequence[TensorDictBase], chunk_size: int, batch_size: int | None = None
) -> TensorDictReplayBuffer:
    """Makes a memory-mapped buffer of observations and of the chunks of actions that follow them.

    Samples hold ``observation`` ``[batch, n]``, ``action`` ``[batch, chunk_size * d]`` (one step after the other) and
    ``action_is_pad``, of the same shape, which is true where a chunk runs over the end of its demonstration and repeats
    the last action.

    Args:
        demonstrations (sequence of TensorDict): see :func:`read_demonstrations`.
        chunk_size (int): the number of actions in a chunk.
        batch_size (int, optional): the number of rows in a sample. Defaults to what each call of ``sample`` asks for.

    Raises:
        ValueError: if a size is below 1, or there is no demonstration.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_genpo.data import make_chunk_buffer
        >>> steps = TensorDict(observation=torch.rand(5, 3), action=torch.rand(5, 2), batch_size=[5])
        >>> make_chunk_buffer([steps], chunk_size=3, batch_size=8).sample()["action"].shape
        torch.Size([8, 6])
    """
    for name, size in (("chunk_size", chunk_size), ("batch_size", batch_size)):
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")
    if not demonstrations:
        raise ValueError("There is no demonstration to make chunks of.")
    chunks = ActionChunkTransform(chunk_size, chunk_key="chunk")
    steps = []
    for demonstration in demonstrations:
        # each demonstration is a trajectory of its own: chunks do not run into the next
        chunked = chunks(demonstration.select("action").unsqueeze(0)).squeeze(0)
        action = chunked["chunk"]
        is_pad = chunked["action_is_pad"].unsqueeze(-1).expand_as(action)
        step = {
            "observation": demonstration["observation"],
            "action": action.flatten(-2),
            "action_is_pad": is_pad.flatten(-2),
        }
        steps.append(TensorDict(step, batch_size=demonstration.batch_size))
    data = torch.cat(steps)
    buffer = TensorDictReplayBuffer(
        storage=LazyMemmapStorage(len(data)), sampler=RandomSampler(), batch_size=batch_size
    )
    buffer.extend(data)
    return buffer
