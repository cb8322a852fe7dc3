# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Collects demonstrations in several processes, of a scripted expert or a policy, into a file of robomimic's format.

    genpo-collect can --episodes 100 --output can.hdf5       # about two minutes on two cores
    genpo-collect can --policy RUN --output successes.hdf5   # what a trained policy achieves with random noise

Needs robosuite (the README says how). Episodes that fail are left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type
from tqdm import tqdm

from torchrl_genpo.commands.common import explain_errors
from torchrl_genpo.commands.completion import add_completion
from torchrl_genpo.data import write_demonstrations
from torchrl_genpo.data.robomimic import read_env_args
from torchrl_genpo.envs.common import simulator
from torchrl_genpo.envs.robomimic import ROBOMIMIC_TASKS
from torchrl_genpo.envs.robomimic.env import SIMULATION_TIMESTEP
from torchrl_genpo.envs.robomimic.experts import EXPERTS, demonstrate
from torchrl_genpo.envs.robomimic.recorder import Recorder
from torchrl_genpo.loading import load_policy
from torchrl_genpo.runs import find_checkpoint, read_checkpoint_config

IGNORE_INTERRUPT = (signal.SIGINT, signal.SIG_IGN)  # in workers: the first process decides what Ctrl-C does
EXPERT_NOISE = 0.05
AS_RECORDED = {  # the recorder sees every step, of what the file says the environment is
    "num_workers": 0,
    "end_at_success": False,
    "reward_shaping": False,
    "simulation_timestep": SIMULATION_TIMESTEP,
}


@cache  # once in each process
def load_performer(checkpoint: Path) -> tuple[TensorDictModule, EnvBase, Recorder]:
    """A policy, its environment, and what records there."""
    torch.set_num_threads(1)
    options = read_checkpoint_config(checkpoint)["env"]["options"] | AS_RECORDED
    policy, env, _ = load_policy(checkpoint, 1, 0, overrides={"env.options": options})
    robosuite_env = simulator(env).envs[0].unwrapped
    # the file holds the model, with what is drawn
    robosuite_env.simulator = recorder = Recorder(robosuite_env.make_simulator())
    return policy, env, recorder


def perform(checkpoint: Path, seeds: list[int]) -> list[dict[str, Any] | None]:
    """One episode of a policy with random noise for each seed, as :func:`demonstrate` makes them of the expert."""
    policy, env, recorder = load_performer(checkpoint)
    episodes = []
    for seed in seeds:
        torch.manual_seed(seed)
        env.set_seed(seed)
        td, is_over = env.reset(), False
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            while not is_over:
                td = env.step(policy(td))["next"]
                is_over = recorder.has_succeeded or bool(td["done"].any())
        episodes.append(recorder.episode())
    return episodes


def collect(options: argparse.Namespace) -> None:
    output = options.output or Path(f"{options.task}.hdf5")
    if output.is_dir() or not output.parent.is_dir():  # before hours of episodes, not after
        raise FileNotFoundError(f"--output {output}: {'a folder' if output.is_dir() else 'its folder does not exist'}.")
    task = ROBOMIMIC_TASKS[options.task]
    env_args = task.env_args()
    if options.policy is None:
        if env_args["env_name"] not in EXPERTS:
            experts = [name for name, known in ROBOMIMIC_TASKS.items() if known.env_name in EXPERTS]
            raise ValueError(f"There is no scripted expert for {options.task}: give a --policy. Experts: {experts}.")
        noise = EXPERT_NOISE if options.noise is None else options.noise
        job_of, actor = partial(demonstrate, env_args, task.horizon, noise=noise), "expert"
    else:
        checkpoint = find_checkpoint(options.policy)
        env = read_checkpoint_config(checkpoint)["env"]
        if env["name"] != f"robomimic/{options.task}":
            raise ValueError(f"{checkpoint} is a policy of {env['name']}, not of robomimic/{options.task}.")
        if env["options"].get("dataset") is not None:
            env_args = read_env_args(env["options"]["dataset"])
        job_of, actor = partial(perform, checkpoint), "policy"
    size = 5  # episodes of a job: a new simulator each
    seeds = list(range(options.seed, options.seed + options.episodes))
    jobs = [seeds[i : i + size] for i in range(0, len(seeds), size)]
    demonstrations, done = [], 0
    try:
        with (
            multiprocessing.get_context("spawn").Pool(options.workers, signal.signal, IGNORE_INTERRUPT) as pool,
            tqdm(total=options.episodes, unit="episode") as bar,
        ):
            for job, episodes in zip(jobs, pool.imap(job_of, jobs), strict=True):  # in order: always the same file
                demonstrations += [episode for episode in episodes if episode is not None]
                done += len(job)
                bar.update(len(job))
                bar.set_postfix(succeeded=len(demonstrations))
            pool.close()
            pool.join()
    except KeyboardInterrupt:
        sys.stderr.write(f"\nStopped after {done} episodes; --seed {options.seed + done} goes on from there.\n")
        if not demonstrations:
            sys.exit(130)
    finally:  # whatever ends it, what has been collected is kept
        if demonstrations:
            write_demonstrations(output, demonstrations, env_args)
    if not demonstrations:
        remedy = "; use less --noise" if options.policy is None else ""
        raise ValueError(f"The {actor} failed in all {done} episodes{remedy}.")
    steps = sum(len(demonstration["actions"]) for demonstration in demonstrations)
    print(f"{output}: {len(demonstrations)} of {done} episodes succeeded, {steps} steps")


def main(description: str | None = __doc__) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(ROBOMIMIC_TASKS))  # a dict would be subcommands to shtab
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--output", type=Path, help="<task>.hdf5 unless given")
    parser.add_argument("--policy", type=Path, help="a run or checkpoint that acts, with random noise, as the expert")
    parser.add_argument(
        "--noise", type=float, help=f"deviation, of the expert's actions in [-1, 1]; default: {EXPERT_NOISE}"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    add_completion(parser)
    options = parser.parse_args()
    if options.episodes < 1 or options.workers < 1:
        parser.error("--episodes and --workers must be at least 1")
    if options.policy is not None and options.noise is not None:
        parser.error("--noise is the expert's; a --policy acts with its own")
    with explain_errors():
        collect(options)


if __name__ == "__main__":
    main()
