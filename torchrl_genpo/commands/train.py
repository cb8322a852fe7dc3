# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Trains a policy on-policy with clipped PPO: GenPO++ (default), a Gaussian or a baseline, through one loop.

genpo-train env=hopper policy=gaussian seed=1
genpo-train resume=outputs/half_cheetah/...
genpo-train evaluate=outputs/.../checkpoints/checkpoint-000000501760.torchrl
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase

from torchrl_genpo.commands.common import (
    check_device,
    check_rounds,
    hydra_command,
    refuse_others,
    refuse_unused,
    resumed_config,
)
from torchrl_genpo.configuration import build_env
from torchrl_genpo.distributed import Ranks
from torchrl_genpo.envs import WorkerError, copy_normalization, one_simulation
from torchrl_genpo.limits import TRAINING, check_config
from torchrl_genpo.loading import load_policy
from torchrl_genpo.recording import check_rendering, record_video
from torchrl_genpo.runs import RunFolder, StopRequest, find_checkpoint, read_checkpoint_config
from torchrl_genpo.trained import trained_policies
from torchrl_genpo.training import DivergedError, evaluate
from torchrl_genpo.training.loop import EVAL_SEED, Training

RESUMABLE = {
    "collector.total_frames",
    "env.options.asset_root",
    "video",
    "logger",
    "eval",
    "checkpoint",
    "tolerance",
}  # may change on resume
EVALUABLE = {"env.options.asset_root", "video", "device", "num_threads", "eval"}  # may change in an evaluation


def run_evaluation(path: Path, cfg: DictConfig, names: Collection[str] = ()) -> None:
    """Evaluates a checkpoint with its own configuration, these options aside, and prints the returns."""
    overrides = {name: OmegaConf.select(cfg, name) for name in names if name.startswith("env.")}
    own = read_checkpoint_config(path).get("eval") or {}  # how its run was evaluated, if it was
    size, rounds = (
        cfg.eval[name] if f"eval.{name}" in names else own.get(name) or cfg.eval[name]
        for name in ("num_envs", "rounds")
    )
    check_rounds(rounds)
    actor, env, saved = load_policy(path, size, EVAL_SEED, cfg.device, overrides, defaults=cfg)
    print(f"{size * rounds} episodes with each noise")
    for name, value in evaluate(env, actor, EVAL_SEED, rounds).items():
        print(f"{name}: {value:.{1 if name.endswith('return') else 3}f}")
    if cfg.video:
        is_own = path in trained_policies().values()  # its video does not belong into the installed package
        save_video(saved, env, actor, Path(path.name if is_own else path).with_suffix(".mp4"))


def save_video(cfg: DictConfig, env: EnvBase, actor: TensorDictModule, path: Path) -> None:
    """Films the zero-noise policy; the last that is done with ``env``."""
    if one_simulation(cfg.env.name):
        env.close()
    video_env = build_env(cfg, 1, EVAL_SEED, render=True)
    copy_normalization(env, video_env)
    record_video(video_env, actor, path, EVAL_SEED)
    video_env.close()
    print(f"Video: {path}")


def train(cfg: DictConfig, folder: RunFolder, ranks: Ranks) -> int:
    """Trains, from the last checkpoint again where the environment's processes failed; returns the exit code."""
    with StopRequest() as stop:  # also while a run is built, and built again
        for restarts_left in reversed(range(cfg.tolerance.restarts + 1)):
            training = Training(cfg, folder, ranks)
            try:
                training.run(stop)
                break
            except WorkerError as error:
                training.close()
                if not restarts_left or ranks.size > 1:
                    raise
                sys.stderr.write(f"\n{error}. Starting again from there.\n")
                folder.resume()
    if ranks.is_first:
        if not training.is_finished:
            frames = training.progress.frames
            print(f"Stopped at frame {frames}. Continue with resume={folder.path}; saved {folder.latest()}")
        elif cfg.video:
            save_video(cfg, training.env, training.actor, folder.path / "video.mp4")
        print(f"Run folder: {folder.path}")
    code = cfg.checkpoint.preempted_exit_code if stop.preempted and not training.is_finished else 0
    if stop.received and HydraConfig.get().mode == RunMode.MULTIRUN:
        sys.exit(code)  # else the next run of the sweep would begin
    return code


@hydra_command("genpo")
def main(cfg: DictConfig) -> int:
    check_config(cfg, TRAINING)
    torch.set_num_threads(cfg.num_threads)
    check_device(cfg.device)
    overrides = list(HydraConfig.get().overrides.task)
    if cfg.evaluate is not None:
        path = find_checkpoint(Path(cfg.evaluate))
        if cfg.video:
            check_rendering(read_checkpoint_config(path)["env"]["name"])
        names = refuse_others(overrides, EVALUABLE, "A policy is evaluated as it was trained")
        run_evaluation(path, cfg, names)
        return 0
    resume = cfg.resume is not None
    path = Path(HydraConfig.get().runtime.output_dir)
    if resume:
        path = Path(cfg.resume)
        cfg = resumed_config(path, cfg, overrides, RESUMABLE)
        check_config(cfg, TRAINING)
    else:
        refuse_unused(cfg.policy.name, overrides)
    if cfg.video:
        check_rendering(cfg.env.name)
    ranks = Ranks(cfg.device)
    cfg.device = ranks.device
    folder = RunFolder(
        path,
        resume=resume,
        keep_last=cfg.checkpoint.keep_last,
        keep_best=cfg.checkpoint.keep_best,
        read_only=not ranks.is_first,
    )
    if ranks.is_first:
        folder.write_config(OmegaConf.to_yaml(cfg, resolve=True))
    try:
        return train(cfg, folder, ranks)
    except DivergedError as error:
        raise DivergedError(f"{error} Last good checkpoint: {folder.latest() or 'none yet'}.") from error
    except OSError as error:
        if (latest := folder.latest()) is None:
            raise
        raise OSError(f"{error}. Last good checkpoint: {latest}. Mend it, then continue with resume={path}.") from error
    finally:
        ranks.close()
        folder.remove_unused()


if __name__ == "__main__":
    main()
