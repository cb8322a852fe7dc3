# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""From the options of a run to its policy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from tensordict.nn import (
    AddStateIndependentNormalScale,
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torchrl.envs import EnvBase, ExplorationType
from torchrl.modules import IndependentNormal

from torchrl_genpo.baselines import AlternatingCoupling, FPOActor, PolicyFlowActor
from torchrl_genpo.config.policy_options import GaussianScale
from torchrl_genpo.config.schema import PretrainOptions, TrainOptions
from torchrl_genpo.flow import (
    ConsistentStart,
    IndependentStart,
    PairSolver,
    ReversibleSolver,
    Start,
    SteeredStart,
    VelocityMLP,
    VelocityTransformer,
)
from torchrl_genpo.modules import ActionScale, ReversibleFlowActor, RunningNormalizer, Squash, flow_of
from torchrl_genpo.training.encoders import FEATURES, PIXELS, make_encoder, make_mlp

__all__ = [
    "ACTIVATIONS",
    "SURROGATE_FLOWS",
    "RunOptions",
    "gaussian_steps",
    "make_policy",
    "policy_key",
    "reversible_flow",
]

RunOptions = TrainOptions | PretrainOptions

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
}
SURROGATE_FLOWS: dict[str, Callable[..., TensorDictModuleBase]] = {"fpo": FPOActor, "policyflow": PolicyFlowActor}
"""The policies without a density, by their name in the options."""

LEAST_STD = 1e-4

TRUNK = "trunk"
"""The key of what the network before a flow's head writes."""


def make_policy(options: RunOptions, env: EnvBase) -> TensorDictSequential:
    """Builds the policy of a run, untrained: a normaliser, an encoder, the actor, and the scale of its actions.

    There is an encoder where the options name one. The normaliser is left out where observations stay as they are, and
    the scale where the task's actions are in ``[-1, 1]`` or unbounded. RoboMimic's tasks always have both, which
    pre-training sets to the ranges of its data. What ``policy.trainable`` leaves out is frozen.
    """
    chosen, is_pretrained = options.policy, options.env.name.startswith("robomimic/")
    key = policy_key(options, env)
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
    kept = [k for k in dict.fromkeys(written) if k not in ("loc", "scale", "scale_tril", TRUNK)]
    policy = sequence(*modules, selected_out_keys=kept).to(env.device)
    if chosen.trainable != "all":
        flow = flow_of(policy)
        policy.requires_grad_(False)
        (flow.start if chosen.trainable == "start" else flow).requires_grad_(True)
    return policy


def policy_key(options: RunOptions, env: EnvBase) -> str:
    """What the policy reads: pixels by convolutions, else the vector of observations."""
    wanted = PIXELS if options.policy.encoder == "cnn" else "observation"
    if wanted not in env.observation_spec.keys():
        raise ValueError(
            f"{options.env.name} offers no {wanted!r}, which policy.encoder={options.policy.encoder or 'null'} reads: "
            "policy.encoder=cnn reads pixels, all others read a vector."
        )
    return wanted


def _action_scale(options: RunOptions, env: EnvBase, is_pretrained: bool) -> ActionScale | None:
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


def _actor_steps(
    options: RunOptions, size: int, action_dim: int, key: str, action_key: str
) -> list[TensorDictModuleBase]:
    chosen: Any = options.policy
    if chosen.name == "gaussian":
        # small last layer: the first policy is the same everywhere, as the flow's is
        outputs = 2 * action_dim if chosen.scale == "state_dependent" else action_dim
        network = make_mlp(size, (*chosen.hidden_sizes, outputs), ACTIVATIONS[chosen.activation], gain=0.01)
        return gaussian_steps(
            network,
            action_dim,
            scale=chosen.scale,
            in_key=key,
            action_key=action_key,
            initial_std=chosen.initial_std,
            min_std=chosen.min_std,
        )
    modules: list[TensorDictModuleBase] = []
    velocity: VelocityMLP | VelocityTransformer
    keys: dict[str, Any] = {"action_key": action_key}
    loc: nn.Module | None = None
    if chosen.head_sizes:
        trunk = make_mlp(size, chosen.hidden_sizes, ACTIVATIONS[chosen.activation], gain=2**0.5, activate=True)
        modules.append(TensorDictModule(trunk, in_keys=[key], out_keys=[TRUNK]))
        key, size = TRUNK, chosen.hidden_sizes[-1]
        loc = make_mlp(size, (action_dim,), nn.Identity, gain=0.01)
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
    return [*modules, reversible_flow(options, velocity, loc, in_keys=[key], **keys)]


def reversible_flow(
    options: RunOptions, velocity: Any, loc: nn.Module | None = None, **keys: Any
) -> ReversibleFlowActor:
    """The actor that integrates a velocity by the solver and from the start of the options, about a mean ``loc``."""
    settings = options.solver.model_dump()
    solver = SOLVERS[settings.pop("name")](**settings)
    start = _start(options, velocity)
    width = float(start.width(solver).mean())  # at first all numbers have the same
    gaussian = _gaussian(options, velocity.action_dim, loc, width)
    return ReversibleFlowActor(velocity, solver=solver, start=start, gaussian=gaussian, **keys)


def _start(options: RunOptions, velocity: Any) -> Start:
    chosen, action_dim = options.start, velocity.action_dim
    start: Start = IndependentStart()
    if chosen.tau is not None:
        start = ConsistentStart(chosen.tau, action_dim if chosen.learn_tau else None)
    if chosen.steering_sizes:
        start = SteeredStart(start, action_dim, velocity.context_dim, chosen.steering_sizes)
    return start


def _gaussian(options: RunOptions, action_dim: int, loc: nn.Module | None, width: float) -> nn.Module | None:
    """The Gaussian policy that a flow bends: a mean, of zero if there is none, and its scale."""
    chosen: Any = options.policy
    if chosen.scale == "learned":
        scale = learned_scale(action_dim, chosen.initial_std, chosen.min_std)
    elif loc is None:
        return None
    else:  # that of the unit noise, once and for all
        scale = AddStateIndependentNormalScale(action_dim, init_value=math.log(width), make_param=False)
    return nn.Sequential(_Zeros(action_dim) if loc is None else loc, scale)


class _Zeros(nn.Module):
    """The mean ``[..., d]`` of a policy without one."""

    def __init__(self, action_dim: int) -> None:
        super().__init__()
        self.action_dim = action_dim

    def forward(self, observation: Tensor) -> Tensor:
        return observation.new_zeros(*observation.shape[:-1], self.action_dim)


def learned_scale(action_dim: int, initial_std: float, min_std: float) -> AddStateIndependentNormalScale:
    """A deviation for each number of an action, which no network computes.

    A floor is added, for a bound would have no gradient below it and keep what touched it for ever.
    """
    if min_std:
        return AddStateIndependentNormalScale(action_dim, scale_mapping=f"biased_softplus_{initial_std}_{min_std}")
    return AddStateIndependentNormalScale(action_dim, init_value=math.log(initial_std))


def gaussian_steps(
    network: nn.Module,
    action_dim: int,
    *,
    scale: GaussianScale = "learned",
    in_key: str = "observation",
    action_key: str = "action",
    initial_std: float = 1.0,
    min_std: float = 0.0,
) -> list[TensorDictModuleBase]:
    """TorchRL's stock normal policy, as the modules of a sequence.

    Args:
        network (nn.Module): from observations ``[..., n]`` to means ``[..., action_dim]``, or, for a state-dependent
            scale, ``[..., 2 * action_dim]``.
        action_dim (int): size of the action.

    Keyword Args:
        scale (str, optional): ``"learned"``, a parameter for each number of an action; ``"covariance"``, of all numbers
            together, which cannot be exported; or ``"state_dependent"``, by the other half of what the network returns.
            Defaults to ``"learned"``.
        in_key (str, optional): of the observation. Defaults to ``"observation"``.
        action_key (str, optional): of the action. Defaults to ``"action"``.
        initial_std (float, optional): the standard deviation at first. Defaults to ``1``.
        min_std (float, optional): what the standard deviation stays above (with a covariance, of a number given those
            before it). Defaults to ``0``.
    """
    extractor: nn.Module
    keys, distribution = ["loc", "scale"], IndependentNormal
    if scale == "state_dependent":
        # TensorDict's own floor is 0.01
        mapping = f"biased_softplus_{initial_std}_{max(min_std, LEAST_STD)}"
        extractor = NormalParamExtractor(scale_mapping=mapping)
    elif scale == "covariance":
        extractor = AddCovariance(action_dim, initial_std, min_std)
        keys, distribution = ["loc", "scale_tril"], MultivariateNormal
    else:
        extractor = learned_scale(action_dim, initial_std, min_std)
    net = nn.Sequential(network, extractor)
    return [
        TensorDictModule(net, in_keys=[in_key], out_keys=keys),
        ProbabilisticTensorDictModule(
            in_keys=keys,
            out_keys=[action_key],
            distribution_class=distribution,
            return_log_prob=True,
            log_prob_key="action_log_prob",
            default_interaction_type=ExplorationType.RANDOM,
        ),
    ]


class AddCovariance(nn.Module):
    """Adds to means ``[..., d]`` a triangular root ``[..., d, d]`` of a covariance that does not depend on the state.

    Args:
        action_dim (int): ``d``.
        initial_std (float): the standard deviation at first, without correlations.
        min_std (float): what the standard deviation of a number given those before it stays above.

    Examples:
        >>> loc, root = AddCovariance(2, 0.5, 1e-4)(torch.zeros(8, 2))
        >>> root.shape, bool((root[0] - 0.5 * torch.eye(2)).abs().max() < 1e-6)
        (torch.Size([8, 2, 2]), True)
    """

    def __init__(self, action_dim: int, initial_std: float, min_std: float) -> None:
        super().__init__()
        self.min_std = min_std
        self.log_diagonal = nn.Parameter(torch.full((action_dim,), math.log(initial_std - min_std)))
        self.below = nn.Parameter(torch.zeros(action_dim, action_dim))

    def forward(self, loc: Tensor) -> tuple[Tensor, Tensor]:
        diagonal = (self.log_diagonal.exp() + self.min_std).clamp_min(LEAST_STD)
        # the rows of the unit triangle are in units of their own deviation
        root = diagonal.unsqueeze(-1) * (self.below.tril(-1) + torch.eye(len(diagonal)).to(diagonal))
        return loc, root.expand(*loc.shape, -1)
