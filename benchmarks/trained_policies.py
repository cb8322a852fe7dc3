# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The trained policies that come with the library: takes them from runs, and measures what they reach.

    python benchmarks/trained_policies.py --add outputs/half_cheetah/reversible_flow/...  # the best checkpoint of a run
    python benchmarks/trained_policies.py                                                # measures and reports them all

The name of a policy is that of its task. It keeps the networks and the normalisation of its checkpoint, and drops what
only goes on training. What was measured is a line of ``trained_policies.jsonl`` in ``benchmarks/results`` for every
state of a policy's file and is not measured again; RoboMimic's needs robosuite (the README says how).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, commit, machine, versions

from torchrl_genpo.loading import load_policy
from torchrl_genpo.runs import find_checkpoint, read_checkpoint_config
from torchrl_genpo.trained import FOLDER, trained_policies
from torchrl_genpo.training import evaluate
from torchrl_genpo.training.loop import EVAL_SEED
from torchrl_genpo.untrusted import check_checkpoint

KEPT = ("loss", "pretrained", "normalization", "adaptive_sigma")  # parts of a checkpoint
MAX_SIZE = 3_000_000  # bytes
NUM_ENVS, EPISODES = 20, 100
COLUMNS = ("return", "success")


def add(run: Path) -> None:
    """Takes the best checkpoint of a run into the library."""
    source = find_checkpoint(run)
    name = read_checkpoint_config(source)["env"]["name"]
    target = FOLDER / f"{name}.torchrl"
    temporary = target.with_suffix(".tmp")
    target.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as kept:
        manifest = json.loads(archive.read("manifest.json"))
        manifest["components"] = {part: manifest["components"][part] for part in KEPT if part in manifest["components"]}
        roots = tuple(component["path"] + "/" for component in manifest["components"].values())
        for member in archive.namelist():
            if member.startswith(roots):
                kept.writestr(member, archive.read(member))
        kept.writestr("manifest.json", json.dumps(manifest))
    if temporary.stat().st_size > MAX_SIZE:
        temporary.unlink()
        sys.exit(f"{name} would have more than {MAX_SIZE:,} bytes.")
    os.replace(temporary, target)
    print(f"{name}: {target.stat().st_size:,} bytes, from {source.name}")


def measure(name: str, path: Path) -> dict[str, Any]:
    """What a policy reaches with zero and with random noise."""
    policy, env, cfg = load_policy(path, NUM_ENVS, EVAL_SEED)
    found = evaluate(env, policy, EVAL_SEED, EPISODES // NUM_ENVS)
    env.close()
    trained = f"{check_checkpoint(path)['metadata']['frames']:,} " + ("iterations" if "pretrain" in cfg else "frames")
    record = {"name": name, "sha256": digest(path), "bytes": path.stat().st_size, "trained": trained, "seed": cfg.seed}
    record |= {key: float(f"{value:.5g}") for key, value in found.items()}
    return record | {"commit": commit(), "versions": versions(), "machine": machine()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def report(records: list[dict[str, Any]]) -> None:
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
    lines += ["", "Command: `python benchmarks/trained_policies.py`.  "]
    lines += [f"{record['name']}: commit {record['commit']}, {record['versions']}.  " for record in records]
    lines += [f"Machines: {'; '.join(sorted({record['machine'] for record in records}))}."]
    (RESULTS / "trained_policies.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
    parser.add_argument("--names", nargs="+", choices=trained_policies(), help="measure only these")
    options = parser.parse_args()
    if options.add is not None:
        add(options.add)
        return
    torch.set_num_threads(1)
    path = RESULTS / "trained_policies.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {record["sha256"] for record in records}
    for name, policy_path in trained_policies().items():
        if digest(policy_path) not in known and name in (options.names or trained_policies()):
            records.append(measure(name, policy_path))
    current = {digest(policy_path) for policy_path in trained_policies().values()}
    records = sorted((record for record in records if record["sha256"] in current), key=lambda record: record["name"])
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    report(records)


if __name__ == "__main__":
    main()
