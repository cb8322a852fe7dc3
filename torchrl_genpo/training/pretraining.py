# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Pre-training on demonstrations: flows by flow matching, a Gaussian by maximum likelihood."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from torchrl_genpo.config.schema import PretrainOptions
from torchrl_genpo.data import data_range, make_chunk_buffer
from torchrl_genpo.envs import Purpose, spawn_seed
from torchrl_genpo.modules import ActionScale, EulerActor, ReversibleFlowActor, RunningNormalizer, flow_of, steps
from torchrl_genpo.objectives import FlowMatchingLoss
from torchrl_genpo.training.build import build_env, noise_parameters, parameter_groups, without_scale
from torchrl_genpo.training.checkpoint import RandomState, read_checkpoint, restore
from torchrl_genpo.training.demonstrations import read_task_demonstrations, task_options
from torchrl_genpo.training.evaluation import evaluate
from torchrl_genpo.training.finite import check_finite
from torchrl_genpo.training.loop import set_seeds
from torchrl_genpo.training.policy import make_policy
from torchrl_genpo.training.progress import Progress
from torchrl_genpo.training.run_folder import RunFolder

__all__ = ["COLUMNS", "pretrain"]

COLUMNS = ["iteration", "train/loss"]


def _set_ranges(
    normalizer: RunningNormalizer, scale: ActionScale, demonstrations: list[TensorDictBase], options: PretrainOptions
) -> None:
    """Sets normaliser and action scale so that the numbers of the demonstrations lie in ``[-1, 1]``."""
    observation, action = (data_range(demonstrations, key) for key in ("observation", "action"))
    sizes = len(normalizer.mean), len(scale.loc) // task_options(options.env).chunk_size
    if (len(observation[0]), len(action[0])) != sizes:
        raise ValueError(
            f"{options.pretrain.dataset} has observations of size {len(observation[0])} and actions of size "
            f"{len(action[0])}; {options.env.name} has {sizes[0]} and {sizes[1]}."
        )
    normalizer.mean.copy_(observation[0])
    normalizer.deviation.copy_(observation[1])
    normalizer.count.fill_(sum(len(demonstration) for demonstration in demonstrations))
    for buffer, value in ((scale.loc, action[0]), (scale.scale, action[1])):
        buffer.copy_(value.repeat(task_options(options.env).chunk_size))


def pretrain(options: PretrainOptions, folder: RunFolder) -> Path:
    """Trains a policy on demonstrations, and evaluates it.

    The checkpoints hold the moving average of the weights; ``genpo-train policy.init=<checkpoint>`` goes on from one.

    Args:
        options (PretrainOptions): of the run.
        folder (RunFolder): where it writes, and what it resumes.

    Returns:
        The path of the last checkpoint.

    Raises:
        ValueError: for data that is missing, damaged or of another task.
        DivergedError: if the loss is not finite.
    """
    settings = options.pretrain
    set_seeds(spawn_seed(options.seed, Purpose.LEARNING, 0))
    eval_seed = spawn_seed(options.seed, Purpose.EVALUATION)
    demonstrations = read_task_demonstrations(options.env, settings, "pretrain")
    env = build_env(options, max(options.eval.num_envs, task_options(options.env).num_workers), eval_seed)
    policy = make_policy(options, env)
    normalizer, scale = steps(policy)[0], steps(policy)[-1]
    _set_ranges(normalizer, scale, demonstrations, options)  # type: ignore[arg-type]

    is_flow = options.policy.name != "gaussian"
    loss = FlowMatchingLoss(policy) if is_flow else None
    average = AveragedModel(policy, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    groups = parameter_groups(policy.parameters(), settings.lr, (noise_parameters(policy), settings.noise_lr))
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    buffer = make_chunk_buffer(demonstrations, task_options(options.env).chunk_size, settings.batch_size)
    progress = Progress()
    parts = {
        "policy": average.module,  # what is evaluated, and fine-tuned
        "trained": policy,
        "average": average,
        "optimizer": optimizer,
        "random": RandomState(),
        "progress": progress,
    }
    if folder.resume_from is not None:
        restore(read_checkpoint(folder.resume_from, options.device), parts, folder.resume_from)
        folder.truncate_metrics(progress.frames)

    def save() -> Path:
        return folder.save(progress.frames, options.model_dump(mode="json"), parts)

    def loss_of(batch: TensorDict) -> Tensor:
        batch["raw_action"] = scale.normalize(batch["action"])  # type: ignore[operator]
        if settings.action_noise:
            batch["raw_action"] += settings.action_noise * torch.randn_like(batch["raw_action"])
        return -without_scale(policy).log_prob(batch).mean() if loss is None else loss(batch)["loss_flow_matching"]

    path, losses = save(), []  # from here on the run can be resumed
    bar = tqdm(total=settings.iterations, initial=progress.frames, unit="it")
    while progress.frames < settings.iterations:
        value = loss_of(buffer.sample().to(options.device))
        check_finite({"loss": value}, f"iteration {progress.frames} (nothing was updated)")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        average.update_parameters(policy)
        progress.frames += 1
        losses.append(value.item())
        bar.update()
        is_last = progress.frames == settings.iterations
        if progress.frames % settings.log_interval == 0 or is_last:
            folder.log({"iteration": progress.frames, "train/loss": sum(losses) / len(losses)})
            bar.set_postfix(loss=f"{sum(losses) / len(losses):.4f}")
            losses = []
        if progress.frames % settings.checkpoint_interval == 0 or is_last:
            path = save()
    bar.close()

    policy.load_state_dict(average.module.state_dict())
    if options.eval.rounds:
        ways: dict[str, nn.Module] = {options.policy.name: policy}
        if is_flow and isinstance(flow_of(policy), ReversibleFlowActor):
            ways = {"reversible": policy, "euler": EulerActor.of(policy)}
        results = {way: evaluate(env, policy, eval_seed, options.eval.rounds) for way, policy in ways.items()}
        (folder.path / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    env.close()
    return path
