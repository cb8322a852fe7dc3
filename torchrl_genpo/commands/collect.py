# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Collects demonstrations of a scripted expert in several processes, into a file of robomimic's format.

    genpo-collect can --episodes 100 --output can.hdf5    # about two minutes on two cores

Needs robosuite (the README says how). Episodes in which the expert fails are left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from functools import partial
from pathlib import Path

from tqdm import tqdm

from torchrl_genpo.commands.common import explain_errors
from torchrl_genpo.commands.completion import add_completion
from torchrl_genpo.data import write_demonstrations
from torchrl_genpo.envs.robomimic import ROBOMIMIC_TASKS
from torchrl_genpo.envs.robomimic.experts import demonstrate


def collect(options: argparse.Namespace) -> None:
    task = ROBOMIMIC_TASKS[options.task]
    env_args = task.env_args()
    job_of = partial(demonstrate, env_args, task.horizon, noise=options.noise)
    size = 5  # episodes of a job: a new simulator each
    seeds = list(range(options.seed, options.seed + options.episodes))
    jobs = [seeds[i : i + size] for i in range(0, len(seeds), size)]
    demonstrations = []
    with (
        multiprocessing.get_context("spawn").Pool(options.workers) as pool,
        tqdm(total=options.episodes, unit="episode") as bar,
    ):
        for job, episodes in zip(jobs, pool.imap(job_of, jobs), strict=True):  # in order: the same file every time
            demonstrations += [episode for episode in episodes if episode is not None]
            bar.update(len(job))
            bar.set_postfix(succeeded=len(demonstrations))
    if not demonstrations:
        raise ValueError(f"The expert failed in all {options.episodes} episodes; use less --noise.")
    output = options.output or Path(f"{options.task}.hdf5")
    write_demonstrations(output, demonstrations, env_args)
    steps = sum(len(demonstration["actions"]) for demonstration in demonstrations)
    print(f"{output}: {len(demonstrations)} of {options.episodes} episodes succeeded, {steps} steps")


def main(description: str | None = __doc__) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(ROBOMIMIC_TASKS))  # a dict would be subcommands to shtab
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--output", type=Path, help="<task>.hdf5 unless given")
    parser.add_argument("--noise", type=float, default=0.05, help="deviation of the noise on actions in [-1, 1]")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    add_completion(parser)
    options = parser.parse_args()
    if options.episodes < 1 or options.workers < 1:
        parser.error("--episodes and --workers must be at least 1")
    with explain_errors():
        collect(options)


if __name__ == "__main__":
    main()
