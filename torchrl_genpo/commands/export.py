# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Writes the policy of a checkpoint as one folder that runs without this library.

genpo-export outputs/.../checkpoints/checkpoint-000000501760.pt my_policy
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from torchrl_genpo.commands.common import add_set, explain_errors
from torchrl_genpo.deploy.exporter import PolicyExporter

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``genpo-export``."""
    parser = argparse.ArgumentParser(
        prog="genpo-export",
        description="Writes the policy of a checkpoint as a folder that runs without this library: policy.onnx, and "
        "policy.json, which says what goes in and out. The normaliser, the start and the solver are inside; the "
        "actions are checked against the policy's.",
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or the folder of a run: then its best one")
    parser.add_argument("folder", type=Path, help="where to write the policy")
    parser.add_argument("--noise-input", action="store_true", help="take noise as an input, for a policy that samples")
    add_set(parser)
    options = parser.parse_args(arguments)
    from torchrl_genpo.training.checkpoint import find_checkpoint, load_policy

    with explain_errors(RuntimeError, TypeError):
        checkpoint = find_checkpoint(options.checkpoint)
        policy, env, config = load_policy(checkpoint, num_envs=1, seed=0, device="cpu", overrides=dict(options.set))
        source = {
            "checkpoint": str(checkpoint.resolve()),
            "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
            "config": config.model_dump(mode="json"),
        }
        folder = PolicyExporter(policy, env, noise_input=options.noise_input).save(options.folder, source)
    difference = json.loads((folder / "policy.json").read_text())["largest_difference"]
    sys.stdout.write(f"{folder}: policy.onnx, policy.json. Largest difference from the policy: {difference:.1e}.\n")


if __name__ == "__main__":
    main()
