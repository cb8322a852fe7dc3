# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers how long an action of an exported policy takes, and what the policy does to the simulated hand.

    python -m benchmarks.cost.deploy <checkpoint of env=xhand/nut_bolt>    # about four minutes

It writes ``deploy.md`` and ``deploy.png`` to ``benchmarks/results``. What faults do to a hand is a test
(``tests/deploy/test_safety.py``).
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torchrl.envs import ExplorationType, set_exploration_type

from benchmarks._lib.in_process import build_env, build_models, configure, load_policy
from benchmarks._lib.origin import RESULTS, origin
from benchmarks._lib.report import parser, save
from torchrl_genpo.deploy import (
    ExportedPolicy,
    FastClock,
    HandController,
    HandPolicy,
    PolicyExporter,
    SimulatedHand,
    draw_session,
    run_policy,
)
from torchrl_genpo.envs.xhand import TRAINING_NUTS, Randomization, Scene

TASKS = ("xhand/nut_bolt", "humanoid")
POLICIES = {
    "Gaussian": ["policy=gaussian"],
    "flow, M = 5": ["solver.num_steps=5"],
    "flow, M = 10": ["solver.num_steps=10"],
}
AIM_MS = 2.0
"""The aim for the p99 of an action at M = 5."""
CALLS = 2000
SECONDS = 20.0
SCENES = 8
"""The number of worlds of each nut in which turns are compared."""
DRAWN = (
    *("friction", "nut_friction", "nut_damping", "nut_mass", "nut_scale"),
    *("stiffness", "damping", "tilt", "hand_height"),
)
"""The properties of a scene that the training draws and that are not offsets."""


def export_untrained(task: str, options: list[str], folder: Path) -> Path:
    """Exports a policy of a task's size."""
    cfg = configure(f"env={task}", *options)
    env = build_env(cfg, 2, 0)
    policy, *_ = build_models(cfg, env)
    return PolicyExporter(policy, env).save(folder)


def measure_latency(folder: Path) -> list[str]:
    """Returns a table of the time of an action by task and policy."""
    lines = [
        f"## One action on one CPU core (aim: p99 under {AIM_MS:g} ms at M = 5)",
        "",
        "Milliseconds of wall time, and in brackets the p99 of the processor's time, which other programs do not "
        f"lengthen; load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
        "",
        "| task | policy | p50 | p99 |",
        "|---|---|---:|---:|",
    ]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    for task in TASKS:
        for index, (name, options) in enumerate(POLICIES.items()):
            policy = ExportedPolicy(export_untrained(task, options, folder / f"{task.replace('/', '_')}_{index}"))
            observation = np.random.default_rng(0).standard_normal(policy.metadata["inputs"]["observation"])
            times = []
            for _ in range(CALLS + 100):
                begin, cpu = time.perf_counter(), time.thread_time()
                policy(observation)
                times.append((time.perf_counter() - begin, time.thread_time() - cpu))
            wall, cpu = 1000 * np.array(times[100:]).T
            cells = [f"{np.median(wall):.3f}", f"{np.percentile(wall, 99):.3f} ({np.percentile(cpu, 99):.3f})"]
            lines.append(f"| {task} | {name} | {' | '.join(cells)} |")
    os.sched_setaffinity(0, cores)
    return lines


def scenes(nut: str) -> list[Scene]:
    """Returns worlds as a training draws them."""
    draws = Randomization()
    rows = draws.draw(SCENES, torch.Generator().manual_seed(0))
    return [draws.apply(Scene(nut=nut), row) for row in rows]


def turns_in_environment(checkpoint: Path, nut: str) -> list[float]:
    """Returns the turns of the zero-noise policy in the environment with the worlds of :func:`scenes`."""
    turns = []
    for scene in scenes(nut):
        fixed = {name: [getattr(scene, name)] * 2 for name in DRAWN}
        offsets = {"nut_center": [0, 0], "nut_position": [0, 0], "start_pose": [0, 0], "nut_angle": [0, 0]}
        quiet = dict.fromkeys(("joint_bias", "target_bias", "target_noise", "push_probability"), 0)
        options = {
            "nuts": [nut],
            "max_steps": round(SECONDS / 0.05),
            "scene": {"nut_position": list(scene.nut_position), "nut_center": list(scene.nut_center)},
            "randomization": fixed | offsets | quiet | {"action_delay": 0},
        }
        actor, env, _ = load_policy(checkpoint, 1, 0, overrides={f"env.options.{k}": v for k, v in options.items()})
        with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
            steps = env.rollout(options["max_steps"], actor)
        turns.append(steps["next", "metrics", f"turns/{nut}"][0, -1].item())
        env.close()
    return turns


def turns_of_hand(policy: HandController, nut: str) -> list[float]:
    """Returns the turns of the simulated hand in the same worlds."""
    turns = []
    for seed, scene in enumerate(scenes(nut)):
        clock = FastClock()
        hand = SimulatedHand(scene, noise=Randomization().joint_noise, seed=seed, clock=clock)
        report = run_policy(policy, hand, seconds=SECONDS, clock=clock)
        turns.append(hand.turns if report.outcome == "completed" else float("nan"))
    return turns


def compare_turns(checkpoint: Path, policy: HandController) -> list[str]:
    """Returns a table of the turns in the environment and of the simulated hand."""
    lines = [
        f"## Turns in {SECONDS:g} s: environment and simulated hand",
        "",
        f"Zero noise, {SCENES} worlds of each nut as the training draws them, the sensors' noise, no pushes. Medians, "
        "and the ratio of the means.",
        "",
        "| nut | environment | simulated hand | ratio |",
        "|---|---:|---:|---:|",
    ]
    for nut in TRAINING_NUTS:
        there, here = turns_in_environment(checkpoint, nut), turns_of_hand(policy, nut)
        ratio = np.mean(here) / np.mean(there)
        lines.append(f"| {nut} | {np.median(there):.2f} | {np.median(here):.2f} | {ratio:.2f} |")
    return lines


def run_in_real_time(policy: HandController, folder: Path) -> list[str]:
    """Returns what a run in real time was like, and draws it."""
    hand = SimulatedHand(scenes("hexagon")[0], noise=Randomization().joint_noise)
    report = run_policy(policy, hand, seconds=SECONDS, log=folder / "log.csv")
    draw_session(folder / "log.csv", RESULTS / "deploy.png")
    middle, high = np.percentile(report.lateness_ms, [50, 99])
    thinking, latest = np.percentile(report.policy_ms, 99), max(report.lateness_ms)
    return [
        f"## {SECONDS:g} s of the simulated hand in real time at 20 Hz",
        "",
        f"{report.outcome}, {hand.turns:.2f} turns of the hexagonal nut. Steps began late by {middle:.2f} ms (p50), "
        f"{high:.2f} ms (p99; aim: 5 ms), {latest:.2f} ms at most; the policy took {thinking:.2f} ms (p99). "
        f"Load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
        "",
        "![Angles and targets of the joints](deploy.png)",
    ]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("checkpoint", type=Path, help="of sota-implementations/genpo.py env=xhand/nut_bolt")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = ["# Deployment", "", *measure_latency(folder)]
        actor, env, _ = load_policy(options.checkpoint, 1, 0)
        policy = HandPolicy(ExportedPolicy(PolicyExporter(actor, env).save(folder / "policy")))
        lines += ["", *compare_turns(options.checkpoint, policy), "", *run_in_real_time(policy, folder)]
    save(RESULTS / "deploy.md", [*lines, *origin()])


if __name__ == "__main__":
    main()
