# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Trains a policy on-policy with clipped PPO: GenPO++ (default), a Gaussian or a baseline, through one loop.

genpo-train env=hopper policy=gaussian seed=1
genpo-train resume=outputs/half_cheetah/...
genpo-train evaluate=outputs/.../checkpoints/checkpoint-000000501760.pt
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_genpo.commands.common import check_device, check_rounds, hydra_command, resumed_config
from torchrl_genpo.config.command_line import as_word
from torchrl_genpo.config.schema import PretrainOptions, TrainOptions
from torchrl_genpo.envs import Purpose, WorkerError, close_quietly, one_simulation, spawn_seed
from torchrl_genpo.trained import trained_policies
from torchrl_genpo.training import DivergedError, evaluate
from torchrl_genpo.training.build import build_env
from torchrl_genpo.training.checkpoint import build_policy, find_checkpoint, kind_of, read_checkpoint
from torchrl_genpo.training.loop import Training
from torchrl_genpo.training.ranks import Ranks
from torchrl_genpo.training.recording import check_logger, check_rendering, record_video
from torchrl_genpo.training.run_folder import RunFolder, read_run_config
from torchrl_genpo.training.signals import StopRequest

RESUMABLE = {
    "collector.total_frames",
    "device",
    "num_threads",
    "env.options.asset_root",
    "env.options.dataset",
    "video",
    "logger",
    "eval",
    "checkpoint",
    "tolerance",
}  # may change on resume
EVALUABLE = {
    "env.max_episode_steps",
    "env.options.asset_root",
    "env.options.dataset",
    "video",
    "device",
    "num_threads",
    "eval",
}  # may change in an evaluation


def run_evaluation(options: TrainOptions, overrides: Sequence[str]) -> None:
    """Evaluates a checkpoint as its run was evaluated, what is given on the command line aside; prints the returns."""
    check_device(options.device)
    path = find_checkpoint(Path(str(options.evaluate)))
    checkpoint = read_checkpoint(path, options.device)
    saved, why = checkpoint["config"] | {"device": options.device}, "A policy is evaluated as it was trained"
    own = resumed_config(saved, overrides, EVALUABLE, kind_of(checkpoint), why)
    check_rounds(own.eval.rounds)
    torch.set_num_threads(own.num_threads)
    if options.video:
        check_rendering(own)
    seed = spawn_seed(own.seed, Purpose.EVALUATION)
    policy, env = build_policy(checkpoint, own, path, seed=seed)
    print(f"{own.eval.num_envs * own.eval.rounds} episodes with each noise")
    for name, value in evaluate(env, policy, seed, own.eval.rounds).items():
        print(f"{name}: {value:.{1 if name.endswith('return') else 3}f}")
    if options.video:
        is_own = path in trained_policies().values()  # its video does not belong into the installed package
        save_video(own, env, policy, Path(path.name if is_own else path).with_suffix(".mp4"))


def save_video(options: TrainOptions | PretrainOptions, env: EnvBase, policy: TensorDictModuleBase, path: Path) -> None:
    """Films the zero-noise policy; nothing else is done with ``env`` afterwards."""
    if one_simulation(options.env.name):
        close_quietly(env)
    seed = spawn_seed(options.seed, Purpose.VIDEO)
    video_env = build_env(options, 1, seed, render=True)
    record_video(video_env, policy, path, seed)
    video_env.close()
    print(f"Video: {path}")


def train(options: TrainOptions, folder: RunFolder, ranks: Ranks) -> int:
    """Trains, from the last checkpoint again where the environment's processes failed; returns the exit code."""
    with StopRequest() as stop:  # also while a run is built, and built again
        for restarts_left in reversed(range(options.tolerance.restarts + 1)):
            training = Training(options, folder, ranks)
            try:
                training.run(stop)
                break
            except WorkerError as error:
                if not restarts_left or ranks.size > 1:
                    raise
                sys.stderr.write(f"\n{error}. Starting again from there.\n")
                folder.resume()
            finally:  # the next run of a sweep is made in this process
                training.close()
    if ranks.is_first:
        if not folder.has_begun:
            print("Stopped before the first update: there is nothing to continue.")
        elif not training.is_finished:
            frames = training.progress.frames
            print(f"Stopped at frame {frames}; saved {folder.latest()}")
            print(f"Continue: genpo-train {as_word('resume', str(folder.path))}")
        elif options.video:
            save_video(options, training.env, training.policy, folder.path / "video.mp4")
        print(f"Run folder: {folder.path}")
    code = options.checkpoint.preempted_exit_code if stop.preempted and not training.is_finished else 0
    if stop.received and HydraConfig.get().mode == RunMode.MULTIRUN:
        sys.exit(code)  # else the next run of the sweep would begin
    return code


@hydra_command("genpo", DivergedError, WorkerError)
def main(options: TrainOptions, overrides: Sequence[str]) -> int:
    if options.evaluate is not None:
        if options.resume is not None:
            raise ValueError("resume= trains and evaluate= does not: give one of the two.")
        run_evaluation(options, overrides)
        return 0
    path, resume = Path(HydraConfig.get().runtime.output_dir), options.resume is not None
    if resume:
        path = Path(str(options.resume))
        options = resumed_config(read_run_config(path), overrides, RESUMABLE)
    check_device(options.device)
    if options.compile.cudagraphs and not options.device.startswith("cuda"):
        raise ValueError(f"compile.cudagraphs=true needs a CUDA device, not device={options.device}.")
    check_logger(options.logger)
    torch.set_num_threads(options.num_threads)
    if options.video:
        check_rendering(options)
    ranks = Ranks(options.device)
    options = options.model_copy(update={"device": ranks.device})
    folder = RunFolder(
        path,
        resume=resume,
        keep_last=options.checkpoint.keep_last,
        keep_best=options.checkpoint.keep_best,
        read_only=not ranks.is_first,
    )
    if ranks.is_first:
        folder.write_config(options.model_dump(mode="json"))
    try:
        return train(options, folder, ranks)
    except DivergedError as error:
        raise DivergedError(f"{error} Last good checkpoint: {folder.latest() or 'none yet'}.") from error
    except OSError as error:
        if (latest := folder.latest()) is None:
            raise
        command = f"genpo-train {as_word('resume', str(path))}"
        raise OSError(f"{error}. Last good checkpoint: {latest}. Mend it, then continue: {command}") from error
    finally:
        ranks.close()
        folder.remove_unused()


if __name__ == "__main__":
    main()
