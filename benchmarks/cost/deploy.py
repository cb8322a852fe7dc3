# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Exported policies: how long an action takes, what the simulated hand does in real time, and what faults do to a hand.

    python benchmarks/deploy.py <checkpoint of env=xhand/nut_bolt>    # about four minutes

Writes ``deploy.md`` and ``deploy.png`` to ``benchmarks/results``. Without a checkpoint an untrained policy takes its
place, and there are no turns to compare.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from provenance import RESULTS, origin
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_genpo.deploy import (
    ExportedPolicy,
    FakeSDK,
    FastClock,
    Fault,
    FaultyController,
    HandConfig,
    HandController,
    HandPolicy,
    PolicyExporter,
    SimulatedHand,
    XHandBackend,
    draw_session,
    run_policy,
)
from torchrl_genpo.deploy.faults import HAND_FAULTS, POLICY_FAULTS
from torchrl_genpo.envs import freeze_normalization, make_env
from torchrl_genpo.envs.xhand import TRAINING_NUTS, Randomization, Scene
from torchrl_genpo.loading import load_policy
from torchrl_genpo.models import make_actor, make_solver

TASKS = {"xhand/nut_bolt": (256, 128, 64), "humanoid": (400, 200, 100)}
POLICIES = {"Gaussian": None, "flow, M = 5": 5, "flow, M = 10": 10}
AIM_MS = 2.0  # p99 of an action at M = 5
CALLS = 2000
SECONDS = 20.0
SCENES = 8  # of each nut, for the comparison of turns
# of a scene, that the training draws, and that are not offsets
DRAWN = (
    *("friction", "nut_friction", "nut_damping", "nut_mass", "nut_scale"),
    *("stiffness", "damping", "tilt", "hand_height"),
)


def export_untrained(task: str, num_steps: int | None, folder: Path) -> Path:
    env = make_env(task, num_envs=2, seed=0)
    env.rollout(20)
    freeze_normalization(env)
    if num_steps is None:
        actor = make_actor(env, "gaussian", hidden_sizes=TASKS[task])
    else:
        actor = make_actor(env, hidden_sizes=TASKS[task], solver=make_solver("two_step", num_steps=num_steps))
    return PolicyExporter(actor, env).save(folder)


def measure_latency(folder: Path) -> list[str]:
    lines = [
        f"## One action on one CPU core (aim: p99 under {AIM_MS:g} ms at M = 5)",
        "",
        "Milliseconds of wall time, and in brackets the p99 of the processor's time, which other programs do not "
        f"lengthen; load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
        "",
        "| task | policy | ONNX Runtime, p50 | p99 | torch.export, p50 | p99 |",
        "|---|---|---:|---:|---:|---:|",
    ]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    for task in TASKS:
        for name, num_steps in POLICIES.items():
            exported = export_untrained(task, num_steps, folder / f"{task}_{num_steps}".replace("/", "_"))
            cells = []
            for runtime in ("onnx", "torch"):
                policy = ExportedPolicy(exported, runtime)
                observation = np.random.default_rng(0).standard_normal(policy.metadata["observation"]["size"])
                times = []
                for _ in range(CALLS + 100):
                    begin, cpu = time.perf_counter(), time.thread_time()
                    policy(observation)
                    times.append((time.perf_counter() - begin, time.thread_time() - cpu))
                wall, cpu = 1000 * np.array(times[100:]).T
                cells += [f"{np.median(wall):.3f}", f"{np.percentile(wall, 99):.3f} ({np.percentile(cpu, 99):.3f})"]
            lines.append(f"| {task} | {name} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    os.sched_setaffinity(0, cores)
    return lines


def scenes(nut: str) -> list[Scene]:
    """Worlds as a training draws them."""
    draws = Randomization()
    rows = draws.draw(SCENES, torch.Generator().manual_seed(0))
    return [draws.apply(Scene(nut=nut), row) for row in rows]


def turns_in_environment(checkpoint: Path, nut: str) -> list[float]:
    """Turns of the zero-noise policy in ``SECONDS``, in the environment with the worlds of :func:`scenes`."""
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
    turns = []
    for seed, scene in enumerate(scenes(nut)):
        clock = FastClock()
        hand = SimulatedHand(scene, noise=Randomization().joint_noise, seed=seed, clock=clock)
        report = run_policy(policy, hand, seconds=SECONDS, clock=clock)
        turns.append(hand.turns if report.outcome == "completed" else float("nan"))
    return turns


def compare_turns(checkpoint: Path, policy: HandController) -> list[str]:
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
        print(lines[-1], flush=True)
    return lines


def run_in_real_time(policy: HandController, folder: Path) -> list[str]:
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


def inject(kind: str, policy: HandController) -> str:
    """A row of the table: what one fault did to the fake hand."""
    fault = Fault(kind, 2.0, duration=0.3 if kind == "hang" else float("inf"), joint="index_1")
    if kind == "stuck":
        fault = replace(fault, start=0.3, joint="thumb_bend")  # early on the ramp, where it has far to go
    sdk = FakeSDK([fault] if kind in HAND_FAULTS else [])
    controller = FaultyController(policy, fault) if kind in POLICY_FAULTS else policy
    try:
        report = run_policy(controller, XHandBackend(HandConfig(), sdk), seconds=10.0)
        outcome, reason = report.outcome, report.reason
    except RuntimeError as error:
        outcome, reason = "crashed, raised again", str(error)
    began = sdk.hand.first_command + fault.start if kind in HAND_FAULTS else controller.began_at
    return _row((HAND_FAULTS | POLICY_FAULTS)[kind], outcome, reason, sdk, began)


def interrupt(name: str, policy: HandController) -> str:
    sdk, sent = FakeSDK(), []
    number = getattr(signal, name)
    timer = threading.Timer(4.0, lambda: (sent.append(time.monotonic()), os.kill(os.getpid(), number)))
    timer.start()
    report = run_policy(policy, XHandBackend(HandConfig(), sdk), seconds=10.0)
    what = {"SIGINT": "Ctrl-C", "SIGTERM": "the command kill"}[name]
    return _row(what, report.outcome, report.reason, sdk, sent[0])


def _row(what: str, outcome: str, reason: str, sdk: FakeSDK, began: float) -> str:
    passive = "yes" if sdk.hand.is_passive else "no: it cannot be reached, and the run says so"
    after = f"{1000 * (sdk.hand.passive_at - began):.0f}" if sdk.hand.is_passive else ""
    row = f"| {what} | {outcome} | {reason} | {passive} | {after} |"
    print(row, flush=True)
    return row


def inject_all(policy: HandController) -> list[str]:
    lines = [
        "## Faults on purpose, on the fake hand",
        "",
        "Each begins while the hand moves (a stuck thumb early on the way to the start pose, where it has far to go; a "
        "motor heats from 35 degrees). Passive: mode 0 and no torque on every joint.",
        "",
        "| fault | the run | reason | passive at the end | after, ms |",
        "|---|---|---|---|---:|",
    ]
    lines += [inject(kind, policy) for kind in HAND_FAULTS | POLICY_FAULTS]
    lines += [interrupt(name, policy) for name in ("SIGINT", "SIGTERM")]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="of sota-implementations/genpo.py env=xhand/nut_bolt")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = ["# Deployment", "", *measure_latency(folder)]
        if options.checkpoint is None:
            policy = HandPolicy(ExportedPolicy(folder / "xhand_nut_bolt_5"))
        else:
            actor, env, _ = load_policy(options.checkpoint, 1, 0)
            exported = PolicyExporter(actor, env).save(folder / "policy")
            policy = HandPolicy(ExportedPolicy(exported))
            differences = policy.policy.metadata["largest_difference"]
            shown = ", ".join(f"{runtime} {value:.1e}" for runtime, value in differences.items())
            lines += ["", f"Largest difference of the trained policy's exported actions from the actor's: {shown}.", ""]
            lines += compare_turns(options.checkpoint, policy)
        lines += ["", *run_in_real_time(policy, folder), "", *inject_all(policy)]
    command = " ".join(["python benchmarks/deploy.py", *([str(options.checkpoint)] if options.checkpoint else [])])
    lines += origin(command)
    (RESULTS / "deploy.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
