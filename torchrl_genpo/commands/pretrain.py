# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Pre-trains a policy on demonstrations: flows by flow matching, a Gaussian by maximum likelihood.

genpo-collect can --episodes 100 --output can.hdf5
genpo-pretrain env=robomimic/can pretrain.dataset=can.hdf5
genpo-train env=robomimic/can policy.init=<the checkpoint that it names>
"""

from __future__ import annotations

import json
import shlex
from importlib import resources
from pathlib import Path

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchrl.checkpoint import GlobalRNGState
from tqdm import tqdm

from torchrl_genpo import FlowMatchingLoss
from torchrl_genpo.commands.common import (
    check_device,
    check_rounds,
    hydra_command,
    refuse_others,
    refuse_unused,
    resumed_config,
)
from torchrl_genpo.configuration import as_dict, build_actor, build_env
from torchrl_genpo.data import data_range, make_chunk_buffer, read_demonstrations, read_env_args
from torchrl_genpo.envs import ROBOMIMIC_TASKS
from torchrl_genpo.limits import check_config
from torchrl_genpo.loading import SHAPING, DataRanges, load_policy
from torchrl_genpo.models import pretrained_module
from torchrl_genpo.modules import EulerActor, ReversibleFlowActor
from torchrl_genpo.runs import RunFolder, SyncedCheckpoint, find_checkpoint
from torchrl_genpo.training import Progress, check_finite, evaluate, load_checkpoint
from torchrl_genpo.training.loop import EVAL_SEED, set_seeds

COLUMNS = ["iteration", "train/loss"]
RESUMABLE = {"pretrain.iterations", "pretrain.dataset", "eval"}  # may change on resume
SAMPLING = ("solver", "start")  # options by which a trained policy may be sampled
EVALUABLE = {*SAMPLING, "euler", "eval", "device", "num_threads"}  # may change in an evaluation


def read_data(cfg: DictConfig) -> list[TensorDict]:
    if cfg.pretrain.dataset is None:
        raise ValueError("pretrain.dataset=<file.hdf5> is missing: a robomimic file, or one of genpo-collect.")
    task = ROBOMIMIC_TASKS.get(cfg.env.name.removeprefix("robomimic/"))
    if task is None:
        raise ValueError(f"Pre-training knows robomimic/<task>, not {cfg.env.name}.")
    if cfg.env.options.dataset is None:
        recorded, mine = (args["env_name"] for args in (read_env_args(cfg.pretrain.dataset), task.env_args()))
        if recorded != mine:
            raise ValueError(
                f"{cfg.pretrain.dataset} is of {recorded}; {cfg.env.name} is {mine}. To train and evaluate in the "
                f"environment of the file, set env.options.dataset={cfg.pretrain.dataset}."
            )
    keys = cfg.env.options.get("observation_keys") or task.observation_keys
    return read_demonstrations(
        cfg.pretrain.dataset,
        keys,
        filter_key=cfg.pretrain.filter_key,
        num_demonstrations=cfg.pretrain.num_demonstrations,
    )


def pretrain(cfg: DictConfig, folder: RunFolder) -> None:
    config = as_dict(cfg)
    set_seeds(cfg.seed)
    demonstrations = read_data(cfg)
    env = build_env(cfg, max(cfg.eval.num_envs, cfg.env.options.num_workers), EVAL_SEED)
    normalization = DataRanges(env)
    norm, scaling = normalization.transforms
    ranges = [data_range(demonstrations, key) for key in ("observation", "action")]
    sizes = norm.loc.shape[-1], scaling.loc.shape[-1] // cfg.env.options.chunk_size
    if tuple(loc.shape[-1] for loc, _ in ranges) != sizes:
        raise ValueError(
            f"{cfg.pretrain.dataset} has observations of size {len(ranges[0][0])} and actions of size "
            f"{len(ranges[1][0])}; {cfg.env.name} has {sizes[0]} and {sizes[1]}."
        )
    for transform, (loc, scale) in zip((norm, scaling), ranges, strict=True):
        chunks = transform.loc.shape[-1] // loc.shape[-1]
        transform.loc.copy_(loc.repeat(chunks))
        transform.scale.copy_(scale.repeat(chunks))

    actor = build_actor(cfg, env)
    loss = FlowMatchingLoss(actor) if hasattr(actor, "velocity") else None
    module = pretrained_module(actor)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(cfg.pretrain.ema))
    optimizer = torch.optim.AdamW(
        module.parameters(), cfg.pretrain.lr, weight_decay=cfg.pretrain.weight_decay, fused=True
    )
    buffer = make_chunk_buffer(demonstrations, cfg.env.options.chunk_size, cfg.pretrain.batch_size)
    progress = Progress()
    checkpoint = SyncedCheckpoint(
        pretrained=average.module,  # what genpo.py loads, with the ranges of observations and actions
        normalization=normalization,
        trained=module,
        average=average,
        optimizer=optimizer,
        rng=GlobalRNGState(),
        progress=progress,
    )
    if folder.resume_from is not None:
        load_checkpoint(checkpoint, folder.resume_from, cfg.device)
        folder.truncate_metrics(progress.frames)

    def save() -> Path:
        return folder.save(checkpoint, progress.frames, config)

    path, losses = save(), []  # from here on the run can be resumed
    bar = tqdm(total=cfg.pretrain.iterations, initial=progress.frames, unit="it")
    while progress.frames < cfg.pretrain.iterations:
        batch = buffer.sample().to(cfg.device)
        batch["observation"] = (batch["observation"] - norm.loc) / norm.scale
        batch["action"] = scaling.normalize(batch["action"])
        if cfg.pretrain.action_noise:
            batch["action"] += cfg.pretrain.action_noise * torch.randn_like(batch["action"])
        value = -actor.log_prob(batch).mean() if loss is None else loss(batch)["loss_flow_matching"]
        check_finite({"loss": value}, f"iteration {progress.frames} (nothing was updated)")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        average.update_parameters(module)
        progress.frames += 1
        losses.append(value.item())
        bar.update()
        if progress.frames % cfg.pretrain.log_interval == 0 or progress.frames == cfg.pretrain.iterations:
            folder.log({"iteration": progress.frames, "train/loss": sum(losses) / len(losses)})
            bar.set_postfix(loss=f"{sum(losses) / len(losses):.4f}")
            losses = []
        if progress.frames % cfg.pretrain.checkpoint_interval == 0 or progress.frames == cfg.pretrain.iterations:
            path = save()
    bar.close()

    module.load_state_dict(average.module.state_dict())
    if cfg.eval.rounds:
        is_reversible = isinstance(actor, ReversibleFlowActor)
        ways = {"reversible": actor, "euler": EulerActor.of(actor)} if is_reversible else {cfg.policy.name: actor}
        results = {way: evaluate(env, policy, EVAL_SEED, cfg.eval.rounds) for way, policy in ways.items()}
        for way, values in results.items():
            for key, value in values.items():
                print(f"{way} {key}: {value:.3f}")
        (folder.path / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    env.close()
    print(f"Run folder: {folder.path}")
    print(f"Fine-tune it: genpo-train {shlex.join(finetuning_options(cfg, path))}")


def finetuning_options(cfg: DictConfig, path: Path) -> list[str]:
    """What ``genpo-train`` must be told to take the checkpoint; what its defaults say already is left out."""
    policy = "transformer_flow" if cfg.policy.get("transformer") else cfg.policy.name
    has_file = (resources.files("torchrl_genpo.config") / "env" / f"{cfg.env.name}.yaml").is_file()
    env = [f"env={cfg.env.name}"] if has_file else ["env=robomimic/base", f"env.name={cfg.env.name}"]
    options = [*env, *([] if policy == "reversible_flow" else [f"policy={policy}"])]
    default = compose("genpo", options)
    for key in (*SHAPING, "env.options.dataset"):
        value = OmegaConf.select(cfg, key)
        if value != OmegaConf.select(default, key):
            options.append(f"{key}={value}".replace(" ", ""))
    return [*options, f"policy.init={path}"]


def run_evaluation(cfg: DictConfig) -> None:
    """Evaluates a checkpoint in its own environment, by another solver or start or by Euler's rule if asked for."""
    path = find_checkpoint(Path(cfg.evaluate))
    check_rounds(cfg.eval.rounds)
    names = refuse_others(HydraConfig.get().overrides.task, EVALUABLE, "A policy is evaluated as it was trained")
    overrides = {name: OmegaConf.select(cfg, name) for name in names if name.partition(".")[0] in SAMPLING}
    actor, env, saved = load_policy(path, cfg.eval.num_envs, EVAL_SEED, cfg.device, overrides, defaults=cfg)
    if cfg.euler and not isinstance(actor, ReversibleFlowActor):
        raise ValueError(f"euler=true is of reversible flows; {path} is a policy={saved.policy.name}.")
    policy = EulerActor.of(actor) if cfg.euler else actor
    for key, value in evaluate(env, policy, EVAL_SEED, cfg.eval.rounds).items():
        print(f"{key}: {value:.3f}")


@hydra_command("pretrain")
def main(cfg: DictConfig) -> int:
    check_config(cfg)
    torch.set_num_threads(cfg.num_threads)
    check_device(cfg.device)
    if cfg.evaluate is not None:
        run_evaluation(cfg)
        return 0
    resume = cfg.resume is not None
    path = Path(cfg.resume if resume else HydraConfig.get().runtime.output_dir)
    if resume:
        cfg = resumed_config(path, cfg, HydraConfig.get().overrides.task, RESUMABLE)
        check_config(cfg)
    else:
        refuse_unused(cfg.policy.name, HydraConfig.get().overrides.task)
    folder = RunFolder(path, resume=resume, columns=COLUMNS)
    folder.write_config(OmegaConf.to_yaml(cfg, resolve=True))
    try:
        pretrain(cfg, folder)
    finally:
        folder.remove_unused()
    return 0


if __name__ == "__main__":
    main()
