# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""RoboMimic: a weak policy from few demonstrations, and what fine-tuning makes of it.

    python benchmarks/robomimic_finetuning.py timestep --tasks can  # the expert in finer and coarser physics
    python benchmarks/robomimic_finetuning.py starts --tasks can  # success of a pre-trained flow by solver and start
    python benchmarks/robomimic_finetuning.py networks --tasks can  # MLP and transformer, chunks of 4 and 8
    python benchmarks/robomimic_finetuning.py successes --tasks can  # pre-trained again on what the policy itself did
    python benchmarks/robomimic_finetuning.py finetune --tasks can  # pre-train, fine-tune and report; hours
    python benchmarks/robomimic_finetuning.py narrow --tasks can  # before and after, by the noise of the demonstrations
    python benchmarks/robomimic_finetuning.py physics --tasks can  # the same policies in robosuite's finer physics
    python benchmarks/robomimic_finetuning.py stills --tasks can  # pictures of what the fine-tuned policies do
    python benchmarks/robomimic_finetuning.py report

Needs robosuite (the README says how). Demonstrations come from this project's scripted experts, and are kept with the
pre-trained policies in ``outputs/robomimic``. What has been measured is a line of ``robomimic_<stage>.jsonl``
or ``robomimic.jsonl`` in ``benchmarks/results`` and is not measured again; the reports lie beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from experiments import Run, draw, execute_all, last, origins, read_results, spread
from provenance import RESULTS, ROOT, commit, machine, origin, versions

TASKS = ("can", "box_cleanup", "threading")
DEMONSTRATIONS = {"can": 10, "box_cleanup": 40, "threading": 40}  # of the weak base
ITERATIONS = 2500
EPISODES = 100  # of each evaluation
SIMULATION = ("env.options.horizon=240", "env.options.simulation_timestep=0.01")  # of all runs: two cores, two hours
TIMESTEPS = (0.002, 0.005, 0.01)
PRETRAINING = ("pretrain.action_noise=0.1",)
DENSE_REWARD = ("env.options.reward_shaping=true", "env.options.end_at_success=false", "env.scale_reward=true")
REWARD = {"can": DENSE_REWARD}  # the others have a sparse one
CHUNKS = {"can": 300_000, "box_cleanup": 40_000, "threading": 40_000}  # two arms take twice the time
TAU = {"can": 0.5, "box_cleanup": 0.3, "threading": 0.3}  # without a dense reward, some success must remain
FOLDER = Path("outputs/robomimic")
TWO_STEP = {"name": "two_step", "num_steps": 5, "sigma": 0.75}
EULER, CONSISTENT = "Euler", "consistent, tau {}"
STARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # name -> start, solver
    EULER: ({"name": "independent"}, TWO_STEP),
    **{CONSISTENT.format(tau): ({"name": "consistent", "tau": tau}, TWO_STEP) for tau in (0.03, 0.1, 0.3)},
    "consistent, tau 0.1, sigma 0.5": ({"name": "consistent", "tau": 0.1}, TWO_STEP | {"sigma": 0.5}),
    "consistent, tau 0.1, three-step": (
        {"name": "consistent", "tau": 0.1},
        {"name": "three_step", "num_steps": 5, "a": 1.0},
    ),
    "paper's": ({"name": "independent"}, TWO_STEP),
}
NARROW_TAU = 0.1  # of pre-training
POLICIES = {  # name -> label, options of both entry scripts
    "gaussian": ("Gaussian", ["policy=gaussian"]),
    "reversible_flow": ("flow, consistent start", ["policy=reversible_flow"]),
    "reversible_flow_twice_kl": ("flow, twice the target KL", ["policy=reversible_flow"]),
    "reversible_flow_narrow": (f"flow, tau {NARROW_TAU}", ["policy=reversible_flow"]),
    "fpo": ("FPO++", ["policy=fpo"]),
    "fpo_constant": ("FPO++, constant rate and its own clip", ["policy=fpo"]),
}
NETWORKS = {
    "MLP, chunks of 4": ["policy=reversible_flow"],
    "MLP, chunks of 8": ["policy=reversible_flow", "env.options.chunk_size=8"],
    "transformer, chunks of 8": ["policy=transformer_flow", "env.options.chunk_size=8"],
    "MLP, chunks of 16": ["policy=reversible_flow", "env.options.chunk_size=16"],
    "transformer, chunks of 16": ["policy=transformer_flow", "env.options.chunk_size=16"],
}
BEFORE_AND_AFTER = {
    policy: tuple(f"{label}, {when}" for when in ("before", "after")) for policy, (label, _) in POLICIES.items()
}
FINE_PHYSICS = {"env.options.simulation_timestep": TIMESTEPS[0]}  # s, robosuite's own
ROUNDS, ROUND_EPISODES, ROUND_ITERATIONS = 1, 300, 4000  # of imitating one's own successes
SUCCESSES = ("demonstrations", *(f"its successes, round {index}" for index in range(1, ROUNDS + 1)))
NUM_ENVS, EVAL_SEED = 20, 10_000
FRAMES = 6  # of a film strip


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
        script("examples/collect_demos.py", task, "--episodes", str(DEMONSTRATIONS[task] + 10), "--output", str(path))
    return path


def pretrain(folder: Path, task: str, seed: int, dataset: Path, iterations: int, *options: str) -> Path:
    """The last checkpoint of a pre-training, which is run unless it has been."""
    checkpoint = folder / "checkpoints" / f"checkpoint-{iterations:012d}.torchrl"
    if not (ROOT / checkpoint).exists():
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
    return ROOT / checkpoint


def pretrained(task: str, options: Sequence[str], seed: int) -> Path:
    """The checkpoint of a policy of few demonstrations."""
    folder = FOLDER / task / "pretrained" / "_".join(option.partition("=")[2] for option in options) / str(seed)
    few = f"pretrain.num_demonstrations={DEMONSTRATIONS[task]}"
    return pretrain(folder, task, seed, demonstrations(task), ITERATIONS, *options, *PRETRAINING, few)


def imitator(task: str, seed: int, rounds: int) -> Path:
    """The checkpoint of a policy of what the one of a round less achieved; of few demonstrations without a round."""
    policy = POLICIES["reversible_flow"][1]
    if not rounds:
        return pretrained(task, policy, seed)
    folder = FOLDER / task / "successes" / str(rounds) / str(seed)
    dataset = folder / "successes.hdf5"
    if not (ROOT / dataset).exists():
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        actor = ("--policy", str(imitator(task, seed, rounds - 1)), "--seed", str(rounds * ROUND_EPISODES))
        script("examples/collect_demos.py", task, *actor, "--episodes", str(ROUND_EPISODES), "--output", str(dataset))
    return pretrain(folder, task, seed, dataset, ROUND_ITERATIONS, *policy)


def measure_timesteps(tasks: Sequence[str]) -> None:
    """How the scripted expert fares when physics takes longer steps, and what that saves."""
    from torchrl_genpo.envs import ROBOMIMIC_TASKS
    from torchrl_genpo.envs.robomimic.experts import demonstrate

    lines = [
        "# RoboMimic: steps of the physics",
        "",
        "The scripted expert, 20 episodes from the same seeds. Difference: the largest of an episode's length to that "
        "at 0.002 s, robosuite's own. Milliseconds are of processor time; speed is beside 0.002 s.",
        "",
        "| task | step, s | success | control steps of an episode | difference | ms a control step | speed |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for task in tasks:
        known = ROBOMIMIC_TASKS[task]
        first: tuple[list[int], float] | None = None
        for timestep in TIMESTEPS:
            start = time.process_time()
            episodes = demonstrate(known.env_args(), known.horizon, list(range(20)), simulation_timestep=timestep)
            seconds = time.process_time() - start
            lengths = [known.horizon if episode is None else len(episode["actions"]) for episode in episodes]
            cost = 1000 * seconds / sum(lengths)
            first = first or (lengths, cost)
            succeeded = sum(episode is not None for episode in episodes) / len(episodes)
            difference = max(abs(a - b) for a, b in zip(lengths, first[0], strict=True))
            cells = f"{succeeded:.2f} | {min(lengths)} to {max(lengths)} | {difference} | {cost:.1f}"
            lines.append(f"| {task} | {timestep} | {cells} | {first[1] / cost:.2f} |")
            print(lines[-1], flush=True)
    lines += origin("python benchmarks/robomimic_finetuning.py timestep --tasks " + " ".join(tasks))
    (RESULTS / "robomimic_timestep.md").write_text("\n".join(lines) + "\n")


def measure_starts(tasks: Sequence[str], seeds: Sequence[int]) -> None:
    """Success of one pre-trained flow, sampled in every way, from the same initial states."""
    from torchrl_genpo.models import make_solver, make_start
    from torchrl_genpo.modules import EulerActor, ReversibleFlowActor

    def sampled(name: str, policy: Any) -> Any:
        options, solver = STARTS[name][0], make_solver(**STARTS[name][1])
        start = make_start(velocity=policy.velocity, solver=solver, **options)
        actor = ReversibleFlowActor(policy.velocity, solver=solver, start=start)
        return EulerActor.of(actor) if name == EULER else actor

    for seed, task, name in product(seeds, tasks, STARTS):
        checkpoint = partial(pretrained, task, POLICIES["reversible_flow"][1], seed)
        measure("starts", task, name, seed, checkpoint, partial(sampled, name))


def measure_networks(tasks: Sequence[str], seeds: Sequence[int]) -> None:
    """Success of pre-trained flows of different networks and lengths of chunks, by the configured start."""
    for seed, task, (name, options) in product(seeds, tasks, NETWORKS.items()):
        measure("networks", task, name, seed, partial(pretrained, task, options, seed))


def measure_successes(tasks: Sequence[str], seeds: Sequence[int]) -> None:
    """Success of a policy of demonstrations, and of those of its own successes."""
    for seed, task, (rounds, name) in product(seeds, tasks, enumerate(SUCCESSES)):
        measure("successes", task, name, seed, partial(imitator, task, seed, rounds))


def read_lines(stage: str) -> list[dict[str, Any]]:
    """What was measured of policies that were pre-trained as they are today."""
    path = RESULTS / f"robomimic_{stage}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line.get("pretraining") == [*SIMULATION, *PRETRAINING]]


def is_known(stage: str, task: str, name: str, seed: int) -> bool:
    return any((line["task"], line["name"], line["seed"]) == (task, name, seed) for line in read_lines(stage))


def measure(
    stage: str,
    task: str,
    name: str,
    seed: int,
    checkpoint: Callable[[], Path],
    prepare: Callable[[Any], Any] = lambda policy: policy,
    **options: Any,
) -> None:
    """Evaluates a policy and adds a line to the stage's results, unless they have it."""
    import torch

    from torchrl_genpo.loading import load_policy
    from torchrl_genpo.training import evaluate

    if is_known(stage, task, name, seed):
        return
    torch.set_num_threads(1)
    policy, env, _ = load_policy(checkpoint(), NUM_ENVS, EVAL_SEED, **options)
    found = evaluate(env, prepare(policy), EVAL_SEED, EPISODES // NUM_ENVS)
    env.close()
    line = {"task": task, "name": name, "seed": seed, "episodes": EPISODES}
    line |= {"pretraining": [*SIMULATION, *PRETRAINING]}
    line |= {key: round(found[f"eval/{key}_noise/success"], 4) for key in ("zero", "random")}
    line |= {"commit": commit(), "versions": versions(), "machine": machine()}
    with (RESULTS / f"robomimic_{stage}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{task}, {name}, seed {seed}: zero {line['zero']:.2f}, random {line['random']:.2f}", flush=True)


def described(tasks: Collection[str]) -> str:
    """What the policies of some tasks are pre-trained on."""
    counts = ", ".join(f"{task} {DEMONSTRATIONS[task]}" for task in TASKS if task in tasks)
    return f"Demonstrations of a scripted expert: {counts}; {ITERATIONS} iterations of flow matching"


def report_measured(stage: str, title: str, column: str, names: Sequence[str]) -> None:
    found = read_lines(stage)
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
    lines += origins(found, f"python benchmarks/robomimic_finetuning.py {stage}")
    (RESULTS / f"robomimic_{stage}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def finetuning(task: str, policy: str) -> tuple[str, ...]:
    """The options of the entry script, apart from the policy's own."""
    target_kl = 0.2 if policy == "reversible_flow_twice_kl" else 0.1  # the pair's is about twice the action's
    tau = NARROW_TAU if policy == "reversible_flow_narrow" else TAU[task]
    flow = ("optim.noise_lr=3e-4", f"start.tau={tau}")
    own = {
        "gaussian": ("optim.noise_lr=3e-4",),
        "fpo": (),
        "fpo_constant": ("optim.schedule=constant", "loss.clip_epsilon=0.05"),
    }.get(policy, flow)
    return (
        *SIMULATION,
        *REWARD.get(task, ()),
        *("collector.frames_per_batch=2000", f"collector.total_frames={CHUNKS[task]}", "checkpoint.interval=20000"),
        *("loss.clip_epsilon=0.3", f"optim.target_kl={target_kl}"),
        *("optim.critic_warmup=4000", "num_threads=2"),
        *own,
    )


def finetuning_runs(tasks: Sequence[str], policies: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    runs = []
    for seed, task, policy in product(seeds, tasks, policies):
        init = pretrained(task, POLICIES[policy][1], seed).relative_to(ROOT)
        runs.append(
            Run(
                "robomimic",
                f"robomimic/{task}",
                policy,
                tuple(POLICIES[policy][1]),
                seed,
                None,
                (*finetuning(task, policy), f"policy.init={init}"),
            )
        )
    return runs


def finetuned(task: str, policy: str, seed: int) -> Path:
    """The last checkpoint of a fine-tuned policy."""
    from torchrl.checkpoint import CheckpointRotation

    (run,) = finetuning_runs([task], [policy], [seed])
    latest = CheckpointRotation(run.folder / "checkpoints", keep_last=2).latest()
    if latest is None:
        sys.exit(
            f"{task}, {policy}, seed {seed}: not fine-tuned yet; run the stage 'finetune' with --tasks {task} first."
        )
    return latest


def before_and_after(task: str, policy: str, seed: int) -> dict[str, Callable[[], Path]]:
    """The checkpoints of pre-training and of fine-tuning, by what the reports call them."""
    checkpoints = partial(pretrained, task, POLICIES[policy][1], seed), partial(finetuned, task, policy, seed)
    return dict(zip(BEFORE_AND_AFTER[policy], checkpoints, strict=True))


def measure_narrow(tasks: Sequence[str], seeds: Sequence[int]) -> None:
    """Success of the flow before and after fine-tuning where its start is as narrow as in pre-training."""

    def narrowed(policy: Any) -> Any:
        policy.start.log_tau.data.fill_(math.log(NARROW_TAU))
        return policy

    for seed, task in product(seeds, tasks):
        for name, checkpoint in before_and_after(task, "reversible_flow", seed).items():
            measure("narrow", task, name, seed, checkpoint, narrowed)


def measure_physics(tasks: Sequence[str], policies: Sequence[str], seeds: Sequence[int]) -> None:
    """Success before and after fine-tuning where physics is simulated as finely as robosuite does by default."""
    for seed, task, policy in product(seeds, tasks, policies):
        for name, checkpoint in before_and_after(task, policy, seed).items():
            measure("physics", task, name, seed, checkpoint, overrides=FINE_PHYSICS)


def draw_stills(tasks: Sequence[str], path: Path) -> None:
    """A strip of frames of one zero-noise episode of the fine-tuned flow of every task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from torchrl.envs import ExplorationType, set_exploration_type

    from torchrl_genpo.configuration import build_env
    from torchrl_genpo.envs import make_view
    from torchrl_genpo.loading import load_policy

    figure, axes = plt.subplots(
        len(tasks), FRAMES, figsize=(2.4 * FRAMES, 1.9 * len(tasks)), layout="constrained", squeeze=False
    )
    for strip, task in zip(axes, tasks, strict=True):
        actor, trained_env, cfg = load_policy(finetuned(task, "reversible_flow", 1), NUM_ENVS, EVAL_SEED)
        env = build_env(cfg, 1, EVAL_SEED, render=True)
        env.transform.load_state_dict(trained_env.transform.state_dict())
        view, td, frames, is_done = make_view(env), env.reset(), [], False
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            while not is_done:
                frames.append(view.frame(td))
                step, td = env.step_and_maybe_reset(actor(td))
                is_done = bool(step["next", "done"].any())
        for panel, index in zip(strip, np.linspace(0, len(frames) - 1, FRAMES).astype(int), strict=True):
            panel.imshow(frames[index])
            panel.set_axis_off()
        strip[0].set_title(f"{task}, success {int(step['next', 'success'].item())}", loc="left", fontsize=9)
    figure.savefig(path, dpi=110)


def report(path: Path) -> None:
    records = sorted(read_results(path.stem).values(), key=lambda record: record["seed"])
    if not records:
        return
    lines = [
        "# RoboMimic: fine-tuning a policy of few demonstrations",
        "",
        f"{described({record['task'].partition('/')[2] for record in records})}, then `sota-implementations/genpo.py`. "
        f"Part of {EPISODES} episodes that succeed, before and after; median of the seeds (each in brackets). "
        "Frames are chunks of four control steps.",
        "",
        "| task | policy | zero noise before | after | random noise before | after | frames | minutes |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    settings = []
    for task in TASKS:
        for policy, (label, _) in POLICIES.items():
            chosen = [r for r in records if (r["task"], r["policy"]) == (f"robomimic/{task}", policy)]
            if not chosen:
                continue
            cells = []
            for noise in ("zero", "random"):
                column = f"eval/{noise}_noise/success"
                cells.append(spread([record["curves"][column][0] for record in chosen], 2))
                cells.append(spread([last(record, column) for record in chosen], 2))
            minutes = statistics.median(record["seconds"] for record in chosen) / 60
            cells += [f"{last(chosen[0], 'frames'):.0f}", f"{minutes:.0f}"]
            lines.append(f"| {task} | {label} | {' | '.join(cells)} |")
            options = [option for option in chosen[0]["overrides"] if not option.startswith("policy.init=")]
            settings.append(f"- {task}, {label}: `{' '.join(options)}`")
    lines += ["", "Fine-tuned with", "", *settings]
    lines += origins(records, "python benchmarks/robomimic_finetuning.py finetune")
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    picture = path.with_suffix(".png")
    axes = {"xlabel": "thousand chunks", "ylabel": "training success"}
    draw(records, POLICIES, picture, unit=1e3, column="train/success", **axes)


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "timestep": lambda chosen: measure_timesteps(chosen.tasks),
    "starts": lambda chosen: measure_starts(chosen.tasks, chosen.seeds),
    "networks": lambda chosen: measure_networks(chosen.tasks, chosen.seeds),
    "successes": lambda chosen: measure_successes(chosen.tasks, chosen.seeds),
    "finetune": lambda chosen: execute_all(
        finetuning_runs(chosen.tasks, chosen.policies, chosen.seeds), chosen.workers
    ),
    "narrow": lambda chosen: measure_narrow(chosen.tasks, chosen.seeds),
    "physics": lambda chosen: measure_physics(chosen.tasks, chosen.policies, chosen.seeds),
    "stills": lambda chosen: draw_stills(chosen.tasks, RESULTS / "robomimic_stills.png"),
    "report": lambda chosen: None,  # as after every stage
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--tasks", nargs="+", default=["can"], choices=TASKS)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, each with two processes of its own")
    chosen = parser.parse_args()

    RESULTS.mkdir(exist_ok=True)
    STAGES[chosen.stage](chosen)
    title = "A pre-trained policy before its first update: success by solver and start"
    report_measured("starts", title, "sampled by", list(STARTS))
    report_measured("networks", "Pre-trained flows: networks and chunks", "velocity", list(NETWORKS))
    title = f"Pre-trained again on its successes of {ROUND_EPISODES} episodes, {ROUND_ITERATIONS} iterations a round"
    report_measured("successes", title, "pre-trained on", SUCCESSES)
    title = f"Before and after fine-tuning, sampled with tau = {NARROW_TAU}"
    report_measured("narrow", title, "policy", BEFORE_AND_AFTER["reversible_flow"])
    names = [name for pair in BEFORE_AND_AFTER.values() for name in pair]
    report_measured("physics", f"Fine-tuned in coarser physics, evaluated at {TIMESTEPS[0]} s", "policy", names)
    report(RESULTS / "robomimic.md")


if __name__ == "__main__":
    main()
