# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Evaluates a policy with zero and with random noise, in as many episodes as its training unless told otherwise.

genpo-eval half_cheetah video=true                                   # a trained policy that comes with the library
genpo-eval outputs/half_cheetah/reversible_flow/...                  # the best checkpoint of a run
genpo-eval outputs/.../checkpoints/checkpoint-000000501760.pt eval.num_envs=50 video=true
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torchrl_genpo.config.command_line import as_override
from torchrl_genpo.trained import trained_policies

__all__ = ["main"]


def main() -> None:
    """What ``genpo-train evaluate=POLICY`` does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "policy", type=Path, help=f"the folder of a run, a checkpoint, or one of {', '.join(trained_policies())}"
    )
    parser.add_argument(
        "option",
        nargs="*",
        help="of genpo-train, as name=value: video=true, eval.num_envs=50, eval.rounds=2, device=cuda",
    )
    options = parser.parse_args()
    for option in options.option:
        if "=" not in option or option.startswith("evaluate="):
            parser.error(f"options are name=value, of one policy, not {option!r}")
    from torchrl_genpo.commands import train

    sys.argv[1:] = [as_override("evaluate", str(options.policy)), *options.option]
    train.main()


if __name__ == "__main__":
    main()
