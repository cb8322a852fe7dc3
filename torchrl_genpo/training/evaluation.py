# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Evaluation by one protocol, and diagnostics of an update."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type

from torchrl_genpo.envs.seeds import check_seed
from torchrl_genpo.modules.sequence import dist_of, flow_of

__all__ = ["RatioWatch", "episode_log", "evaluate", "statistics_columns"]

ENDS = ("episode_reward", "success", "reached_goal")  # of an episode, that are evaluated
STATISTICS = ("log", "metrics")  # where an environment tells of an episode; the second is evaluated too


@torch.no_grad()
def evaluate(
    env: EnvBase, policy: TensorDictModuleBase, seed: int, rounds: int = 1, max_steps: int = 10_000
) -> dict[str, float]:
    """Mean return of one episode a round in each environment, with zero noise and with random noise.

    Every call starts from the same initial states and noise, and leaves the global random state as
    it was.

    Args:
        env (EnvBase): environment of any batch size with ``episode_reward``, which
            :class:`~torchrl.envs.RewardSum` writes.
        policy (TensorDictModuleBase): the policy, whose statistics stand still.
        seed (int): of initial states and noise.
        rounds (int, optional): episodes of each environment. Defaults to ``1``.
        max_steps (int, optional): an unfinished episode counts with its return so far. Defaults to ``10_000``, which a
            task without a time limit of its own takes: give it one by ``max_episode_steps``.

    Returns:
        ``eval/zero_noise/return`` and ``eval/random_noise/return``, not finite if the return of one episode is not, and
        where the environment tells them ``.../success``, the part of the episodes that ended with the task solved;
        ``.../<name>`` for each of its ``metrics``, over the episodes where it is not NaN; and ``.../goal_entropy``, the
        entropy, in nats, of the goals that were reached, where there are several.

    Raises:
        KeyError: without ``episode_reward``.
    """
    results = {}
    cards = [env.device] if env.device is not None and env.device.type == "cuda" else []
    for name, exploration in (("zero", ExplorationType.DETERMINISTIC), ("random", ExplorationType.RANDOM)):
        with torch.random.fork_rng(cards), set_exploration_type(exploration):
            torch.manual_seed(check_seed(seed))
            env.set_seed(seed)
            ends = _mean_end(env, policy, rounds, max_steps)
        if (shares := ends.pop("reached_goal", None)) is not None:
            ends["goal_entropy"] = torch.special.entr(shares / shares.sum().clamp_min(1e-9)).sum()
        for key, value in ends.items():
            results[f"eval/{name}_noise/{'return' if key == 'episode_reward' else key}"] = value.item()
    return results


def _mean_end(env: EnvBase, policy: TensorDictModuleBase, rounds: int, max_steps: int) -> dict[str, torch.Tensor]:
    """The mean end of ``rounds`` episodes of each environment, which do not wait for each other between them."""
    td = env.reset()
    counts = torch.zeros_like(td["done"], dtype=torch.long)
    totals: dict[str, Any] = defaultdict(float)
    weights: dict[str, Any] = defaultdict(float)
    for step_index in range(rounds * max_steps):
        step, td = env.step_and_maybe_reset(policy(td))
        is_last = step_index == rounds * max_steps - 1
        counted = (step["next", "done"] | is_last) & (counts < rounds)
        counts += counted
        for key, value in _ends(step["next"]).items():
            # a task's statistics may be unknown, a return may not: one that is NaN makes the mean NaN
            known = counted if key == "episode_reward" else counted & ~value.isnan()
            totals[key] += value.where(known, 0.0)
            weights[key] += known.float()
        if (counts == rounds).all():
            break
    rows = {key: total.reshape(-1, total.shape[-1]).sum(0) for key, total in totals.items()}
    means = {key: row / weights[key].reshape(-1, len(row)).sum(0) for key, row in rows.items()}
    return {key: mean.squeeze(-1) for key, mean in means.items()}


def _ends(step: TensorDictBase) -> dict[str, torch.Tensor]:
    """What the last step of an episode tells of it."""
    if "episode_reward" not in step.keys():
        raise KeyError("evaluate() needs 'episode_reward': append torchrl.envs.RewardSum() to the environment.")
    return {key: step[key] for key in ENDS if key in step.keys()} | dict(step.get("metrics", {}).items())


class RatioWatch:
    """Tells how far an update moves the pair (action, memory), and how far the executed action alone.

    It is made before the update, and draws memories that could have come with each action: the densities of the action
    before and after are estimated with the same ones.

    Args:
        policy (TensorDictModuleBase): a :class:`~torchrl_genpo.ReversibleFlowActor`, or a sequence with one.
        data (TensorDictBase): ``[n]``, what the policy read and wrote.
        num_memories (int): of each action.
    """

    @torch.no_grad()
    def __init__(self, policy: TensorDictModuleBase, data: TensorDictBase, num_memories: int) -> None:
        self._policy, self._data = policy, data
        actor, dist = flow_of(policy), dist_of(policy, data)
        self._pair = actor.read_pair(data, *actor.dist_sample_keys)
        self._log_prob = data[actor.log_prob_keys[0]]
        action, memory = self._pair
        self._proposed = dist.propose_memory(action, num_memories, memory)
        self._before = dist.estimate_action_log_prob(action, *self._proposed)

    @torch.no_grad()
    def compare(self, clip_epsilon: float) -> dict[str, float]:
        """Compares the present policy with that before the update.

        Args:
            clip_epsilon (float): of the loss.

        Returns:
            ``kl`` and ``clip_fraction`` of pair and action, and ``ess``, the mean effective sample size of the
            action's estimate before the update, as a fraction of its memories.
        """
        dist, (action, memory) = dist_of(self._policy, self._data), self._pair
        results = {"ess": (self._before.effective_sample_size.mean() / len(self._proposed[0])).item()}
        for name, log_ratio in (
            ("pair", dist.log_prob(action, memory) - self._log_prob),
            ("action", dist.estimate_action_log_prob(action, *self._proposed).log_prob - self._before.log_prob),
        ):
            results[f"kl_{name}"] = -log_ratio.mean().item()
            results[f"clip_fraction_{name}"] = ((log_ratio.exp() - 1).abs() > clip_epsilon).float().mean().item()
        return results


def episode_log(data: TensorDictBase) -> dict[str, float]:
    """Means of what the task tells over the episodes that ended in the data, NaN left out.

    These are ``("next", "success")`` and the task's own statistics, ``("next", "log")`` and ``("next", "metrics")``,
    whichever there are.
    """
    ended = data["next", "done"].squeeze(-1)
    if not ended.any():
        return {}
    logs = {f"task/{name}": log for group in STATISTICS for name, log in data["next"].get(group, {}).items()}
    if (success := data["next"].get("success", None)) is not None:
        logs["train/success"] = success.float()
    means = {name: log[ended].nanmean(0) for name, log in logs.items()}
    values = torch.cat(list(means.values())).tolist() if means else []
    return {name: value for name, value in zip(means, values, strict=True) if value == value}


def statistics_columns(env: EnvBase) -> list[str]:
    """The columns of ``metrics.csv`` that an environment's own statistics need, see :func:`episode_log`."""
    names = {group: list(env.observation_spec.get(group, {}).keys()) for group in STATISTICS}
    evaluated = [f"eval/{noise}_noise/{name}" for noise in ("zero", "random") for name in names["metrics"]]
    return [f"task/{name}" for group in STATISTICS for name in names[group]] + evaluated
