# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Trains a policy on-policy with clipped PPO: GenPO++ (default) or a Gaussian, through one loop.

python sota-implementations/genpo.py env=hopper policy=gaussian seed=1
python sota-implementations/genpo.py resume=outputs/half_cheetah/...
python sota-implementations/genpo.py evaluate=outputs/.../checkpoints/checkpoint-500000.torchrl
"""

from __future__ import annotations

import ctypes.util
import logging
import math
import os
import random
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

# MuJoCo chooses its renderer when it is imported, as TorchRL does below; without a display EGL can draw
if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    if ctypes.util.find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")

import hydra
import numpy as np
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torchrl import logger as torchrl_log
from torchrl.checkpoint import Checkpoint
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.objectives import KLAdaptiveLR
from torchrl.objectives.value import GAE
from tqdm import tqdm

from torchrl_genpo.configuration import build_env, build_models, fill_in, load_policy, make_adaptive_sigma
from torchrl_genpo.distributed import Ranks, SharedNormalization
from torchrl_genpo.envs import (
    IsaacLabSymmetry,
    freeze_normalization,
    frozen_normalization,
    one_simulation,
    stagger_episodes,
)
from torchrl_genpo.limits import TRAINING, check_config
from torchrl_genpo.models import has_exact_density, observation_keys, pretrained_module
from torchrl_genpo.runs import (
    RunFolder,
    StopRequest,
    check_rendering,
    draw_learning_curve,
    make_logger,
    read_checkpoint_config,
    record_video,
    remove_unused,
)
from torchrl_genpo.training import (
    DivergedError,
    Progress,
    augment,
    batch_keys,
    check_finite,
    compare_ratios,
    episode_log,
    evaluate,
    load_checkpoint,
    make_checkpoint,
    make_update,
    prepare,
    statistics_columns,
    update_metrics,
)
from torchrl_genpo.untrusted import read_yaml

torchrl_log.setLevel(logging.WARNING)  # its notes on storages would cut the progress bar
warnings.filterwarnings("ignore", message="total_frames .* is not exactly divisible")  # explained in --help

EVAL_SEED = 10_000  # apart from the training seeds
RANK_SEEDS = 1_000_003  # between the seeds of two ranks
SCHEDULES = ("constant", "kl_adaptive", "linear")
RESUMABLE = {
    "collector.total_frames",
    "env.options.asset_root",
    "video",
    "logger",
    "resume",
    "eval",
    "checkpoint",
}  # may change on resume


def load_pretrained(cfg: DictConfig, env, actor) -> None:
    """Loads what pre-training shaped, and the ranges of its observations and actions."""
    path = Path(cfg.policy.init)
    saved = read_checkpoint_config(path)
    for key in ("policy.hidden_sizes", "policy.activation", "policy.transformer", "env.name", "env.options.chunk_size"):
        mine, theirs = (OmegaConf.select(config, key) for config in (cfg, OmegaConf.create(saved)))
        if mine != theirs:
            raise ValueError(f"policy.init={path} was trained with {key}={theirs}; this run has {key}={mine}.")
    parts = {"pretrained": pretrained_module(actor), "normalization": env.transform}
    load_checkpoint(Checkpoint(format="archive", **parts), path, cfg.device)


def copy_normalization(source, target) -> None:
    target.transform.load_state_dict(source.transform.state_dict())
    freeze_normalization(target)


def evaluate_during_training(cfg: DictConfig, env, eval_env, actor, collector, frames: int) -> dict[str, float]:
    """Evaluates with the present normalisation; where one simulation has to do, in the training's own."""
    if eval_env is not None:
        copy_normalization(env, eval_env)
        return evaluate(eval_env, actor, EVAL_SEED, cfg.eval.rounds)
    with frozen_normalization(env):
        results = evaluate(env, actor, EVAL_SEED)
    if frames < cfg.collector.total_frames:
        env.set_seed(cfg.seed + frames)
        collector.reset()
        stagger_episodes(env)
    return results


def run_evaluation(path: Path, overrides: DictConfig) -> None:
    """Evaluates a checkpoint with its own configuration and prints the returns."""
    actor, env, cfg = load_policy(path, overrides.eval.num_envs, EVAL_SEED, overrides.device, defaults=overrides)
    for name, value in evaluate(env, actor, EVAL_SEED, overrides.eval.rounds).items():
        digits = 1 if name.endswith("return") else 3
        print(f"{name}: {value:.{digits}f} ({overrides.eval.num_envs * overrides.eval.rounds} episodes)")
    if overrides.video:
        save_video(cfg, env, actor, path.with_suffix(".mp4"))


def save_video(cfg: DictConfig, env, actor, path: Path) -> None:
    """Films the zero-noise policy; the last that is done with ``env``."""
    if one_simulation(cfg.env.name):
        env.close()
    video_env = build_env(cfg, 1, EVAL_SEED, render=True)
    copy_normalization(env, video_env)
    record_video(video_env, actor, path, EVAL_SEED)
    video_env.close()
    print(f"Video: {path}")


def resumed_config(folder: Path, cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration of the run in ``folder``, with the few overrides that may change."""
    config_path = folder / "config.yaml"
    if not config_path.exists():
        raise FileNotFoundError(f"resume={folder}: there is no run ({config_path} is missing).")
    saved = fill_in(read_yaml(config_path), cfg)
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        if key not in RESUMABLE and key.split(".")[0] not in RESUMABLE | {"hydra"}:
            raise ValueError(
                f"A resumed run keeps its configuration, and {override!r} would change it. "
                f"May change: {', '.join(sorted(RESUMABLE - {'resume'}))}."
            )
        if not key.startswith("hydra"):
            OmegaConf.update(saved, key, OmegaConf.select(cfg, key))
    return saved


def train(cfg: DictConfig, folder: RunFolder, resume: bool, ranks: Ranks) -> None:
    """Trains; the first of several ranks alone evaluates and writes."""
    config = OmegaConf.to_container(cfg, resolve=True)
    seed = cfg.seed + RANK_SEEDS * ranks.rank
    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(seed)

    env = build_env(cfg, cfg.env.num_envs, seed)
    is_alone = one_simulation(cfg.env.name)
    eval_env = None if is_alone or not ranks.is_first else build_env(cfg, cfg.eval.num_envs, EVAL_SEED)
    actor, critic, loss = build_models(cfg, env)
    ranks.copy_from_first(loss.parameters())
    if cfg.policy.get("init") and not resume:
        load_pretrained(cfg, env, actor)
    rates = {"actor": cfg.optim.lr, "critic": cfg.optim.critic_lr or cfg.optim.lr}
    actor_parameters = [p for p in loss.actor_network_params.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(
        [
            {"params": actor_parameters, "lr": rates["actor"]},
            {"params": list(loss.critic_network_params.parameters()), "lr": rates["critic"]},
        ],
        eps=1e-5,
        fused=True,
    )
    if cfg.optim.schedule not in SCHEDULES:
        raise ValueError(f"Unknown schedule {cfg.optim.schedule!r}; choose from {', '.join(SCHEDULES)}.")
    schedule = None
    if cfg.optim.schedule == "kl_adaptive":
        schedule = KLAdaptiveLR(optimizer, cfg.optim.target_kl, min_lr=cfg.optim.min_lr, max_lr=cfg.optim.max_lr)
    adaptive_sigma = make_adaptive_sigma(cfg, actor)
    gae = GAE(gamma=cfg.loss.gamma, lmbda=cfg.loss.gae_lambda, value_network=critic, average_gae=False)
    update = make_update(
        loss,
        optimizer,
        cfg.optim.max_grad_norm,
        compile_mode=cfg.compile.mode if cfg.compile.enabled else None,
        cudagraphs=cfg.compile.cudagraphs,
        ranks=ranks,
    )
    collector = Collector(
        env,
        actor,
        frames_per_batch=cfg.collector.frames_per_batch,
        total_frames=-1,  # this loop counts, over all ranks
        device=cfg.device,
        trust_policy=True,
        track_traj_ids=False,
        auto_register_policy_transforms=False,
        no_cuda_sync=cfg.device == "cpu",
        compile_policy={"mode": cfg.compile.mode} if cfg.compile.enabled else None,
        cudagraph_policy=cfg.compile.cudagraphs or None,
    )
    stagger_episodes(env)
    symmetry = IsaacLabSymmetry(env) if cfg.env.get("symmetry") else None
    images = 1 if symmetry is None else symmetry.order
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(cfg.collector.frames_per_batch * images, device=cfg.device),
        sampler=SamplerWithoutReplacement(),
        batch_size=cfg.loss.mini_batch_size * images,
    )
    progress = Progress(max(20, cfg.env.num_envs))
    checkpoint = make_checkpoint(
        loss=loss,
        env=env,
        optimizer=optimizer,
        schedule=schedule,
        adaptive_sigma=adaptive_sigma,
        collector=collector if ranks.is_first else None,
        progress=progress,
    )
    folder.columns += statistics_columns(env)
    if resume:
        load_checkpoint(checkpoint, folder.latest(), cfg.device)
        if ranks.is_first:
            folder.truncate_metrics(progress.frames)
    normalization = SharedNormalization(env, ranks)
    logger = make_logger(folder=folder.path, config=config, **cfg.logger) if ranks.is_first else None

    def save() -> Path:
        return folder.save(checkpoint, progress.frames, config)

    if cfg.policy.get("init") and not resume and ranks.is_first:
        folder.log({"frames": 0} | evaluate_during_training(cfg, env, eval_env, actor, collector, 0))
    stop = StopRequest()
    bar = tqdm(
        total=cfg.collector.total_frames,
        initial=progress.frames,
        unit="frames",
        unit_scale=True,
        disable=not ranks.is_first,
    )
    start_time = time.perf_counter() - progress.seconds
    batches = iter(collector)
    while progress.frames < cfg.collector.total_frames and not ranks.any(stop.received):
        update_start = time.perf_counter()
        data = next(batches)
        collected = time.perf_counter()
        new_frames = data.numel() * ranks.size
        frames_before, progress.frames = progress.frames, progress.frames + new_frames
        normalization.merge()
        is_last = progress.frames >= cfg.collector.total_frames
        check_finite(
            {key: data["next", key] for key in (*observation_keys(env), "reward")},
            f"the data collected up to frame {progress.frames}",
        )

        with torch.no_grad():
            gae(data)
        batch = data.select(*batch_keys(loss, actor), strict=False).reshape(-1)
        if symmetry is not None:
            batch = augment(batch, symmetry, actor, critic, cfg.loss.mini_batch_size)
        batch = prepare(loss, batch)
        watched = None
        if has_exact_density(actor) and cfg.diagnostics.samples:
            watched = actor.draw_memories(batch[: cfg.diagnostics.samples], cfg.diagnostics.num_memories)
        buffer.empty()
        buffer.extend(batch)
        outputs = []
        is_warming_up = frames_before < cfg.optim.critic_warmup
        for parameter in actor_parameters:
            parameter.requires_grad_(not is_warming_up)
        for _ in range(cfg.loss.epochs):
            for batch in buffer:
                if cfg.optim.schedule == "linear":
                    remaining = 1 - frames_before / cfg.collector.total_frames
                    for group, rate in zip(optimizer.param_groups, rates.values(), strict=True):
                        group["lr"] = rate * remaining
                out = update(batch)
                outputs.append(out)
        if schedule is not None and not is_warming_up:
            # once an update, by its last epoch: the KL is to the policy that collected, 0 at first in each update, and
            # a step on every mini-batch would swing the rate between its limits within the update
            last_epoch = torch.stack(outputs[-(len(outputs) // cfg.loss.epochs) :])
            schedule.step(ranks.mean(last_epoch["kl_approx"].mean()))
            if cfg.optim.critic_lr is not None:
                optimizer.param_groups[1]["lr"] = rates["critic"]  # the critic's own rate says nothing about the KL
        collector.update_policy_weights_()

        done = data["next", "done"]
        progress.returns.extend(data["next", "episode_reward"][done].tolist())
        progress.seconds = time.perf_counter() - start_time
        row = {
            "frames": progress.frames,
            "time/seconds": round(progress.seconds, 3),
            "time/collect": round(collected - update_start, 4),
            "time/update": round(time.perf_counter() - collected, 4),
            "train/lr": float(optimizer.param_groups[0]["lr"]),
        } | update_metrics(torch.stack(outputs))
        if progress.returns:
            row["train/return"] = sum(progress.returns) / len(progress.returns)
        if watched is not None:
            ratios = compare_ratios(actor, watched, cfg.loss.clip_epsilon)
            row |= {f"diagnostics/{key}": value for key, value in ratios.items()}
        if adaptive_sigma is not None:
            row["train/sigma"] = actor.solver.sigma
            quantity = torch.tensor(row[f"train/{cfg.solver.adapt.quantity}"], device=cfg.device)
            adaptive_sigma.step(ranks.mean(quantity).item())
        row |= episode_log(data)
        if not ranks.is_first:
            continue
        if is_last or frames_before // cfg.eval.interval < progress.frames // cfg.eval.interval:
            row |= evaluate_during_training(cfg, env, eval_env, actor, collector, progress.frames)
        folder.log(row)
        if logger is not None:
            for key, value in row.items():
                logger.log_scalar(key, value, step=progress.frames)
        if is_last or frames_before // cfg.checkpoint.interval < progress.frames // cfg.checkpoint.interval:
            save()
        bar.update(new_frames)
        shown = {"return": ".1f", "kl": ".3f", "lr": ".1e"}
        bar.set_postfix(
            {key: format(row[f"train/{key}"], spec) for key, spec in shown.items() if f"train/{key}" in row}
        )
    bar.close()
    stopped = progress.frames < cfg.collector.total_frames
    if stopped and ranks.is_first:
        print(f"Stopped at frame {progress.frames}. Continue with resume={folder.path}; saved {save()}")
    collector.shutdown(close_env=False)
    if not ranks.is_first:
        return
    draw_learning_curve(
        folder.metrics_path, folder.path / "learning_curve.png", f"{cfg.env.name}, {cfg.policy.name}, seed {cfg.seed}"
    )
    if cfg.video and not stopped:
        save_video(cfg, env, actor, folder.path / "video.mp4")
    print(f"Run folder: {folder.path}")


# sizes of a batch by the number of environments
OmegaConf.register_new_resolver("product", lambda *factors: math.prod(factors))
OmegaConf.register_new_resolver("quotient", lambda number, divisor: number // divisor)
# what one policy needs and the other does not take: a flow that is given an entropy bonus would be refused
OmegaConf.register_new_resolver("for_gaussian", lambda policy, value, flow=0.0: value if policy == "gaussian" else flow)
# `resume` continues in its own folder: no new one is made for it
OmegaConf.register_new_resolver("run_dir", lambda resume, default: resume or default)


@hydra.main(config_path="config", config_name="genpo", version_base="1.3")
def main(cfg: DictConfig) -> None:
    hydra_config = hydra.core.hydra_config.HydraConfig.get()
    folder, resume = None, False
    try:
        check_config(cfg, TRAINING)
        torch.set_num_threads(cfg.num_threads)
        if cfg.evaluate is not None:
            if cfg.video:
                check_rendering(read_checkpoint_config(Path(cfg.evaluate))["env"]["name"])
            run_evaluation(Path(cfg.evaluate), cfg)
            return
        if torch.device(cfg.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={cfg.device}: PyTorch {torch.__version__} finds no CUDA device; use device=cpu.")
        resume = cfg.resume is not None
        path = Path(hydra_config.runtime.output_dir)
        if resume:
            path = Path(cfg.resume)
            cfg = resumed_config(path, cfg, list(hydra_config.overrides.task))
            check_config(cfg, TRAINING)
        if cfg.video:
            check_rendering(cfg.env.name)
        ranks = Ranks(cfg.device)
        cfg.device = ranks.device
        folder = RunFolder(path, resume=resume, read_only=not ranks.is_first)
        if ranks.is_first:
            folder.write_config(OmegaConf.to_yaml(cfg, resolve=True))
        try:
            train(cfg, folder, resume, ranks)
        except DivergedError as error:
            raise DivergedError(f"{error} Last good checkpoint: {folder.latest() or 'none yet'}.") from error
        finally:
            ranks.close()
    except (DivergedError, ValueError, OSError, ImportError, OmegaConfBaseException) as error:
        # what a user can mend: the message, not the traceback
        sys.exit(f"{type(error).__name__}: {error}")
    finally:
        remove_unused(Path(hydra_config.runtime.output_dir), folder)


def run(main: Callable[[], None]) -> None:
    """Runs a script; what is wrong with the command line itself is a message, too, not Hydra's stack."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        return main()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing
    try:
        main()
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        cause = f"\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
        sys.exit(f"{type(error).__name__}: {error}{cause}")


if __name__ == "__main__":
    run(main)
