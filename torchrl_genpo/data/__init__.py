# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Demonstrations, one file a format."""

from torchrl_genpo.data.robomimic import (
    make_chunk_buffer,
    observation_range,
    read_demonstrations,
    read_env_args,
    write_demonstrations,
)

__all__ = [
    "make_chunk_buffer",
    "observation_range",
    "read_demonstrations",
    "read_env_args",
    "write_demonstrations",
]
