# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Collects demonstrations of a scripted expert or a policy, in several processes, into a file of robomimic's format.

    genpo-collect robomimic/can --episodes 100 --output can.hdf5       # about two minutes on two cores
    genpo-collect robomimic/can --policy RUN --output successes.hdf5   # what a trained policy achieves with noise

Needs robosuite (the README says how). Episodes that fail are left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type
from tqdm import tqdm

from torchrl_genpo.commands.common import add_set, explain_errors
from torchrl_genpo.data import write_demonstrations
from torchrl_genpo.data.robomimic import read_env_args
from torchrl_genpo.envs.common import WorkerError, simulator
from torchrl_genpo.envs.robomimic import ROBOMIMIC_TASKS
from torchrl_genpo.envs.robomimic.experts import EXPERTS, demonstrate
from torchrl_genpo.envs.robomimic.recorder import Recorder
from torchrl_genpo.envs.robomimic.simulator import SIMULATION_TIMESTEP
from torchrl_genpo.training.checkpoint import find_checkpoint, load_policy, read_checkpoint, saved_options

__all__ = ["main"]

IGNORE_INTERRUPT = (signal.SIGINT, signal.SIG_IGN)  # for workers: the first process decides what Ctrl-C does
EXPERT_NOISE = 0.05
AS_RECORDED = {  # the recorder has to see every step of the environment that the file describes
    "num_workers": 0,
    "end_at_success": False,
    "reward_shaping": False,
    "simulation_timestep": SIMULATION_TIMESTEP,
}


@cache  # each process loads the policy once
def load_performer(checkpoint: Path, others: str) -> tuple[TensorDictModuleBase, EnvBase, Recorder]:
    """Loads a policy, some values of its configuration replaced by others (JSON), and its environment, recorded."""
    torch.set_num_threads(1)
    overrides = {f"env.options.{name}": value for name, value in AS_RECORDED.items()}
    policy, env, _ = load_policy(checkpoint, 1, 0, overrides=json.loads(others) | overrides)
    robosuite_env = simulator(env).envs[0].unwrapped
    # the file holds the model, with what is only drawn
    robosuite_env.simulator = recorder = Recorder(robosuite_env.make_simulator())
    return policy, env, recorder


def perform(checkpoint: Path, others: str, seeds: list[int]) -> list[dict[str, Any] | None]:
    """Makes one episode of a policy with random noise for each seed, as :func:`demonstrate` does of the expert."""
    policy, env, recorder = load_performer(checkpoint, others)
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
    """Collects the episodes and writes those that succeeded."""
    short = options.task.removeprefix("robomimic/")
    output = options.output or Path(f"{short}.hdf5")
    if output.is_dir() or not output.parent.is_dir():  # refused before hours of episodes, not after them
        raise FileNotFoundError(f"--output {output}: {'a folder' if output.is_dir() else 'its folder does not exist'}.")
    task = ROBOMIMIC_TASKS[short]
    env_args = task.env_args()
    if options.policy is None:
        if env_args["env_name"] not in EXPERTS:
            experts = [f"robomimic/{name}" for name, known in ROBOMIMIC_TASKS.items() if known.env_name in EXPERTS]
            raise ValueError(f"There is no scripted expert for {options.task}: give a --policy. Experts: {experts}.")
        noise = EXPERT_NOISE if options.noise is None else options.noise
        job_of, actor = partial(demonstrate, env_args, task.horizon, noise=noise), "expert"
    else:
        checkpoint = find_checkpoint(options.policy)
        env = saved_options(read_checkpoint(checkpoint), dict(options.set)).model_dump()["env"]
        if env["name"] != options.task:
            raise ValueError(f"{checkpoint} is a policy of {env['name']}, not of {options.task}.")
        if (dataset := env["options"]["dataset"]) is not None:
            if not Path(dataset).is_file():
                remedy = "give the path that the file has now by --set env.options.dataset=<file>"
                raise FileNotFoundError(f"env.options.dataset={dataset} is missing: {remedy}.")
            env_args = read_env_args(dataset)
        job_of, actor = partial(perform, checkpoint, json.dumps(dict(options.set))), "policy"
    size = 5  # episodes of a job, which makes a new simulator
    seeds = list(range(options.seed, options.seed + options.episodes))
    jobs = [seeds[i : i + size] for i in range(0, len(seeds), size)]
    demonstrations, done = [], 0
    try:
        with (
            multiprocessing.get_context("spawn").Pool(options.workers, signal.signal, IGNORE_INTERRUPT) as pool,
            tqdm(total=options.episodes, unit="episode") as bar,
        ):
            workers = multiprocessing.active_children()
            results = pool.imap(job_of, jobs)  # in order, so that the file is always the same
            while done < options.episodes:
                try:
                    episodes = results.next(timeout=1.0)
                except multiprocessing.TimeoutError:
                    if all(worker.is_alive() for worker in workers):
                        continue
                    # the pool would wait for its job for ever
                    raise WorkerError(
                        f"A worker died after {done} episodes, perhaps for want of memory: use fewer --workers; "
                        f"--seed {options.seed + done} goes on from there."
                    ) from None
                demonstrations += [episode for episode in episodes if episode is not None]
                done += len(episodes)
                bar.update(len(episodes))
                bar.set_postfix(succeeded=len(demonstrations))
            pool.close()
            pool.join()
    except KeyboardInterrupt:
        sys.stderr.write(f"\nStopped after {done} episodes; --seed {options.seed + done} goes on from there.\n")
        if not demonstrations:
            sys.exit(130)
    finally:  # what has been collected is kept, whatever ends the collection
        if demonstrations:
            write_demonstrations(output, demonstrations, env_args)
    if not demonstrations:
        remedy = "; use less --noise" if options.policy is None else ""
        raise ValueError(f"The {actor} failed in all {done} episodes{remedy}.")
    steps = sum(len(demonstration["actions"]) for demonstration in demonstrations)
    print(f"{output}: {len(demonstrations)} of {done} episodes succeeded, {steps} steps")


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[f"robomimic/{name}" for name in ROBOMIMIC_TASKS])
    parser.add_argument("--episodes", type=int, default=20, help="the number of episodes")
    parser.add_argument("--output", type=Path, help="the file to write; default: <name of the task>.hdf5")
    parser.add_argument("--policy", type=Path, help="a run or checkpoint that acts in place of the expert, with noise")
    parser.add_argument(
        "--noise", type=float, help=f"the deviation of the expert's actions in [-1, 1]; default: {EXPERT_NOISE}"
    )
    parser.add_argument("--seed", type=int, default=0, help="the seed of the first episode")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="the number of processes")
    add_set(parser)
    options = parser.parse_args()
    if options.episodes < 1 or options.workers < 1:
        parser.error("--episodes and --workers must be at least 1")
    if options.policy is not None and options.noise is not None:
        parser.error("--noise is the expert's; a --policy acts with its own")
    if options.policy is None and options.set:
        parser.error("--set changes the configuration of a --policy")
    with explain_errors(WorkerError):
        collect(options)


if __name__ == "__main__":
    main()
