# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the simulator families share beside transforms."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.batched_envs import BatchedEnvBase

__all__ = ["did_you_mean", "simulator"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The sentence of an error that offers the known names closest to a mistyped one; empty if none is close.

    Examples:
        >>> did_you_mean("hoper", ["hopper", "walker2d"])
        ' Did you mean hopper?'
    """
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {', '.join(close)}?" if close else ""


def simulator(env: EnvBase) -> Any:
    """What TorchRL's wrapper below all transforms wraps, or an environment without a wrapper itself.

    ``None`` where that is in other processes.
    """
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return None if isinstance(env, BatchedEnvBase) else getattr(env, "_env", env)
