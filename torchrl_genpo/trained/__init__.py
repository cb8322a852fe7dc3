# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Trained policies that come with the library: checkpoints without the optimizer, loaded by the name of their task.

``benchmarks/learning/trained_policies.py`` makes them and says what they reach.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["trained_policies"]

FOLDER = Path(__file__).parent


def trained_policies() -> dict[str, Path]:
    """Names and checkpoints of the policies that come with the library.

    Examples:
        >>> from torchrl_genpo.training.checkpoint import load_policy
        >>> from torchrl_genpo.trained import trained_policies
        >>> policy, env, options = load_policy(trained_policies()["half_cheetah"], num_envs=2, seed=0)
        >>> env.rollout(3, policy)["action"].shape
        torch.Size([2, 3, 6])
    """
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob("*.pt"))}
