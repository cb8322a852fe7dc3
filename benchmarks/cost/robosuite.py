# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers how much the compiled control of arms saves, beside robosuite's own, in one process.

    python -m benchmarks.cost.robosuite

The scripted expert's actions are repeated from the same seed by both, turn about. ``robosuite.md`` in
``benchmarks/results`` is written.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from benchmarks._lib.origin import RESULTS, origin
from benchmarks._lib.report import parser, save
from torchrl_genpo.envs import ROBOMIMIC_TASKS
from torchrl_genpo.envs.robomimic.experts import EXPERTS
from torchrl_genpo.envs.robomimic.simulator import make_simulator, set_simulator_seed

TASKS = ("can", "box_cleanup", "threading")
TIMESTEPS = (0.002, 0.005, 0.01)
STEPS, REPEATS = 100, 5


def record(task: str, simulator: Any) -> list[np.ndarray]:
    """Returns the expert's actions of an episode's first steps."""
    set_simulator_seed(simulator, 0)
    observation = simulator.reset()
    expert = EXPERTS[ROBOMIMIC_TASKS[task].env_args()["env_name"]](simulator, np.random.default_rng(0))
    actions = []
    for _ in range(STEPS):
        actions.append(expert(observation))
        observation = simulator.step(actions[-1])[0]
    return actions


def play(simulator: Any, actions: list[np.ndarray], is_compiled: bool) -> tuple[float, np.ndarray]:
    """Returns the milliseconds of processor time a control step, and where everything is at the end."""
    set_simulator_seed(simulator, 0)
    simulator.reset()
    if not is_compiled:
        simulator._arms = None
    before = time.process_time()
    for action in actions:
        simulator.step(action)
    return (time.process_time() - before) / len(actions) * 1e3, np.array(simulator.sim.data.qpos)


def main() -> None:
    parser(__doc__).parse_args()
    lines = [
        "# robosuite with compiled control",
        "",
        f"The first {STEPS} control steps of the scripted expert, {REPEATS} times by each, turn about; medians of "
        "processor time. Gap: the largest of any coordinate at the end.",
        "",
        "| task | step of the physics, s | robosuite's own, ms | compiled, ms | speed | gap |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for task in TASKS:
        for timestep in TIMESTEPS:
            simulator = make_simulator(ROBOMIMIC_TASKS[task].env_args(), timestep, has_visuals=False)
            actions = record(task, simulator)
            turns = [[play(simulator, actions, is_compiled) for is_compiled in (False, True)] for _ in range(REPEATS)]
            own, compiled = (statistics.median(turn[index][0] for turn in turns) for index in (0, 1))
            gap = float(np.abs(turns[0][0][1] - turns[0][1][1]).max())
            lines.append(f"| {task} | {timestep} | {own:.1f} | {compiled:.1f} | {own / compiled:.2f} | {gap:.0e} |")
            print(lines[-1], flush=True)
            simulator.close()
    save(RESULTS / "robosuite.md", [*lines, *origin()])


if __name__ == "__main__":
    main()
