# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Writes the policy of a checkpoint as one folder that runs without this library.

genpo-export outputs/.../checkpoints/checkpoint-000000501760.torchrl my_policy
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from torchrl_genpo.commands.common import explain_errors
from torchrl_genpo.commands.completion import add_completion
from torchrl_genpo.configuration import as_dict
from torchrl_genpo.deploy.exporter import PolicyExporter
from torchrl_genpo.loading import load_policy
from torchrl_genpo.runs import find_checkpoint

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``genpo-export``."""
    parser = argparse.ArgumentParser(
        prog="genpo-export",
        description="Writes the policy of a checkpoint as a folder that runs without this library: policy.onnx, "
        "policy.pt2 (torch.export) and policy.json, which says what goes in and out. Normalisation, history, start and "
        "solver are inside; every action is checked against the actor's.",
    )
    parser.add_argument("checkpoint", type=Path, help="of a run, or its folder: then the best one")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--noise-input", action="store_true", help="take noise as an input, for a policy that samples")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="other values of the run's configuration, such as env.options.asset_root=FOLDER",
    )
    add_completion(parser)
    options = parser.parse_args(arguments)
    if bad := [entry for entry in options.set if "=" not in entry]:
        parser.error(f"--set takes NAME=VALUE, not {bad[0]!r}")
    entries = (entry.partition("=") for entry in options.set)
    with explain_errors(RuntimeError, TypeError):
        overrides = {name: OmegaConf.from_dotlist([f"value={value}"]).value for name, _, value in entries}
        checkpoint = find_checkpoint(options.checkpoint)
        actor, env, cfg = load_policy(checkpoint, num_envs=1, seed=0, overrides=overrides)
        source = {
            "checkpoint": str(checkpoint.resolve()),
            "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
            "config": as_dict(cfg),
        }
        exporter = PolicyExporter(actor, env, noise_input=options.noise_input)
        folder = exporter.save(options.folder, source)
    differences = json.loads((folder / "policy.json").read_text())["largest_difference"]
    shown = ", ".join(f"{runtime} {value:.1e}" for runtime, value in differences.items())
    sys.stdout.write(f"{folder}: policy.onnx, policy.pt2, policy.json. Difference from the actor: {shown}.\n")


if __name__ == "__main__":
    main()
