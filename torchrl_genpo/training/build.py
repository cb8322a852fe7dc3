# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""From the options of a run to its parts: environment, critic and objective, beside the policy."""

from __future__ import annotations

import atexit
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.envs import EnvBase
from torchrl.modules import ValueOperator
from torchrl.objectives import ClipPPOLoss

from torchrl_genpo.baselines import AlternatingCoupling, DummyActionLoss, FPOLoss, PolicyFlowLoss
from torchrl_genpo.config.env_options import GymnasiumOptions
from torchrl_genpo.config.schema import TrainOptions
from torchrl_genpo.envs import DiscountedReturn, close_quietly, make_env
from torchrl_genpo.modules import ActionScale, RunningNormalizer, flow_of, steps
from torchrl_genpo.objectives import GenPOLoss
from torchrl_genpo.training.encoders import FEATURES, PIXELS, make_mlp, recurrent_transforms
from torchrl_genpo.training.policy import ACTIVATIONS, SURROGATE_FLOWS, RunOptions, make_policy, policy_key

__all__ = [
    "build_env",
    "build_models",
    "head_parameters",
    "make_critic",
    "make_loss",
    "noise_parameters",
    "normalizers",
    "observation_keys",
    "parameter_groups",
    "without_scale",
]

_open: WeakSet[EnvBase] = WeakSet()
"""The environments that were built and may still be open."""
NOISE_PARAMETERS = ("log_scale", "log_tau", "state_independent_scale", "log_diagonal", "below")


def build_env(options: RunOptions, num_envs: int, seed: int, **kwargs: Any) -> EnvBase:
    """Builds the environment of a run; it is closed when Python ends.

    Args:
        options (TrainOptions or PretrainOptions): of the run.
        num_envs (int): batch size.
        seed (int): of the environments.
        **kwargs: further keywords of :func:`~torchrl_genpo.envs.make_env`, such as ``render``.
    """
    chosen = options.env
    family = {} if chosen.options is None else chosen.options.model_dump()
    if isinstance(chosen, GymnasiumOptions):
        family["max_episode_steps"] = chosen.max_episode_steps
    if isinstance(options, TrainOptions) and chosen.name.startswith("robomimic/"):
        family["gamma"] = options.loss.gamma
    env = make_env(chosen.name, num_envs, options.device, seed, **family, **kwargs)
    if isinstance(options, TrainOptions) and chosen.scale_reward:
        env.append_transform(DiscountedReturn(options.loss.gamma))
    for transform in recurrent_transforms(options.policy.encoder, options.policy.encoder_sizes[-1]):
        env.append_transform(transform)
    _open.add(env)
    return env


@atexit.register
def _close_all() -> None:
    """Closes what is still open when Python ends, which would wait for worker processes for ever."""
    for env in list(_open):
        close_quietly(env)


def observation_keys(env: EnvBase) -> list[str]:
    """What policy and critic read of an environment: ``observation``, or ``pixels``, and ``critic_observation``."""
    there = env.observation_spec.keys()
    first = "observation" if "observation" in there else PIXELS
    return [first, "critic_observation"] if "critic_observation" in there else [first]


def normalizers(*policies: nn.Module) -> list[RunningNormalizer]:
    """The normalisers of policy and critic, each once."""
    found = (module for policy in policies for module in policy.modules() if isinstance(module, RunningNormalizer))
    return list({id(module): module for module in found}.values())


def make_critic(options: TrainOptions, env: EnvBase, policy: nn.Module) -> TensorDictSequential:
    """Builds the value network; it shares normaliser and encoder or reads ``critic_observation`` where there is one."""
    key = observation_keys(env)[-1]
    is_privileged = key == "critic_observation"
    if not is_privileged:
        key = policy_key(options, env)
    size = env.observation_spec[key].shape[-1]
    modules: list[TensorDictModuleBase] = []
    if options.policy.encoder is not None and not is_privileged:
        modules = _until(steps(policy), FEATURES)
        key, size = FEATURES, options.policy.encoder_sizes[-1]
    elif options.env.normalize_observation or normalizers(policy):
        shared = [module for module in normalizers(policy) if module.in_keys == [key]]
        modules += shared or [RunningNormalizer(size, in_key=key, out_key=f"normalized_{key}")]
        key = modules[-1].out_keys[0]
    mlp = make_mlp(size, (*options.critic.hidden_sizes, 1), ACTIVATIONS[options.critic.activation], gain=1.0)
    return TensorDictSequential(*modules, ValueOperator(mlp, in_keys=[key]), selected_out_keys=["state_value"]).to(
        env.device
    )


def _until(modules: list[Any], key: str) -> list[Any]:
    """The modules up to the one that writes a key first."""
    last = next(n for n, module in enumerate(modules) if module.out_keys[0] == key)
    return modules[: last + 1]


def make_loss(options: TrainOptions, policy: TensorDictSequential, critic: TensorDictModuleBase) -> ClipPPOLoss:
    """The objective of a policy: GenPOLoss for reversible flows, and otherwise stock PPO or a baseline's own."""
    chosen, name = options.loss, options.policy.name
    kwargs: dict[str, Any] = {
        "clip_epsilon": chosen.clip_epsilon,
        "entropy_bonus": chosen.entropy_coeff > 0,
        "entropy_coeff": chosen.entropy_coeff,
        "critic_coeff": chosen.critic_coeff,
        "loss_critic_type": "l2",
        "clip_value": chosen.clip_value,
        "normalize_advantage": chosen.normalize_advantage,
        "delay_actor": chosen.proximal_decay is not None,
    }
    if options.policy.loss is not None:
        kwargs |= options.policy.loss.model_dump()
    if options.policy.has_pair:
        kwargs["anchor_coeff"] = options.anchor.coeff or 0.0
        if chosen.reference_coeff:
            kwargs |= {"reference": policy, "reference_coeff": chosen.reference_coeff}
        is_doubled = isinstance(flow_of(policy).solver, AlternatingCoupling)
        return (DummyActionLoss if is_doubled else GenPOLoss)(policy, critic, **kwargs)
    if name in SURROGATE_FLOWS:
        return (FPOLoss if name == "fpo" else PolicyFlowLoss)(policy, critic, **kwargs)
    scored = without_scale(policy)
    loss = ClipPPOLoss(scored, critic, **kwargs)
    loss.set_keys(action=scored.dist_sample_keys[0])
    return loss


def without_scale(policy: TensorDictSequential) -> TensorDictSequential:
    """The part of a stock policy that has a density, of the unscaled action.

    TensorDict would build a composite distribution for a sequence whose last module is not probabilistic.
    """
    kept = [step for step in steps(policy) if not isinstance(step, ActionScale)]
    return policy if len(kept) == len(steps(policy)) else ProbabilisticTensorDictSequential(*kept)


def build_models(options: TrainOptions, env: EnvBase) -> tuple[TensorDictSequential, TensorDictSequential, ClipPPOLoss]:
    """Policy, value network and objective of a run, untrained."""
    policy = make_policy(options, env)
    critic = make_critic(options, env, policy)
    return policy, critic, make_loss(options, policy, critic)


def noise_parameters(policy: nn.Module) -> list[nn.Parameter]:
    """The parameters of a policy's noise that no network computes: the deviation of actions, a start's tau.

    They are logarithms, for which the small rate of a pre-trained network would be none at all.
    """
    return [value for name, value in policy.named_parameters() if name.rpartition(".")[2] in NOISE_PARAMETERS]


def head_parameters(policy: nn.Module) -> list[nn.Parameter]:
    """The trained parameters of a policy's velocity, which bends the noise of its Gaussian where it has one."""
    named = policy.named_parameters()
    return [value for name, value in named if ".velocity." in f".{name}" and value.requires_grad]


def parameter_groups(
    parameters: Iterable[nn.Parameter], lr: float, *own: tuple[list[nn.Parameter], float | None]
) -> list[dict[str, Any]]:
    """The groups of an optimizer: the parameters without those that have a rate of their own, then these."""
    apart: list[dict[str, Any]] = [{"params": group, "lr": rate} for group, rate in own if group and rate is not None]
    taken = {id(parameter) for each in apart for parameter in each["params"]}
    return [{"params": [p for p in parameters if id(p) not in taken], "lr": lr}, *apart]
