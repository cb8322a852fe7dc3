# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Fills in the options of a policy that are null because they follow from its task, before the schema checks them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchrl_genpo.config.env_options import family

__all__ = ["with_policy_of_task"]

PAIR_FLOWS = ("reversible_flow", "genpo")
LEARNS_NOISE = ("gaussian", *PAIR_FLOWS)


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
