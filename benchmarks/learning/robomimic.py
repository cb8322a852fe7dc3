# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers how good a policy of few demonstrations of RoboMimic is, and what fine-tuning makes of it.

    python -m benchmarks.learning.robomimic timestep   # the expert in finer and coarser physics
    python -m benchmarks.learning.robomimic starts     # success of a pre-trained flow by its start
    python -m benchmarks.learning.robomimic successes  # pre-trained again on what the policy itself did
    python -m benchmarks.learning.robomimic finetune   # pre-train, fine-tune and report; two hours a run
    python -m benchmarks.learning.robomimic narrow     # before and after, by the noise of the demonstrations
    python -m benchmarks.learning.robomimic physics    # the same policies in robosuite's finer physics
    python -m benchmarks.learning.robomimic stills     # pictures of what the fine-tuned policies do
    python -m benchmarks.learning.robomimic report

``--tasks`` chooses other tasks than Can. It needs robosuite (the README says how to install it). Demonstrations come
from this project's scripted experts and are kept with the pre-trained policies in ``outputs/robomimic``. What has been
measured is a line of ``robomimic_<stage>.jsonl`` or ``robomimic.jsonl`` in ``benchmarks/results`` and is not measured
again; the reports lie beside them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks._lib.origin import RESULTS, ROOT, origin
from benchmarks._lib.report import origins, parser, pyplot, save, spread
from benchmarks._lib.robomimic import (
    DEMONSTRATIONS,
    EPISODES,
    FOLDER,
    NUM_ENVS,
    SIMULATION,
    TASKS,
    demonstrations,
    described,
    measure,
    pretrain,
    pretrained,
    report_measured,
    script,
)
from benchmarks._lib.runs import Run, draw, execute_all, last, read_results

TIMESTEPS = (0.002, 0.005, 0.01)
DENSE_REWARD = ("env.options.reward_shaping=true", "env.options.end_at_success=false", "env.scale_reward=true")
REWARD = {"can": DENSE_REWARD}
"""Options of the reward, which is sparse where there are none."""
CHUNKS = {"can": 300_000, "box_cleanup": 100_000, "threading": 100_000}
"""The frames of fine-tuning."""
ROUNDS_OF_EVALUATION = 10
"""How often each of the environments is evaluated before and after fine-tuning."""
TAU = {"can": 0.5, "box_cleanup": 0.3, "threading": 0.3}
"""The width of the noise of fine-tuning; without a dense reward, some success must remain."""
NARROW_TAU = 0.1
"""The width of the noise of pre-training."""
NUM_STEPS, SIGMA = 5, 0.75
EULER = "Euler"
STARTS: dict[str, tuple[float | None, float]] = {
    EULER: (None, SIGMA),
    **{f"consistent, tau {tau}": (tau, SIGMA) for tau in (0.03, 0.1, 0.3)},
    "consistent, tau 0.1, sigma 0.5": (0.1, 0.5),
    "paper's": (None, SIGMA),
}
"""The tau of the consistent start and the sigma of the solver by which a pre-trained flow is sampled."""
POLICIES = {
    "gaussian": ("Gaussian", ["policy=gaussian"]),
    "reversible_flow": ("flow, consistent start", ["policy=reversible_flow"]),
    "reversible_flow_narrow": (f"flow, tau {NARROW_TAU}", ["policy=reversible_flow"]),
    "reference": ("flow, near the pre-trained one", ["policy=reversible_flow"]),
    "steered": ("flow, steered", ["policy=reversible_flow"]),
    "anchored": ("flow, anchored to good chunks", ["policy=reversible_flow"]),
    "fpo": ("FPO++", ["policy=fpo"]),
    "fpo_constant": ("FPO++, constant rate and its own clip", ["policy=fpo"]),
}
"""The label of each policy and its options of both entry scripts."""
BEFORE_AND_AFTER = {
    policy: tuple(f"{label}, {when}" for when in ("before", "after")) for policy, (label, _) in POLICIES.items()
}
FINE_PHYSICS = {"env.options.simulation_timestep": TIMESTEPS[0]}
"""The time step of robosuite's own physics."""
ROUNDS, ROUND_EPISODES, ROUND_ITERATIONS = 1, 300, 4000
"""How often a policy imitates its own successes, of how many episodes, in how many iterations."""
SUCCESSES = ("demonstrations", *(f"its successes, round {index}" for index in range(1, ROUNDS + 1)))
FRAMES = 6
"""The number of pictures of a film strip."""


def imitator(task: str, seed: int, rounds: int) -> Path:
    """Returns the checkpoint of a policy that imitates the successes of the policy of the round before."""
    policy = POLICIES["reversible_flow"][1]
    if not rounds:
        return pretrained(task, policy, seed)
    folder = FOLDER / task / "successes" / str(rounds) / str(seed)
    dataset = folder / "successes.hdf5"
    if not (ROOT / dataset).exists():
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        actor = ("--policy", str(imitator(task, seed, rounds - 1)), "--seed", str(rounds * ROUND_EPISODES))
        episodes = ("--episodes", str(ROUND_EPISODES))
        script("-m", "torchrl_genpo.commands.collect", f"robomimic/{task}", *actor, *episodes, "--output", str(dataset))
    return pretrain(folder, task, seed, dataset, ROUND_ITERATIONS, *policy)


def measure_timesteps(tasks: Sequence[str]) -> None:
    """Measures how the scripted expert fares when physics takes longer steps, and what that saves."""
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
    save(RESULTS / "robomimic_timestep.md", [*lines, *origin()])


def measure_starts(tasks: Sequence[str], seeds: Sequence[int]) -> None:
    """Measures the success of one pre-trained flow, sampled in every way, from the same initial states."""
    from torchrl_genpo import ConsistentStart, IndependentStart, ReversibleSolver
    from torchrl_genpo.modules import EulerActor, flow_of

    def sampled(name: str, policy: Any) -> Any:
        tau, sigma = STARTS[name]
        flow = flow_of(policy)
        flow.solver = ReversibleSolver(NUM_STEPS, sigma)
        flow.start = IndependentStart() if tau is None else ConsistentStart(tau)
        return EulerActor.of(policy) if name == EULER else policy

    for seed, task, name in product(seeds, tasks, STARTS):
        checkpoint = partial(pretrained, task, POLICIES["reversible_flow"][1], seed)
        measure("starts", task, name, seed, checkpoint, change=partial(sampled, name))


def measure_successes(tasks: Sequence[str], seeds: Sequence[int]) -> None:
    """Measures the success of a policy of demonstrations, and of the policies of its own successes."""
    for seed, task, (rounds, name) in product(seeds, tasks, enumerate(SUCCESSES)):
        measure("successes", task, name, seed, partial(imitator, task, seed, rounds))


def finetuning(task: str, policy: str) -> tuple[str, ...]:
    """Returns the options of fine-tuning, apart from those that make the policy."""
    tau = TAU[task] if policy == "reversible_flow" else NARROW_TAU
    flow = ("optim.noise_lr=3e-4", f"start.tau={tau}")
    anchor = (f"anchor.dataset={demonstrations(task)}", f"anchor.num_demonstrations={DEMONSTRATIONS[task]}")
    own = {
        "gaussian": ("optim.noise_lr=3e-4",),
        "reference": (*flow, "loss.reference_coeff=0.1", "loss.reference_target=0.5"),
        "steered": ("start=steered", f"start.tau={tau}", "policy.trainable=start", "optim.lr=1e-4"),
        "anchored": (*flow, "anchor.coeff=0.1", *anchor, "anchor.own_chunks=20_000"),
        "fpo": (),
        "fpo_constant": ("optim.schedule=constant", "loss.clip_epsilon=0.05"),
    }.get(policy, flow)
    return (
        *SIMULATION,
        *REWARD.get(task, ()),
        *("collector.frames_per_batch=2000", f"collector.total_frames={CHUNKS[task]}", "checkpoint.interval=20000"),
        *("loss.clip_epsilon=0.3", "optim.target_kl=0.1"),
        *("optim.critic_warmup=4000", "env.options.num_workers=0", f"eval.rounds={ROUNDS_OF_EVALUATION}"),
        *own,
    )


def finetuning_runs(tasks: Sequence[str], policies: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Returns the runs of fine-tuning, each from its pre-trained policy."""
    runs = []
    for seed, task, policy in product(seeds, tasks, policies):
        options = POLICIES[policy][1]
        init = pretrained(task, options, seed).relative_to(ROOT)
        overrides = (*finetuning(task, policy), f"policy.init={init}")
        runs.append(Run("robomimic", f"robomimic/{task}", policy, tuple(options), seed, None, overrides))
    return runs


def finetuned(task: str, policy: str, seed: int) -> Path:
    """Returns the last checkpoint of a fine-tuned policy."""
    from benchmarks._lib.in_process import latest_checkpoint

    (run,) = finetuning_runs([task], [policy], [seed])
    return latest_checkpoint(run.folder)


def before_and_after(task: str, policy: str, seed: int) -> dict[str, Callable[[], Path]]:
    """Returns what finds the checkpoints of pre-training and fine-tuning, by what the reports call them."""
    checkpoints = partial(pretrained, task, POLICIES[policy][1], seed), partial(finetuned, task, policy, seed)
    return dict(zip(BEFORE_AND_AFTER[policy], checkpoints, strict=True))


def measure_narrow(tasks: Sequence[str], seeds: Sequence[int]) -> None:
    """Measures the success of the flow before and after fine-tuning with a start as narrow as in pre-training."""
    from torchrl_genpo.modules import flow_of

    def narrowed(policy: Any) -> Any:
        flow_of(policy).start.log_tau.data.fill_(math.log(NARROW_TAU))
        return policy

    for seed, task in product(seeds, tasks):
        for name, checkpoint in before_and_after(task, "reversible_flow", seed).items():
            measure("narrow", task, name, seed, checkpoint, change=narrowed)


def measure_physics(tasks: Sequence[str], policies: Sequence[str], seeds: Sequence[int]) -> None:
    """Measures the success before and after fine-tuning in physics as fine as robosuite's own."""
    for seed, task, policy in product(seeds, tasks, policies):
        for name, checkpoint in before_and_after(task, policy, seed).items():
            measure("physics", task, name, seed, checkpoint, overrides=FINE_PHYSICS)


def draw_stills(tasks: Sequence[str], path: Path) -> None:
    """Draws a strip of frames of one zero-noise episode of the fine-tuned flow of every task."""
    import imageio.v3 as imageio

    size = (2.4 * FRAMES, 1.9 * len(tasks))
    figure, axes = pyplot().subplots(len(tasks), FRAMES, figsize=size, layout="constrained", squeeze=False)
    for strip, task in zip(axes, tasks, strict=True):
        checkpoint = finetuned(task, "reversible_flow", 1)
        script("sota-implementations/genpo.py", f"evaluate={checkpoint}", "video=true", "eval.num_envs=1")
        frames = imageio.imread(checkpoint.with_suffix(".mp4"), plugin="FFMPEG")
        for index, panel in enumerate(strip):
            panel.imshow(frames[round(index * (len(frames) - 1) / (FRAMES - 1))])
            panel.set_axis_off()
        strip[0].set_title(task, loc="left", fontsize=9)
    figure.savefig(path, dpi=110)


def episodes(record: dict[str, Any]) -> int:
    """Returns the number of episodes of each evaluation of a run."""
    rounds = [option.partition("=")[2] for option in record["overrides"] if option.startswith("eval.rounds=")]
    return NUM_ENVS * int(rounds[0]) if rounds else EPISODES


def report(path: Path) -> None:
    """Writes the report on all fine-tuned policies."""
    records = sorted(read_results(path.stem).values(), key=lambda record: record["seed"])
    if not records:
        return
    lines = [
        "# RoboMimic: fine-tuning a policy of few demonstrations",
        "",
        f"{described({record['task'].partition('/')[2] for record in records})}, then `sota-implementations/genpo.py`. "
        "Part of the episodes that succeed, before and after; median of the seeds (each in brackets). "
        "Frames are chunks of four control steps.",
        "",
        "| task | policy | zero noise before | after | random noise before | after | episodes | frames | minutes |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
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
            cells += [f"{episodes(chosen[0])}", f"{last(chosen[0], 'frames'):.0f}", f"{minutes:.0f}"]
            lines.append(f"| {task} | {label} | {' | '.join(cells)} |")
            options = [option for option in chosen[0]["overrides"] if not option.startswith("policy.init=")]
            settings.append(f"- {task}, {label}: `{' '.join(options)}`")
    lines += ["", "Fine-tuned with", "", *settings]
    save(path, [*lines, *origins(records, "finetune")])
    picture = path.with_suffix(".png")
    axes = {"xlabel": "thousand chunks", "ylabel": "training success"}
    draw(records, POLICIES, picture, unit=1e3, column="train/success", **axes)


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "timestep": lambda chosen: measure_timesteps(chosen.tasks),
    "starts": lambda chosen: measure_starts(chosen.tasks, chosen.seeds),
    "successes": lambda chosen: measure_successes(chosen.tasks, chosen.seeds),
    "finetune": lambda chosen: execute_all(
        finetuning_runs(chosen.tasks, chosen.policies, chosen.seeds), chosen.workers
    ),
    "narrow": lambda chosen: measure_narrow(chosen.tasks, chosen.seeds),
    "physics": lambda chosen: measure_physics(chosen.tasks, chosen.policies, chosen.seeds),
    "stills": lambda chosen: draw_stills(chosen.tasks, RESULTS / "robomimic_stills.png"),
    "report": lambda chosen: None,
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("stage", choices=STAGES)
    arguments.add_argument("--tasks", nargs="+", default=["can"], choices=TASKS)
    arguments.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    arguments.add_argument("--seeds", nargs="+", type=int, default=[1])
    arguments.add_argument("--workers", type=int, default=1, help="runs at a time, each in one process")
    chosen = arguments.parse_args()

    STAGES[chosen.stage](chosen)
    title = "A pre-trained policy before its first update: success by solver and start"
    report_measured("starts", title, "sampled by", list(STARTS))
    title = f"Pre-trained again on its successes of {ROUND_EPISODES} episodes, {ROUND_ITERATIONS} iterations a round"
    report_measured("successes", title, "pre-trained on", SUCCESSES)
    title = f"Before and after fine-tuning, sampled with tau = {NARROW_TAU}"
    report_measured("narrow", title, "policy", BEFORE_AND_AFTER["reversible_flow"])
    names = [name for pair in BEFORE_AND_AFTER.values() for name in pair]
    report_measured("physics", f"Fine-tuned in coarser physics, evaluated at {TIMESTEPS[0]} s", "policy", names)
    report(RESULTS / "robomimic.md")


if __name__ == "__main__":
    main()
