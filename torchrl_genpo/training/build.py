# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""From the options of a run to its parts: environment, policy, critic and objective."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Sequence
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
from torchrl.modules import MLP, IndependentNormal, ValueOperator
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
    Mish,
    PairSolver,
    ReversibleSolver,
    Start,
    VelocityMLP,
    VelocityTransformer,
)
from torchrl_genpo.modules import ActionScale, ReversibleFlowActor, RunningNormalizer, Squash, flow_of, steps
from torchrl_genpo.objectives import GenPOLoss

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

ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": nn.ELU, "mish": Mish, "relu": nn.ReLU, "tanh": nn.Tanh}
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
    atexit.register(close_quietly, env)  # Python would wait for its worker processes for ever
    return env


def observation_keys(env: EnvBase) -> list[str]:
    """What policy and critic read: ``observation`` and, where the environment has one, ``critic_observation``."""
    return [key for key in ("observation", "critic_observation") if key in env.observation_spec.keys()]


def normalizers(*policies: nn.Module) -> list[RunningNormalizer]:
    """The normalisers of policy and critic, each once."""
    found = (module for policy in policies for module in policy.modules() if isinstance(module, RunningNormalizer))
    return list({id(module): module for module in found}.values())


def make_policy(options: Options, env: EnvBase) -> TensorDictSequential:
    """Builds the policy of a run, untrained: a normaliser, the actor, and the scale of its actions.

    The normaliser is left out where observations stay as they are, and the scale where the task's actions are in
    ``[-1, 1]`` or unbounded. RoboMimic's tasks always have both, which pre-training sets to the ranges of its data.
    """
    chosen, is_pretrained = options.policy, options.env.name.startswith("robomimic/")
    key, size = "observation", env.observation_spec["observation"].shape[-1]
    modules: list[TensorDictModuleBase] = []
    if options.env.normalize_observation or is_pretrained:
        modules.append(RunningNormalizer(size, in_key=key))
        key = modules[-1].out_keys[0]
    scale = _action_scale(options, env, is_pretrained)
    action_key = "action" if scale is None else "raw_action"
    actor = _actor_steps(options, size, env.action_spec.shape[-1], key, action_key)
    modules += [*actor, *([] if scale is None else [scale])]
    written = [k for module in modules[-len(actor) - (scale is not None) :] for k in module.out_keys]
    sequence = TensorDictSequential if chosen.name in SURROGATE_FLOWS else ProbabilisticTensorDictSequential
    kept = [k for k in dict.fromkeys(written) if k not in ("loc", "scale")]
    return sequence(*modules, selected_out_keys=kept).to(env.device)


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
        loc = _mlp(size, action_dim, chosen.hidden_sizes, chosen.activation, gain=0.01)
        return gaussian_steps(loc, action_dim, in_key=key, action_key=action_key)
    velocity: VelocityMLP | VelocityTransformer
    if chosen.transformer is not None:
        velocity = VelocityTransformer(
            size, action_dim, time_embedding_dim=chosen.time_embedding_dim, **chosen.transformer.model_dump()
        )
    else:
        activation = ACTIVATIONS[chosen.activation]
        velocity = VelocityMLP(size, action_dim, chosen.hidden_sizes, activation, chosen.time_embedding_dim)
    if chosen.name in SURROGATE_FLOWS:
        actor_class = SURROGATE_FLOWS[chosen.name]
        return [actor_class(velocity, **chosen.options.model_dump(), in_keys=[key], action_key=action_key)]
    return [reversible_flow(options, velocity, in_keys=[key], action_key=action_key)]


def reversible_flow(options: Options, velocity: Any, **keys: Any) -> ReversibleFlowActor:
    """The actor that integrates a velocity by the solver and from the start of the options."""
    settings = options.solver.model_dump()
    solver = SOLVERS[settings.pop("name")](**settings)
    actor_class = PAIR_FLOWS[options.policy.name]
    return actor_class(velocity, solver=solver, start=_start(options, velocity), **keys)


def _start(options: Options, velocity: Any) -> Start:
    settings = options.start.model_dump()
    is_consistent = settings.pop("name") == "consistent"
    if settings["scale"] == "unit":
        settings.pop("initial_scale")
    if settings["scale"] != "unit" or settings.get("learn_tau") == "per_dimension":
        settings["action_dim"] = velocity.action_dim
    if settings["scale"] == "state_dependent":
        settings["context_dim"] = velocity.context_dim
    return ConsistentStart(**settings) if is_consistent else IndependentStart(**settings)


def gaussian_steps(
    loc: nn.Module, action_dim: int, *, in_key: str = "observation", action_key: str = "action"
) -> list[TensorDictModuleBase]:
    """TorchRL's stock normal policy with a state-independent scale, as the modules of a sequence.

    Args:
        loc (nn.Module): from observations ``[..., n]`` to means ``[..., action_dim]``.
        action_dim (int): size of the action.

    Keyword Args:
        in_key (str, optional): of the observation. Defaults to ``"observation"``.
        action_key (str, optional): of the action. Defaults to ``"action"``.
    """
    net = nn.Sequential(loc, AddStateIndependentNormalScale(action_dim))
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


def _mlp(in_features: int, out_features: int, hidden_sizes: Sequence[int], activation: str, gain: float) -> MLP:
    """An MLP with orthogonal weights, zero biases and the given gain of the last layer."""
    mlp = MLP(
        in_features=in_features,
        out_features=out_features,
        num_cells=list(hidden_sizes),
        activation_class=ACTIVATIONS[activation],
    )
    linears = [m for m in mlp if isinstance(m, nn.Linear)]
    for layer in linears:
        nn.init.orthogonal_(layer.weight, gain if layer is linears[-1] else 2**0.5)
        nn.init.zeros_(layer.bias)
    return mlp


def make_critic(options: TrainOptions, env: EnvBase, policy: nn.Module) -> TensorDictSequential:
    """Builds the value network; it reads ``critic_observation`` where there is one, and else shares the normaliser."""
    key = observation_keys(env)[-1]
    size = env.observation_spec[key].shape[-1]
    modules: list[TensorDictModuleBase] = []
    if options.env.normalize_observation or normalizers(policy):
        shared = [module for module in normalizers(policy) if module.in_keys == [key]]
        modules += shared or [RunningNormalizer(size, in_key=key, out_key=f"normalized_{key}")]
        key = modules[-1].out_keys[0]
    mlp = _mlp(size, 1, options.critic.hidden_sizes, options.critic.activation, gain=1.0)
    return TensorDictSequential(*modules, ValueOperator(mlp, in_keys=[key]), selected_out_keys=["state_value"]).to(
        env.device
    )


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
        kwargs |= {"ratio": chosen.ratio}
        if chosen.ratio == "action":
            kwargs["num_memories"] = chosen.num_memories
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
