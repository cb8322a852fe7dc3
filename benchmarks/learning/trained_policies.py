# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers what the trained policies reach that come with the library, and takes new ones from runs.

    python -m benchmarks.learning.trained_policies --add outputs/half_cheetah/...   # the best checkpoint of a run
    python -m benchmarks.learning.trained_policies                                  # measures and reports them all

The name of a policy is that of its task. What was measured is a line of ``trained_policies.jsonl`` in
``benchmarks/results`` for every state of its numbers and is not measured again; ``trained_policies.md`` lies beside
it. A policy takes about a minute; RoboMimic's needs robosuite (the README says how to install it).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks._lib.in_process import describe_checkpoint, evaluate_checkpoint, find_checkpoint
from benchmarks._lib.origin import RESULTS, command, record_origin
from benchmarks._lib.report import parser, read_lines, save
from torchrl_genpo.trained import FOLDER, trained_policies

KEPT = ("format", "frames", "config", "policy")
"""The parts of a checkpoint that acting needs; the others only go on training."""
MAX_SIZE = 3_000_000
"""The most bytes of a policy's file."""
NUM_ENVS, EPISODES = 20, 100
COLUMNS = ("return", "success")


def add(run: Path) -> None:
    """Takes the best checkpoint of a run into the library."""
    source = find_checkpoint(run)
    content = torch.load(source, weights_only=True)
    target = FOLDER / f"{content['config']['env']['name']}.pt"
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_suffix(".tmp")
    torch.save({part: content[part] for part in KEPT}, temporary)
    if temporary.stat().st_size > MAX_SIZE:
        temporary.unlink()
        sys.exit(f"{target.name} would have more than {MAX_SIZE:,} bytes.")
    os.replace(temporary, target)
    print(f"{target.name}: {target.stat().st_size:,} bytes, from {source}")


def measure(name: str, path: Path) -> dict[str, Any]:
    """Evaluates a policy with zero and with random noise."""
    config, frames = describe_checkpoint(path)
    found = evaluate_checkpoint(path, NUM_ENVS, EPISODES // NUM_ENVS)
    trained = f"{frames:,} " + ("iterations" if "pretrain" in config else "frames")
    record = {"name": name, "sha256": digest(path), "bytes": path.stat().st_size}
    record |= {"trained": trained, "seed": config["seed"]}
    return record | {key: float(f"{value:.5g}") for key, value in found.items()} | record_origin()


def digest(path: Path) -> str:
    """Returns what tells one policy from another: a hash of its numbers, whatever the names of its options."""
    policy = torch.load(path, weights_only=True)["policy"]
    found = hashlib.sha256()
    for key, value in sorted(policy.items()):
        found.update(key.encode())
        found.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
    return found.hexdigest()


def report(records: list[dict[str, Any]]) -> None:
    """Writes the table of all policies."""
    lines = [
        "# The trained policies that come with the library",
        "",
        f"`genpo-eval <name> video=true` shows them. Means of {EPISODES} episodes, zero noise / random noise.",
        "",
        "| name | return | success | trained for | seed | kB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for record in records:
        cells = []
        for column in COLUMNS:
            values = [record.get(f"eval/{noise}_noise/{column}") for noise in ("zero", "random")]
            digits = 2 if column == "success" else 1
            cells.append("" if None in values else " / ".join(f"{value:.{digits}f}" for value in values))
        cells += [record["trained"], str(record["seed"]), f"{record['bytes'] / 1e3:.0f}"]
        lines.append(f"| {record['name']} | {' | '.join(cells)} |")
    lines += ["", f"Command: `{command()}`.  "]
    lines += [f"{record['name']}: commit {record['commit']}, {record['versions']}.  " for record in records]
    lines += [f"Machines: {'; '.join(sorted({record['machine'] for record in records}))}."]
    save(RESULTS / "trained_policies.md", lines)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--add", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
    arguments.add_argument("--names", nargs="+", choices=trained_policies(), help="measure only these")
    options = arguments.parse_args()
    if options.add is not None:
        add(options.add)
        return
    torch.set_num_threads(1)
    path = RESULTS / "trained_policies.jsonl"
    records = read_lines(path)
    known = {record["sha256"] for record in records}
    current = {name: digest(policy_path) for name, policy_path in trained_policies().items()}
    for name, policy_path in trained_policies().items():
        if current[name] not in known and name in (options.names or current):
            records.append(measure(name, policy_path))
    records = sorted((r for r in records if r["sha256"] in current.values()), key=lambda record: record["name"])
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    report(records)


if __name__ == "__main__":
    main()
