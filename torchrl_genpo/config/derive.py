# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Fills in the options that are null because they follow from others, before the schema checks them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchrl_genpo.config.env_options import FAMILIES, family

__all__ = ["with_policy_of_task", "with_sizes_of_batches"]

BATCHES_OF_A_CHECKPOINT = 50
PAIR_FLOWS = ("reversible_flow", "genpo", "genpo_jacobian")
LEARNS_NOISE = ("gaussian", *PAIR_FLOWS)

MOST = {"collector.steps_per_env": 10**6, "collector.iterations": 10**9, "loss.mini_batches": 10**6}
"""The bounds of options that are filled in even where they are given, because a number of frames wins over them."""


class _Values:
    """Nested options, as they were given, of which some are filled in."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, int | None]) -> None:
        self.values = dict(values)
        self._defaults = defaults

    def __getitem__(self, name: str) -> int | None:
        """A positive integer or ``None``; 1 for a value that the schema will refuse."""
        value = self._given(name)
        return value if value is None or _is_count(value) else 1

    def fill_in(self, name: str, value: int) -> None:
        given = self._given(name)
        section, _, key = name.partition(".")
        part = self.values.get(section, {})
        most = MOST.get(name, 10**12)
        # what the schema will refuse stays, for it to name it
        if isinstance(part, Mapping) and (given is None or (_is_count(given) and given <= most)):
            self.values[section] = {**part, key: min(value, most)}

    def _given(self, name: str) -> Any:
        section, _, key = name.partition(".")
        part = self.values.get(section)
        return part.get(key, self._defaults[name]) if isinstance(part, Mapping) else self._defaults[name]

    def follow(self, name: str, other: str) -> int | None:
        """The value of ``other`` if ``name`` is null and follows from it.

        Raises:
            ValueError: if both are null.
        """
        if self[name] is not None:
            return None
        if self[other] is None:
            raise ValueError(f"{name}=null follows from {other}, which is null as well: give one of the two.")
        return self[other]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def with_sizes_of_batches(values: Mapping[str, Any], defaults: Mapping[str, int | None]) -> dict[str, Any]:
    """Fills in frames, steps, iterations and mini-batches; a number of frames wins over what it would follow from.

    Args:
        values (mapping): the options, nested.
        defaults (mapping of str to int): of these options, by dotted name.

    Raises:
        ValueError: if two options that follow from each other are null, or a batch has too few frames to be split.
    """
    env = values.get("env")
    num_envs = FAMILIES[family(env)].model_fields["num_envs"].default
    given = _Values(values, {**defaults, "env.num_envs": num_envs})
    num_envs = given["env.num_envs"] or 1
    if (steps := given.follow("collector.frames_per_batch", "collector.steps_per_env")) is not None:
        given.fill_in("collector.frames_per_batch", num_envs * steps)
    frames = given["collector.frames_per_batch"] or 1
    given.fill_in("collector.steps_per_env", max(1, frames // num_envs))
    if (iterations := given.follow("collector.total_frames", "collector.iterations")) is not None:
        given.fill_in("collector.total_frames", frames * iterations)
    total = given["collector.total_frames"] or 1
    given.fill_in("collector.iterations", -(-total // frames))
    if (parts := given.follow("loss.mini_batch_size", "loss.mini_batches")) is not None:
        if parts > frames:
            raise ValueError(f"loss.mini_batches={parts}: a batch of {frames} frames cannot be split into so many.")
        given.fill_in("loss.mini_batch_size", frames // parts)
    given.fill_in("loss.mini_batches", -(-frames // (given["loss.mini_batch_size"] or 1)))
    if given["eval.interval"] is None:
        given.fill_in("eval.interval", total)
    if given["checkpoint.interval"] is None:
        given.fill_in("checkpoint.interval", BATCHES_OF_A_CHECKPOINT * frames)
    return given.values


def with_policy_of_task(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in what of a policy follows from its task: its noise, the head, and the chunks of a transformer."""
    given = dict(values)
    policy, env = given.get("policy", {}), given.get("env")
    if not isinstance(policy, Mapping):
        return given
    name, transformer = policy.get("name", "reversible_flow"), policy.get("transformer")
    if name in LEARNS_NOISE and policy.get("initial_std") is None:
        policy = {**policy, "initial_std": 0.5 if family(env) == "gymnasium" else 1.0}
    if name in PAIR_FLOWS and policy.get("scale") is None:
        start = given.get("start", {})
        is_consistent = isinstance(start, Mapping) and start.get("name") == "consistent"
        is_unit = is_consistent or family(env) in ("robomimic", "isaaclab")
        policy = {**policy, "scale": "unit" if is_unit else "learned"}
    if name == "reversible_flow" and policy.get("head_sizes") is None:
        policy = {**policy, "head_sizes": () if transformer is not None or family(env) == "robomimic" else (64,)}
    if isinstance(transformer, Mapping) and transformer.get("chunk_size") is None:
        task = env.get("options", {}) if isinstance(env, Mapping) else {}
        default = 4 if family(env) == "robomimic" else 1
        size = task.get("chunk_size", default) if isinstance(task, Mapping) else default
        policy = {**policy, "transformer": {**transformer, "chunk_size": size}}
    return {**given, "policy": policy}
