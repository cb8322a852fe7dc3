# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the entry scripts and the examples share: update, evaluation, diagnostics, checkpoints."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.checkpoint import Checkpoint, CheckpointError, GlobalRNGState
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type
from torchrl.objectives import ClipPPOLoss

from torchrl_genpo.distributed import Ranks
from torchrl_genpo.envs import simulator_state
from torchrl_genpo.flow import marginal_log_prob
from torchrl_genpo.modules import ReversibleFlowActor
from torchrl_genpo.untrusted import check_checkpoint

__all__ = [
    "DivergedError",
    "Progress",
    "augment",
    "batch_keys",
    "check_finite",
    "compare_ratios",
    "episode_log",
    "evaluate",
    "load_checkpoint",
    "make_checkpoint",
    "make_update",
    "prepare",
    "statistics_columns",
    "update_metrics",
]


ENDS = ("episode_reward", "success", "reached_goal")  # of an episode, that are evaluated
STATISTICS = ("log", "metrics")  # where an environment tells of an episode; the second is evaluated too
MEANS = ("clip_fraction", "loss_objective", "loss_critic", "grad_norm", "entropy")  # over an update, that are logged


class DivergedError(RuntimeError):
    """Training met a number that is not finite; the message says where."""


def make_update(
    loss: ClipPPOLoss,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
    *,
    compile_mode: str | None = None,
    cudagraphs: bool = False,
    ranks: Ranks | None = None,
) -> Callable[[TensorDictBase], TensorDictBase]:
    """Returns the function that makes one optimizer step on one mini-batch.

    Args:
        loss (ClipPPOLoss): the objective; every output called ``loss_*`` is minimised.
        optimizer (Optimizer): over the parameters of ``loss``.
        max_grad_norm (float): clipping of the gradient's norm.

    Keyword Args:
        compile_mode (str, optional): compiles loss and gradient with this ``torch.compile`` mode.
        cudagraphs (bool, optional): captures loss and gradient in a CUDA graph.
        ranks (Ranks, optional): processes over which gradients are averaged.

    Returns:
        A function from a batch to the detached outputs of the loss and ``grad_norm``. It raises
        :class:`DivergedError`, before the step, when the loss or its gradient is not finite.
    """
    params = [p for p in loss.parameters() if p.requires_grad]

    def gradients(batch: TensorDictBase) -> TensorDictBase:
        optimizer.zero_grad(set_to_none=True)
        out = loss(batch)
        sum(out[key] for key in out.keys() if key.startswith("loss_")).backward()
        return out.detach()

    if compile_mode is not None:
        gradients = torch.compile(gradients, mode=compile_mode)
    if cudagraphs:
        from tensordict.nn import CudaGraphModule

        gradients = CudaGraphModule(gradients, in_keys=[], out_keys=[], warmup=5)

    def update(batch: TensorDictBase) -> TensorDictBase:
        out = gradients(batch)
        if ranks is not None:
            ranks.average_gradients(params)
        grad_norm = nn.utils.clip_grad_norm_(params, max_grad_norm)
        check_finite({**out.to_dict(), "grad_norm": grad_norm}, "the loss (nothing was updated)")
        optimizer.step()
        return out.set("grad_norm", grad_norm)

    return update


def batch_keys(loss: ClipPPOLoss, actor: TensorDictModule) -> list[NestedKey]:
    """What an update reads of the collected data, after the advantages were estimated."""
    read = [key for key in loss.in_keys if not (isinstance(key, tuple) and key[0] == "next")]
    written = [key for key in actor.out_keys if key not in ("loc", "scale")]
    return [*dict.fromkeys([*read, *written, "advantage", "value_target", "state_value"])]


def prepare(loss: ClipPPOLoss, batch: TensorDictBase) -> TensorDictBase:
    """Adds to a collected batch, before its first update, what a loss wants kept of the policy that collected it.

    Stock PPO wants nothing; see :meth:`torchrl_genpo.GenPOLoss.prepare` and those of
    :mod:`torchrl_genpo.baselines`.
    """
    return loss.prepare(batch) if hasattr(loss, "prepare") else batch


def update_metrics(outputs: TensorDictBase) -> dict[str, float]:
    """Means of what the mini-batches ``[n]`` of an update returned, as columns of ``metrics.csv``."""
    means = outputs.mean(0)
    metrics = {f"train/{key}": means[key].item() for key in MEANS if key in means.keys()}
    metrics["train/kl"] = means["kl_approx"].item()
    if "inversion_error" in outputs.keys():
        # the first mini-batch, where no parameter has changed yet
        metrics["train/inversion_error"] = outputs["inversion_error"][0].item()
    return metrics


def check_finite(data: dict[str, torch.Tensor], where: str) -> None:
    """Raises :class:`DivergedError`, naming the keys, if a tensor is not finite."""
    finite = torch.stack([torch.isfinite(value).all() for value in data.values()])
    if not finite.all():  # the one place that waits for the device
        bad = [key for key, is_finite in zip(data, finite.tolist(), strict=True) if not is_finite]
        raise DivergedError(f"Not finite in {where}: {', '.join(bad)}.")


@torch.no_grad()
def evaluate(
    env: EnvBase, actor: TensorDictModule, seed: int, rounds: int = 1, max_steps: int = 10_000
) -> dict[str, float]:
    """Mean return of one episode a round in each environment, with zero noise and with random noise.

    Every call starts from the same initial states and noise, and leaves the global random state as
    it was.

    Args:
        env (EnvBase): batched environment with ``episode_reward``; normalisation should be frozen.
        actor (TensorDictModule): the policy.
        seed (int): of initial states and noise.
        rounds (int, optional): episodes of each environment. Defaults to ``1``.
        max_steps (int, optional): an unfinished episode counts with its return so far.

    Returns:
        ``eval/zero_noise/return`` and ``eval/random_noise/return``, and where the environment tells them
        ``.../success``, the part of the episodes that ended with the task solved; ``.../<name>`` for each of its
        ``metrics``, over the episodes where it is not NaN; and ``.../goal_entropy``, the entropy, in nats, of the
        goals that were reached, where there are several.
    """
    results = {}
    for name, exploration in (("zero", ExplorationType.DETERMINISTIC), ("random", ExplorationType.RANDOM)):
        with torch.random.fork_rng(), set_exploration_type(exploration):
            torch.manual_seed(seed)
            env.set_seed(seed)
            ends = _mean_end(env, actor, rounds, max_steps)
        if (shares := ends.pop("reached_goal", None)) is not None:
            ends["goal_entropy"] = torch.special.entr(shares / shares.sum().clamp_min(1e-9)).sum()
        for key, value in ends.items():
            results[f"eval/{name}_noise/{'return' if key == 'episode_reward' else key}"] = value.item()
    return results


def _mean_end(env: EnvBase, actor: TensorDictModule, rounds: int, max_steps: int) -> dict[str, torch.Tensor]:
    """The mean end of ``rounds`` episodes of each environment, which do not wait for each other between them."""
    td = env.reset()
    counts = torch.zeros_like(td["done"], dtype=torch.long)
    totals: dict[str, Any] = defaultdict(float)
    weights: dict[str, Any] = defaultdict(float)
    for step_index in range(rounds * max_steps):
        step, td = env.step_and_maybe_reset(actor(td))
        is_last = step_index == rounds * max_steps - 1
        counted = (step["next", "done"] | is_last) & (counts < rounds)
        counts += counted
        for key, value in _ends(step["next"]).items():
            known = counted & ~value.isnan()
            totals[key] += value.where(known, 0.0)
            weights[key] += known.float()
        if (counts == rounds).all():
            break
    means = {key: total.flatten(0, -2).sum(0) / weights[key].flatten(0, -2).sum(0) for key, total in totals.items()}
    return {key: mean.squeeze(-1) for key, mean in means.items()}


def _ends(step: TensorDictBase) -> dict[str, torch.Tensor]:
    """What the last step of an episode tells of it."""
    return {key: step[key] for key in ENDS if key in step.keys()} | dict(step.get("metrics", {}).items())


@torch.no_grad()
def compare_ratios(actor: ReversibleFlowActor, data: TensorDictBase, clip_epsilon: float) -> dict[str, float]:
    """How far an update moved the pair (action, memory), and how far the executed action alone.

    Args:
        actor (ReversibleFlowActor): the policy after the update.
        data (TensorDictBase): flat data to which ``actor.draw_memories`` was applied before the update.
        clip_epsilon (float): of the loss.

    Returns:
        ``kl`` and ``clip_fraction`` of pair and action, and the mean effective sample size of the
        action's estimate before the update, as a fraction of its memories.
    """
    dist = actor.get_dist(data.select(*actor.in_keys))
    memories, log_proposal = data["memory_samples"].movedim(-2, 0), data["memory_log_proposal"].movedim(-1, 0)
    action = data[actor.action_key]
    new = marginal_log_prob(dist.log_prob(action.expand(len(memories), *action.shape), memories), log_proposal)
    results = {"ess": (data["effective_sample_size"].mean() / len(memories)).item()}
    for name, log_ratio in (
        ("pair", actor.log_prob(data) - data[actor.log_prob_keys[0]]),
        ("action", new.log_prob - data["marginal_log_prob"]),
    ):
        results[f"kl_{name}"] = -log_ratio.mean().item()
        results[f"clip_fraction_{name}"] = ((log_ratio.exp() - 1).abs() > clip_epsilon).float().mean().item()
    return results


def episode_log(data: TensorDictBase) -> dict[str, float]:
    """Means of the task's own statistics over the episodes that ended in the data, NaN left out.

    These are ``("next", "log")`` and, where there is one, ``("next", "metrics")``.
    """
    ended = data["next", "done"].squeeze(-1)
    if not ended.any():
        return {}
    logs = {name: log for group in STATISTICS for name, log in data["next"].get(group, {}).items()}
    means = {name: log[ended].nanmean(0) for name, log in logs.items()}
    values = torch.cat(list(means.values())).tolist() if means else []
    return {f"task/{name}": value for name, value in zip(means, values, strict=True) if value == value}


def statistics_columns(env: EnvBase) -> list[str]:
    """The columns of ``metrics.csv`` that an environment's own statistics need, see :func:`episode_log`."""
    names = {group: list(env.observation_spec.get(group, {}).keys()) for group in STATISTICS}
    evaluated = [f"eval/{noise}_noise/{name}" for noise in ("zero", "random") for name in names["metrics"]]
    return [f"task/{name}" for group in STATISTICS for name in names[group]] + evaluated


@torch.no_grad()
def augment(
    data: TensorDictBase,
    mirror: Callable[[TensorDictBase], TensorDictBase],
    actor: TensorDictModule,
    critic: TensorDictModule,
    batch_size: int,
) -> TensorDictBase:
    """Adds mirror images to flat data, with the log-probabilities and values that the present networks give them.

    Args:
        data (TensorDictBase): ``[n]``, collected by ``actor``.
        mirror (Callable): see :class:`~torchrl_genpo.envs.IsaacLabSymmetry`.
        actor (TensorDictModule): the policy that collected the data.
        critic (TensorDictModule): the value network.
        batch_size (int): samples that are evaluated at a time.

    Returns:
        ``[k n]``, the data itself first. Advantages and value targets of an image are those of its original.
    """
    mirrored = mirror(data)
    data, images = mirrored.split([len(data), len(mirrored) - len(data)])
    log_probs, values = [], []
    for part in images.split(batch_size):
        values.append(critic(part.select(*critic.in_keys))["state_value"])
        if "action_log_prob" in images.keys():
            log_probs.append(actor.log_prob(part))
    images["state_value"] = torch.cat(values)
    if log_probs:
        images["action_log_prob"] = torch.cat(log_probs)
    return torch.cat([data, images])


class Progress:
    """Counters of a run that outlive a restart.

    Args:
        window (int, optional): episodes whose returns are kept. Defaults to ``20``.
    """

    def __init__(self, window: int = 20) -> None:
        self.frames = 0
        self.seconds = 0.0
        self.returns: deque[float] = deque(maxlen=window)

    def state_dict(self) -> dict[str, Any]:
        """The counters as plain numbers."""
        return {"frames": self.frames, "seconds": self.seconds, "returns": list(self.returns)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the counters."""
        self.frames, self.seconds = int(state_dict["frames"]), float(state_dict["seconds"])
        self.returns = deque(map(float, state_dict["returns"]), maxlen=self.returns.maxlen)


class _Carrier:
    """The tensordict in which a collector keeps its place in the environments.

    TorchRL does not save it (``Collector.state_dict`` holds weights, transforms and counters only).
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def state_dict(self) -> dict[str, Any]:
        return self._collector._carrier.exclude("next").flatten_keys(".").to_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        carrier = self._collector._carrier
        carrier.update(TensorDict(state_dict, batch_size=carrier.batch_size).unflatten_keys("."))


def make_checkpoint(
    *,
    loss: nn.Module,
    env: EnvBase,
    optimizer: torch.optim.Optimizer | None = None,
    schedule: Any = None,
    adaptive_sigma: Any = None,
    collector: Collector | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Binds the parts of a run to a TorchRL checkpoint: one archive, written aside and renamed.

    With all parts a run continues exactly (with fresh episodes where
    :func:`~torchrl_genpo.envs.simulator_state` cannot save the simulator); with ``loss`` and ``env`` alone it is
    what evaluation needs (weights and normalisation).
    """
    parts: dict[str, Any] = {"loss": loss, "normalization": env.transform}
    if collector is not None:  # the one that continues, not an evaluation
        parts["rng"] = GlobalRNGState()
        simulator = simulator_state(env)
        if simulator is not None:
            parts |= {"carrier": _Carrier(collector), "simulator": simulator}
    optional = {
        "optimizer": optimizer,
        "schedule": schedule,
        "adaptive_sigma": adaptive_sigma,
        "progress": progress,
    }
    parts |= {name: part for name, part in optional.items() if part is not None}
    return Checkpoint(format="archive", **parts)


def load_checkpoint(checkpoint: Checkpoint, path: Path, device: torch.device | str = "cpu") -> None:
    """Restores every part of a checkpoint, or raises a ``ValueError`` that says why it cannot."""
    import zipfile

    check_checkpoint(Path(path))
    try:
        checkpoint.load(path, map_location=device)
    except (CheckpointError, zipfile.BadZipFile, OSError) as error:
        raise ValueError(
            f"Cannot load checkpoint {path}: {error} It is cut short, damaged, or of another configuration."
        ) from error
