# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Demonstrations: one file for each format, and what pre-training makes of them."""

from __future__ import annotations

from torchrl_genpo.data.chunks import data_range, make_chunk_buffer
from torchrl_genpo.data.robomimic import read_demonstrations, read_env_args, write_demonstrations

__all__ = [
    "data_range",
    "make_chunk_buffer",
    "read_demonstrations",
    "read_env_args",
    "write_demonstrations",
]
