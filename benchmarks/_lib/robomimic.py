# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Policies of few demonstrations of RoboMimic: how they are pre-trained, and how their success is measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks._lib.origin import RESULTS, ROOT, record_origin
from benchmarks._lib.report import append_line, origins, read_lines, save, spread
from benchmarks._lib.runs import run_script

TASKS = ("can", "box_cleanup", "threading")
DEMONSTRATIONS = {"can": 10, "box_cleanup": 40, "threading": 40}
"""The number of demonstrations that a policy is pre-trained on."""
ITERATIONS = {"can": 2500, "box_cleanup": 10_000, "threading": 10_000}
"""The iterations by which a flow is pre-trained: one of two arms imitates late."""
GAUSSIAN_ITERATIONS = 2500
"""Those of a Gaussian, which by 10,000 has learned 40 demonstrations by heart and succeeds less."""
EPISODES = 100
"""The number of episodes of each evaluation."""
SIMULATION = ("env.options.horizon=240", "env.options.simulation_timestep=0.01")
"""Options of all runs, by which two cores need two hours a run."""
PRETRAINING = ("pretrain.action_noise=0.1",)
FOLDER = Path("outputs/robomimic")
NUM_ENVS = 20


def script(*command: str) -> None:
    """Runs a script of the repository, and ends with its output if it fails."""
    process = run_script(*command)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{process.stdout}")


def demonstrations(task: str) -> Path:
    """Returns the file of the expert's demonstrations, which are collected unless they have been."""
    path = FOLDER / f"{task}.hdf5"
    if not (ROOT / path).exists():
        (ROOT / FOLDER).mkdir(parents=True, exist_ok=True)
        episodes = ("--episodes", str(DEMONSTRATIONS[task] + 10))
        script("-m", "torchrl_genpo.commands.collect", f"robomimic/{task}", *episodes, "--output", str(path))
    return path


def pretrain(folder: Path, task: str, seed: int, dataset: Path, iterations: int, *options: str) -> Path:
    """Returns the last checkpoint of a pre-training, which is run unless it has been."""
    from benchmarks._lib.in_process import latest_checkpoint

    if not list((ROOT / folder / "checkpoints").glob(f"checkpoint-{iterations:012d}.*")):
        script(
            "sota-implementations/pretrain.py",
            f"env=robomimic/{task}",
            *options,
            *SIMULATION,
            f"pretrain.dataset={dataset}",
            f"pretrain.iterations={iterations}",
            f"seed={seed}",
            "eval.rounds=0",
            f"hydra.run.dir={folder}",
        )
    return latest_checkpoint(ROOT / folder)


def pretrained(task: str, options: Sequence[str], seed: int) -> Path:
    """Returns the checkpoint of a policy of few demonstrations."""
    folder = FOLDER / task / "pretrained" / "_".join(option.partition("=")[2] for option in options) / str(seed)
    iterations = GAUSSIAN_ITERATIONS if "policy=gaussian" in options else ITERATIONS[task]
    few = f"pretrain.num_demonstrations={DEMONSTRATIONS[task]}"
    return pretrain(folder, task, seed, demonstrations(task), iterations, *options, *PRETRAINING, few)


def measured(stage: str) -> list[dict[str, Any]]:
    """Returns what was measured of policies that were pre-trained as they are today."""
    lines = read_lines(RESULTS / f"robomimic_{stage}.jsonl")
    return [line for line in lines if line.get("pretraining") == [*SIMULATION, *PRETRAINING]]


def measure(
    stage: str,
    task: str,
    name: str,
    seed: int,
    checkpoint: Callable[[], Path],
    **options: Any,
) -> None:
    """Evaluates a policy and adds a line to the stage's results, unless they have it."""
    import torch

    from benchmarks._lib.in_process import evaluate_checkpoint

    if any((line["task"], line["name"], line["seed"]) == (task, name, seed) for line in measured(stage)):
        return
    torch.set_num_threads(1)
    found = evaluate_checkpoint(checkpoint(), NUM_ENVS, EPISODES // NUM_ENVS, **options)
    line = {"task": task, "name": name, "seed": seed, "episodes": EPISODES}
    line |= {"pretraining": [*SIMULATION, *PRETRAINING]}
    line |= {key: round(found[f"eval/{key}_noise/success"], 4) for key in ("zero", "random")}
    append_line(RESULTS / f"robomimic_{stage}.jsonl", line | record_origin())
    print(f"{task}, {name}, seed {seed}: zero {line['zero']:.2f}, random {line['random']:.2f}", flush=True)


def described(tasks: Collection[str]) -> str:
    """Describes what the policies of some tasks are pre-trained on."""
    counts = ", ".join(f"{task} {DEMONSTRATIONS[task]} ({ITERATIONS[task]:,})" for task in TASKS if task in tasks)
    return (
        f"Demonstrations of a scripted expert, and iterations by which a flow is pre-trained: {counts}; a Gaussian: "
        f"{GAUSSIAN_ITERATIONS:,}"
    )


def report_measured(stage: str, title: str, column: str, names: Sequence[str]) -> None:
    """Writes the report on what a stage has measured."""
    found = measured(stage)
    if not found:
        return
    lines = [
        f"# {title}",
        "",
        f"{described({line['task'] for line in found})}, five velocity evaluations an action; "
        f"`{' '.join(SIMULATION + PRETRAINING)}`. Part of {EPISODES} episodes that succeed, median of the "
        "seeds (each in brackets).",
        "",
        f"| task | {column} | zero noise | random noise |",
        "|---|---|---:|---:|",
    ]
    for task, name in product(TASKS, names):
        chosen = [line for line in found if (line["task"], line["name"]) == (task, name)]
        if chosen:
            cells = [spread([line[key] for line in chosen], 2) for key in ("zero", "random")]
            lines.append(f"| {task} | {name} | {' | '.join(cells)} |")
    save(RESULTS / f"robomimic_{stage}.md", [*lines, *origins(found, stage)])
