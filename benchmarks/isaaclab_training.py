# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Isaac Lab: how long training takes and what it reaches, reversible flow against Gaussian PPO.

    python benchmarks/isaaclab_training.py                       # GPU: Ant and Humanoid as in the paper, 4096 envs
    python benchmarks/isaaclab_training.py --small --tasks ant   # CPU: the same task with 256 environments, 1.2M frames
    python benchmarks/isaaclab_training.py --report

Needs Isaac Lab (the README says how) and, where its asset server cannot be reached, ``ISAACSIM_ASSET_ROOT``. Finished
runs are lines of ``isaaclab.jsonl`` (``isaaclab_small.jsonl``) in ``benchmarks/results`` and are not run again; the
report is the ``.md`` and ``.png`` beside it. It splits the time into simulation, policy and update: the update is
measured in the run, the policy on its own, and the simulation is the rest of the collection.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments import BASELINES, UNEQUAL_NOISE, Run, draw, execute_all, last, origins, read_results, spread
from provenance import RESULTS, ROOT

POLICIES = {
    "gaussian": ("Gaussian", ["policy=gaussian"]),
    "paper": ("flow, paper's start", ["start=paper"]),
    "learned_scale": ("flow, learned scale", ["start=learned_scale"]),
    **BASELINES,
}
SMALL = ("device=cpu", "env.num_envs=256", "env.iterations=150")
TASKS = (
    "ant",
    "humanoid",
    "open_drawer",
    "anymal_d_rough",
    "go2_rough",
    "g1_rough",
    "h1_rough",
    "digit_locomanip",
    "cartpole",
)


def measure_policy(folder: Path) -> float:
    """Seconds that the policy of a finished run takes in one collection, of the same size and on the same device."""
    import torch
    from torchrl.checkpoint import CheckpointRotation

    from torchrl_genpo.loading import load_policy
    from torchrl_genpo.runs import read_run_config

    cfg: Any = read_run_config(folder)
    torch.set_num_threads(cfg.num_threads)
    checkpoint = CheckpointRotation(folder / "checkpoints", keep_last=2).latest()
    actor, env, _ = load_policy(checkpoint, cfg.env.num_envs, 0, cfg.device)
    td, seconds = env.reset(), []
    synchronize = torch.cuda.synchronize if cfg.device.startswith("cuda") else lambda: None
    with torch.no_grad():
        for _ in range(60):
            synchronize()
            begin = time.perf_counter()
            actor(td)
            synchronize()
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[20:]) * cfg.env.steps_per_env


def policy_seconds(run: Run) -> float:
    """:func:`measure_policy` in a process of its own: Isaac Lab has one simulation a process."""
    command = [sys.executable, __file__, "--measure-policy", str(run.folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return float(output.split()[-1])


def policy_shares(name: str, runs: Iterable[Run]) -> dict[tuple[str, str], float]:
    """Seconds of the policy in one collection, by task and policy: measured where a run is here, else as recorded."""
    path = RESULTS / f"{name}_policy.json"
    recorded = json.loads(path.read_text()) if path.exists() else {}
    for run in runs:
        if run.seed == 1 and run.folder.exists():
            recorded.setdefault(run.task, {})[run.policy] = round(policy_seconds(run), 4)
    if recorded:
        path.write_text(json.dumps(recorded, indent=2) + "\n")
    return {(task, policy): seconds for task, shares in recorded.items() for policy, seconds in shares.items()}


def write_table(records: list[dict[str, Any]], shares: dict[tuple[str, str], float], path: Path) -> None:
    settings = sorted({" ".join(record["overrides"]) or "the task's configuration" for record in records})
    lines = [
        "# Isaac Lab: flow against Gaussian PPO",
        "",
        f"Settings: {'; '.join(f'`{setting}`' for setting in settings)}. Return: median of the seeds (each in "
        "brackets); of training, and at its end over one episode of every environment, with zero and with random "
        "noise. Time: of the whole run, as a ratio to the Gaussian's, and of one update with its collection.",
        "",
        UNEQUAL_NOISE,
        "",
        "| task | policy | training | zero noise | random noise | frames | minutes | to Gaussian | simulation, s | "
        "policy, s | update, s | frames/s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    minutes: dict[tuple[str, str], float] = {}
    for task in dict.fromkeys(record["task"] for record in records):
        for policy, (label, _) in POLICIES.items():
            chosen = [record for record in records if (record["task"], record["policy"]) == (task, policy)]
            if not chosen:
                continue
            cells = []
            for column in ("train/return", "eval/zero_noise/return", "eval/random_noise/return"):
                values = [last(record, column) for record in chosen]
                cells.append(spread(values))
            frames = last(chosen[0], "frames")
            minutes[task, policy] = statistics.median(record["seconds"] for record in chosen) / 60
            ratio = minutes[task, policy] / minutes.get((task, "gaussian"), float("nan"))
            collect, update = (
                statistics.median(value for record in chosen for value in record["curves"][column][5:])
                for column in ("time/collect", "time/update")
            )
            share = shares.get((task, policy))
            size = chosen[0]["curves"]["frames"][0]
            parts = [f"{collect - share:.2f}", f"{share:.2f}"] if share is not None else [f"{collect:.2f} (both)", ""]
            cells += [f"{frames / 1e6:.1f}M", f"{minutes[task, policy]:.1f}", f"{ratio:.2f}", *parts]
            cells += [f"{update:.2f}", f"{size / (collect + update):.0f}"]
            lines.append(f"| {task.removeprefix('isaaclab/')} | {label} | {' | '.join(cells)} |")
    lines += origins(records, " ".join(["python benchmarks/isaaclab_training.py", *sys.argv[1:]]))
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["ant", "humanoid"], choices=TASKS)
    parser.add_argument("--policies", nargs="+", default=["gaussian", "paper", "learned_scale"], choices=POLICIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--small", action="store_true", help=f"on a CPU: {' '.join(SMALL)}")
    parser.add_argument("--iterations", type=int, help="updates of each run, instead of the configuration's")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time; one measures time, more save it")
    parser.add_argument("--measure-policy", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--report", action="store_true", help="only write the report of the finished runs")
    options = parser.parse_args()
    if options.measure_policy:
        print(measure_policy(options.measure_policy))
        return

    name = "isaaclab_small" if options.small else "isaaclab"
    settings = SMALL if options.small else ()
    if options.iterations:
        settings = (*settings, f"env.iterations={options.iterations}")
    if not options.report:
        runs = [
            Run(name, f"isaaclab/{task}", policy, tuple(POLICIES[policy][1]), seed, None, settings)
            for seed in options.seeds
            for task in options.tasks
            for policy in options.policies
        ]
        execute_all(runs, options.workers)
    results = read_results(name)
    if not results:
        sys.exit(f"No finished run in benchmarks/results/{name}.jsonl; start some without --report.")
    records = sorted(results.values(), key=lambda record: record["seed"])
    write_table(records, policy_shares(name, results), RESULTS / f"{name}.md")
    draw(records, POLICIES, RESULTS / f"{name}.png", unit=1e6, xlabel="million frames", ylabel="training return")


if __name__ == "__main__":
    main()
