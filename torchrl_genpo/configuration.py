# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""From the configuration of a run (``torchrl_genpo/config``) to its environment and networks."""

from __future__ import annotations

import atexit
import math
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase
from torchrl.modules import ValueOperator
from torchrl.objectives import ClipPPOLoss

from torchrl_genpo.envs import close_quietly, make_env
from torchrl_genpo.flow import AdaptiveSigma
from torchrl_genpo.models import (
    PAIR_FLOWS,
    SURROGATE_FLOWS,
    has_exact_density,
    make_actor,
    make_critic,
    make_loss,
    make_solver,
)

__all__ = [
    "as_dict",
    "build_actor",
    "build_env",
    "build_models",
    "make_adaptive_sigma",
]


def quotient(number: int, divisor: int) -> int:
    """Samples of a mini-batch."""
    if not 0 < divisor <= number:
        raise ValueError(f"a batch of {number} frames cannot be split into {divisor} mini-batches.")
    return number // divisor


# sizes of a batch by the number of environments
OmegaConf.register_new_resolver("product", lambda *factors: math.prod(factors))
OmegaConf.register_new_resolver("quotient", quotient)
# what one policy needs and the other does not take: a flow that is given an entropy bonus would be refused
OmegaConf.register_new_resolver("for_gaussian", lambda policy, value, flow=0.0: value if policy == "gaussian" else flow)
# `resume` continues in its own folder: no new one is made for it
OmegaConf.register_new_resolver("run_dir", lambda resume, default: resume or default)


def as_dict(cfg: DictConfig) -> dict[str, Any]:
    """A node of a configuration as plain dictionaries, its references resolved."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def build_env(cfg: DictConfig, num_envs: int, seed: int, **kwargs: Any) -> EnvBase:
    """The environment of a run; closed when Python ends."""
    env = make_env(
        cfg.env.name,
        num_envs,
        cfg.device,
        seed,
        normalize_observation=cfg.env.normalize_observation,
        scale_reward=cfg.env.scale_reward,
        gamma=cfg.loss.gamma,
        **(as_dict(cfg.env.options) if cfg.env.get("options") else {}),
        **kwargs,
    )
    atexit.register(close_quietly, env)  # Python would wait for its worker processes for ever
    return env


def build_actor(cfg: DictConfig, env: EnvBase) -> TensorDictModule:
    """The policy of a run, untrained."""
    policy = {key: value for key, value in as_dict(cfg.policy).items() if key not in ("init", "loss")}
    if cfg.policy.name not in PAIR_FLOWS:
        return make_actor(env, **policy)
    solver = make_solver(**{key: value for key, value in as_dict(cfg.solver).items() if key != "adapt"})
    return make_actor(env, **policy, solver=solver, start=as_dict(cfg.start))


def build_models(cfg: DictConfig, env: EnvBase) -> tuple[TensorDictModule, ValueOperator, ClipPPOLoss]:
    """Policy, value network and objective of a run, untrained."""
    actor = build_actor(cfg, env)
    critic = make_critic(env, cfg.critic.hidden_sizes, cfg.critic.activation)
    decay = cfg.loss.get("proximal_decay")
    if decay is not None and cfg.policy.name in SURROGATE_FLOWS:
        raise ValueError(f"loss.proximal_decay={decay} needs a policy with a density; {cfg.policy.name} has none.")
    ratio = cfg.loss.get("ratio", "pair")
    if ratio != "pair" and not has_exact_density(actor):
        raise ValueError(f"loss.ratio={ratio} is of flows with a memory; policy={cfg.policy.name} has none.")
    loss = make_loss(
        actor,
        critic,
        delay_actor=decay is not None,
        clip_epsilon=cfg.loss.clip_epsilon,
        entropy_bonus=cfg.loss.entropy_coeff > 0,
        entropy_coeff=cfg.loss.entropy_coeff,
        critic_coeff=cfg.loss.critic_coeff,
        loss_critic_type="l2",
        clip_value=cfg.loss.clip_value,
        normalize_advantage=cfg.loss.normalize_advantage,
        **({"ratio": cfg.loss.ratio, "num_memories": cfg.loss.num_memories} if has_exact_density(actor) else {}),
        **(cfg.policy.get("loss") or {}),
    )
    return actor, critic, loss


def make_adaptive_sigma(cfg: DictConfig, actor: TensorDictModule) -> AdaptiveSigma | None:
    """The schedule of sigma, where the run has one."""
    adapt = cfg.solver.get("adapt")
    if not has_exact_density(actor) or adapt is None or adapt.quantity is None:
        return None
    if adapt.quantity not in ("kl", "inversion_error"):
        raise ValueError(f"Unknown solver.adapt.quantity {adapt.quantity!r}; choose from kl, inversion_error.")
    return AdaptiveSigma(actor.solver, adapt.target, min_sigma=adapt.min_sigma, max_sigma=adapt.max_sigma)
