# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""From the options of a run to its parts: environment, policy, critic and objective."""

from __future__ import annotations

import atexit
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tensordict.nn import (
    AddStateIndependentNormalScale,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torch import nn
from torchrl.envs import EnvBase, ExplorationType
from torchrl.modules import IndependentNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss

from torchrl_genpo.baselines import (
    AlternatingCoupling,
    CouplingSolver,
    DummyActionLoss,
    FPOActor,
    FPOLoss,
    JacobianFlowActor,
    PolicyFlowActor,
    PolicyFlowLoss,
    SelfAdjointCoupling,
)
from torchrl_genpo.config.env_options import GymnasiumOptions
from torchrl_genpo.config.schema import PretrainOptions, TrainOptions
from torchrl_genpo.envs import DiscountedReturn, close_quietly, make_env
from torchrl_genpo.flow import (
    ConsistentStart,
    IndependentStart,
    PairSolver,
    ReversibleSolver,
    Start,
    VelocityMLP,
    VelocityTransformer,
)
from torchrl_genpo.modules import ActionScale, ReversibleFlowActor, RunningNormalizer, Squash, flow_of, steps
from torchrl_genpo.objectives import GenPOLoss
from torchrl_genpo.training.encoders import FEATURES, PIXELS, make_encoder, make_mlp, recurrent_transforms

__all__ = [
    "build_env",
    "build_models",
    "gaussian_steps",
    "make_critic",
    "make_loss",
    "make_policy",
    "noise_parameters",
    "normalizers",
    "observation_keys",
    "reversible_flow",
    "without_scale",
]

Options = TrainOptions | PretrainOptions

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
SOLVERS: dict[str, Callable[..., PairSolver]] = {
    "two_step": ReversibleSolver,
    "alternating_coupling": AlternatingCoupling,
    "self_adjoint_coupling": SelfAdjointCoupling,
}
PAIR_FLOWS: dict[str, type[ReversibleFlowActor]] = {
    "reversible_flow": ReversibleFlowActor,
    "genpo": ReversibleFlowActor,
    "genpo_jacobian": JacobianFlowActor,
    "self_adjoint_flow": ReversibleFlowActor,
}
"""The policies with an exact density of a pair, by their name in the options."""

SURROGATE_FLOWS: dict[str, Callable[..., TensorDictModuleBase]] = {"fpo": FPOActor, "policyflow": PolicyFlowActor}
"""The policies without a density, by their name in the options."""

NOISE_PARAMETERS = ("log_scale", "log_tau", "state_independent_scale")

LEAST_STD = 1e-4

TRUNK = "trunk"
"""The key of what the network before a flow's head writes."""


def build_env(options: Options, num_envs: int, seed: int, **kwargs: Any) -> EnvBase:
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
    atexit.register(close_quietly, env)  # Python would wait for its worker processes for ever
    return env


def observation_keys(env: EnvBase) -> list[str]:
    """What policy and critic read of an environment: ``observation``, or ``pixels``, and ``critic_observation``."""
    there = env.observation_spec.keys()
    first = "observation" if "observation" in there else PIXELS
    return [first, "critic_observation"] if "critic_observation" in there else [first]


def normalizers(*policies: nn.Module) -> list[RunningNormalizer]:
    """The normalisers of policy and critic, each once."""
    found = (module for policy in policies for module in policy.modules() if isinstance(module, RunningNormalizer))
    return list({id(module): module for module in found}.values())


def make_policy(options: Options, env: EnvBase) -> TensorDictSequential:
    """Builds the policy of a run, untrained: a normaliser, an encoder, the actor, and the scale of its actions.

    There is an encoder where the options name one. The normaliser is left out where observations stay as they are, and
    the scale where the task's actions are in ``[-1, 1]`` or unbounded. RoboMimic's tasks always have both, which
    pre-training sets to the ranges of its data.
    """
    chosen, is_pretrained = options.policy, options.env.name.startswith("robomimic/")
    key = _policy_key(options, env)
    if unread := {"observation", PIXELS} & set(env.observation_spec.keys()) - {key}:
        warnings.warn(
            f"{options.env.name}: policy.encoder={chosen.encoder or 'null'} reads {key!r} alone, so the policy does "
            f"not read {unread.pop()!r}, which the task observes as well.",
            stacklevel=2,
        )
    shape = env.observation_spec[key].shape[len(env.batch_size) :]
    modules: list[TensorDictModuleBase] = []
    if key != PIXELS and (options.env.normalize_observation or is_pretrained):
        modules.append(RunningNormalizer(shape[-1], in_key=key))
        key = modules[-1].out_keys[0]
    size, encoder = shape[-1], []
    if chosen.encoder is not None:
        activation = ACTIVATIONS[chosen.activation]
        encoder = make_encoder(chosen.encoder, chosen.encoder_sizes, activation, key, shape)
        key, size = FEATURES, chosen.encoder_sizes[-1]
    scale = _action_scale(options, env, is_pretrained)
    action_key = "action" if scale is None else "raw_action"
    actor = _actor_steps(options, size, env.action_spec.shape[-1], key, action_key)
    last = [*actor, *([] if scale is None else [scale])]
    states = [k for module in encoder for k in module.out_keys if isinstance(k, tuple)]
    modules += [*encoder, *last]
    written = [*states, *(k for module in last for k in module.out_keys)]
    sequence = TensorDictSequential if chosen.name in SURROGATE_FLOWS else ProbabilisticTensorDictSequential
    kept = [k for k in dict.fromkeys(written) if k not in ("loc", "scale", TRUNK)]
    return sequence(*modules, selected_out_keys=kept).to(env.device)


def _policy_key(options: Options, env: EnvBase) -> str:
    """What the policy reads: pixels by convolutions, else the vector of observations."""
    wanted = PIXELS if options.policy.encoder == "cnn" else "observation"
    if wanted not in env.observation_spec.keys():
        raise ValueError(
            f"{options.env.name} offers {', '.join(env.observation_spec.keys())}, and no {wanted!r}, which "
            f"policy.encoder={options.policy.encoder} reads: policy.encoder=cnn reads pixels, all others read a vector."
        )
    return wanted


def _action_scale(options: Options, env: EnvBase, is_pretrained: bool) -> ActionScale | None:
    """From the actions of a network, of order one, to those of the task, where that changes them."""
    size = env.action_spec.shape[-1]
    if is_pretrained:
        return ActionScale(torch.zeros(size), torch.ones(size))
    space = env.action_spec.space
    low, high = (getattr(space, name, None) for name in ("low", "high"))
    if low is not None and high is not None:
        low, high = (bound.reshape(-1, size)[0].cpu() for bound in (low, high))
    if low is None or high is None or not (high - low).isfinite().all():
        if options.policy.squash:
            raise ValueError(
                f"policy.squash=true needs a task whose actions have bounds; {options.env.name} has {space}."
            )
        return None
    if options.policy.squash:
        return Squash(low, high)
    is_unit = bool((low == -1).all() and (high == 1).all())
    return None if is_unit else ActionScale((high + low) / 2, (high - low) / 2)


def _actor_steps(options: Options, size: int, action_dim: int, key: str, action_key: str) -> list[TensorDictModuleBase]:
    chosen: Any = options.policy
    if chosen.name == "gaussian":
        # small last layer: the first policy is the same everywhere, as the flow's is
        loc = make_mlp(size, (*chosen.hidden_sizes, action_dim), ACTIVATIONS[chosen.activation], gain=0.01)
        return gaussian_steps(
            loc,
            action_dim,
            in_key=key,
            action_key=action_key,
            initial_std=chosen.initial_std,
            min_std=chosen.min_std,
        )
    modules: list[TensorDictModuleBase] = []
    velocity: VelocityMLP | VelocityTransformer
    keys: dict[str, Any] = {"action_key": action_key}
    if chosen.head_sizes:
        trunk = make_mlp(size, chosen.hidden_sizes, ACTIVATIONS[chosen.activation], gain=2**0.5, activate=True)
        modules.append(TensorDictModule(trunk, in_keys=[key], out_keys=[TRUNK]))
        key, size = TRUNK, chosen.hidden_sizes[-1]
        keys["loc"] = make_mlp(size, (action_dim,), nn.Identity, gain=0.01)
    if chosen.transformer is not None:
        velocity = VelocityTransformer(
            size, action_dim, time_embedding_dim=chosen.time_embedding_dim, **chosen.transformer.model_dump()
        )
    else:
        activation = ACTIVATIONS[chosen.activation]
        cells = chosen.head_sizes or chosen.hidden_sizes
        velocity = VelocityMLP(size, action_dim, cells, activation, chosen.time_embedding_dim)
    if chosen.name in SURROGATE_FLOWS:
        actor_class = SURROGATE_FLOWS[chosen.name]
        return [actor_class(velocity, **chosen.options.model_dump(), in_keys=[key], action_key=action_key)]
    return [*modules, reversible_flow(options, velocity, in_keys=[key], **keys)]


def reversible_flow(options: Options, velocity: Any, **keys: Any) -> ReversibleFlowActor:
    """The actor that integrates a velocity by the solver and from the start of the options."""
    settings = options.solver.model_dump()
    solver = SOLVERS[settings.pop("name")](**settings)
    actor_class = PAIR_FLOWS[options.policy.name]
    return actor_class(velocity, solver=solver, start=_start(options, velocity, solver), **keys)


def _start(options: Options, velocity: Any, solver: PairSolver) -> Start:
    policy: Any = options.policy
    settings = options.start.model_dump()
    is_consistent = settings.pop("name") == "consistent"
    if settings["scale"] != "unit" or settings.get("learn_tau") == "per_dimension":
        settings["action_dim"] = velocity.action_dim
    if settings["scale"] == "state_dependent":
        settings["context_dim"] = velocity.context_dim
    start = ConsistentStart(**settings) if is_consistent else IndependentStart(**settings)
    if start.scale != "unit":
        start.set_first_std(policy.initial_std, solver, policy.min_std)
    return start


def gaussian_steps(
    loc: nn.Module,
    action_dim: int,
    *,
    in_key: str = "observation",
    action_key: str = "action",
    initial_std: float = 1.0,
    min_std: float = 0.0,
) -> list[TensorDictModuleBase]:
    """TorchRL's stock normal policy with a state-independent scale, as the modules of a sequence.

    Args:
        loc (nn.Module): from observations ``[..., n]`` to means ``[..., action_dim]``.
        action_dim (int): size of the action.

    Keyword Args:
        in_key (str, optional): of the observation. Defaults to ``"observation"``.
        action_key (str, optional): of the action. Defaults to ``"action"``.
        initial_std (float, optional): the standard deviation at first. Defaults to ``1``.
        min_std (float, optional): the least standard deviation. Defaults to ``0``.
    """
    scale = AddStateIndependentNormalScale(
        action_dim, scale_lb=max(min_std, LEAST_STD), init_value=math.log(initial_std)
    )
    net = nn.Sequential(loc, scale)
    return [
        TensorDictModule(net, in_keys=[in_key], out_keys=["loc", "scale"]),
        ProbabilisticTensorDictModule(
            in_keys=["loc", "scale"],
            out_keys=[action_key],
            distribution_class=IndependentNormal,
            return_log_prob=True,
            log_prob_key="action_log_prob",
            default_interaction_type=ExplorationType.RANDOM,
        ),
    ]


def make_critic(options: TrainOptions, env: EnvBase, policy: nn.Module) -> TensorDictSequential:
    """Builds the value network; it shares normaliser and encoder or reads ``critic_observation`` where there is one."""
    key = observation_keys(env)[-1]
    is_privileged = key == "critic_observation"
    if not is_privileged:
        key = _policy_key(options, env)
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
    if name in PAIR_FLOWS:
        kwargs |= {"ratio": chosen.ratio, "action_entropy_coeff": chosen.action_entropy_coeff}
        if chosen.ratio == "action":
            kwargs["num_memories"] = chosen.num_memories
        if chosen.reference_coeff:
            kwargs |= {"reference": policy, "reference_coeff": chosen.reference_coeff}
        is_doubled = isinstance(flow_of(policy).solver, CouplingSolver)
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


def noise_parameters(loss: ClipPPOLoss) -> list[nn.Parameter]:
    """The parameters of the policy's noise that no network computes: a start's scale and tau, a Gaussian's deviation.

    They are logarithms, for which the small rate of a pre-trained network would be none at all.
    """
    return [parameter for name, parameter in _named(loss) if name.rpartition(".")[2] in NOISE_PARAMETERS]


def _named(loss: ClipPPOLoss) -> Iterator[tuple[str, nn.Parameter]]:
    return loss.actor_network_params.flatten_keys(".").items()
