# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""RoboMimic: a weak policy from few demonstrations, and what fine-tuning makes of it.

    python benchmarks/robomimic.py starts --tasks can      # success of a pre-trained flow by solver and start
    python benchmarks/robomimic.py finetune --tasks can    # pre-train, fine-tune and report; hours
    python benchmarks/robomimic.py report

Needs robosuite (the README says how). Demonstrations come from this project's scripted experts, and are kept with the
pre-trained policies in ``outputs/robomimic``. What has been measured is a line of ``robomimic_starts.jsonl`` or
``robomimic.jsonl`` in ``benchmarks/results`` and is not measured again; the reports lie beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from experiments import Run, draw, execute_all, last, origins, read_results
from provenance import RESULTS, ROOT, commit, machine, origin, versions

TASKS = ("can", "box_cleanup", "threading")
DEMONSTRATIONS, ITERATIONS = 20, 2500  # of the weak base
FOLDER = Path("outputs/robomimic")
STARTS: dict[str, list[str]] = {  # options of the flow; Euler beside them
    "Euler": [],
    "paper's start": ["start=paper"],
    "consistent, tau 0.01": ["start=consistent", "start.scale=unit", "start.tau=0.01"],
    "consistent, tau 0.03": ["start=consistent", "start.scale=unit", "start.tau=0.03"],
    "consistent, tau 0.1": ["start=consistent", "start.scale=unit", "start.tau=0.1"],
    "consistent, tau 0.3": ["start=consistent", "start.scale=unit", "start.tau=0.3"],
    "consistent, tau 0.1, sigma 0.5": ["start=consistent", "start.scale=unit", "start.tau=0.1", "solver.sigma=0.5"],
    "three-step, independent": ["solver=three_step", "start=paper"],
}
POLICIES = {
    "gaussian": ("Gaussian", ["policy=gaussian"]),
    "reversible_flow": ("flow, consistent start", ["policy=reversible_flow"]),
}
EPISODES = 100


def script(*command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def demonstrations(task: str) -> Path:
    path = FOLDER / f"{task}.hdf5"
    if not (ROOT / path).exists():
        (ROOT / FOLDER).mkdir(parents=True, exist_ok=True)
        script("examples/collect_demos.py", task, "--episodes", str(DEMONSTRATIONS + 10), "--output", str(path))
    return path


def pretrained(task: str, policy: str, seed: int) -> Path:
    """The checkpoint of a policy of few demonstrations."""
    folder = FOLDER / task / "pretrained" / policy / str(seed)
    checkpoint = folder / "checkpoints" / f"checkpoint-{ITERATIONS:012d}.torchrl"
    if not (ROOT / checkpoint).exists():
        script(
            "sota-implementations/pretrain.py",
            f"env=robomimic/{task}",
            *POLICIES[policy][1],
            f"pretrain.dataset={demonstrations(task)}",
            f"pretrain.num_demonstrations={DEMONSTRATIONS}",
            f"pretrain.iterations={ITERATIONS}",
            f"seed={seed}",
            "eval.rounds=0",
            f"hydra.run.dir={folder}",
        )
    return checkpoint


def measure_starts(tasks: list[str], seeds: list[int]) -> None:
    results = RESULTS / "robomimic_starts.jsonl"
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for seed in seeds:
        for task in tasks:
            checkpoint = pretrained(task, "reversible_flow", seed)
            for name, options in STARTS.items():
                if any((line["task"], line["start"], line["seed"]) == (task, name, seed) for line in known):
                    continue
                command = ["sota-implementations/pretrain.py", f"evaluate={checkpoint}", f"env=robomimic/{task}"]
                command += [*options, f"eval.rounds={EPISODES // 20}", f"euler={str(name == 'Euler').lower()}"]
                output = script(*command)
                values = dict(line.split(": ") for line in output.splitlines() if line.startswith("eval/"))
                line = {"task": task, "start": name, "seed": seed, "episodes": EPISODES}
                line |= {key: float(values[f"eval/{key}_noise/success"]) for key in ("zero", "random")}
                line |= {"commit": commit(), "versions": versions(), "machine": machine()}
                with results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{task}, {name}, seed {seed}: zero {line['zero']:.2f}, random {line['random']:.2f}", flush=True)


def report_starts(path: Path) -> None:
    source = path.with_suffix(".jsonl")
    if not source.exists():
        return
    found = [json.loads(line) for line in source.read_text().splitlines()]
    lines = [
        "# A pre-trained policy before its first update: success by solver and start",
        "",
        f"{DEMONSTRATIONS} demonstrations, {ITERATIONS} iterations of flow matching, five velocity evaluations an "
        f"action. Part of {EPISODES} episodes, median of the seeds (each in brackets).",
        "",
        "| task | sampled by | zero noise | random noise |",
        "|---|---|---:|---:|",
    ]
    for task in TASKS:
        for name in STARTS:
            chosen = [line for line in found if (line["task"], line["start"]) == (task, name)]
            if chosen:
                cells = [success([line[key] for line in chosen]) for key in ("zero", "random")]
                lines.append(f"| {task} | {name} | {' | '.join(cells)} |")
    lines += origin("python benchmarks/robomimic.py starts")
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def success(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})"


def finetune(tasks: list[str], policies: list[str], seeds: list[int], workers: int) -> None:
    runs = []
    for seed in seeds:
        for task in tasks:
            for policy in policies:
                init = f"policy.init={pretrained(task, policy, seed)}"
                runs.append(Run("robomimic", f"robomimic/{task}", policy, seed, None, (init,)))
    execute_all(runs, lambda policy: POLICIES[policy][1], workers)


def report(path: Path) -> None:
    records = sorted(read_results(path.stem).values(), key=lambda record: record["seed"])
    if not records:
        return
    lines = [
        "# RoboMimic: fine-tuning a policy of few demonstrations",
        "",
        f"{DEMONSTRATIONS} demonstrations of a scripted expert, {ITERATIONS} iterations of pre-training, then "
        "`sota-implementations/genpo.py` as configured. Part of 100 episodes that succeed, before and after; median of "
        "the seeds (each in brackets). Frames are chunks of four control steps.",
        "",
        "| task | policy | zero noise before | after | random noise before | after | frames | minutes |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for task in TASKS:
        for policy, (label, _) in POLICIES.items():
            chosen = [r for r in records if (r["task"], r["policy"]) == (f"robomimic/{task}", policy)]
            if not chosen:
                continue
            cells = []
            for noise in ("zero", "random"):
                column = f"eval/{noise}_noise/success"
                cells.append(success([record["curves"][column][0] for record in chosen]))
                cells.append(success([last(record, column) for record in chosen]))
            minutes = statistics.median(record["seconds"] for record in chosen) / 60
            cells += [f"{last(chosen[0], 'frames'):.0f}", f"{minutes:.0f}"]
            lines.append(f"| {task} | {label} | {' | '.join(cells)} |")
    lines += origins(records, "python benchmarks/robomimic.py finetune")
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    picture = path.with_suffix(".png")
    draw(records, POLICIES, picture, unit=1e3, xlabel="thousand chunks", ylabel="training return (success)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("starts", "finetune", "report"))
    parser.add_argument("--tasks", nargs="+", default=["can"], choices=TASKS)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, each with two processes of its own")
    options = parser.parse_args()

    RESULTS.mkdir(exist_ok=True)
    if options.stage == "starts":
        measure_starts(options.tasks, options.seeds)
    if options.stage == "finetune":
        finetune(options.tasks, options.policies, options.seeds, options.workers)
    report_starts(RESULTS / "robomimic_starts.md")
    report(RESULTS / "robomimic.md")


if __name__ == "__main__":
    main()
