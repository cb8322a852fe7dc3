# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Builds policies, critics and losses by the names of a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule, TensorDictModuleBase
from torch import nn
from torchrl.envs import EnvBase, ExplorationType
from torchrl.modules import MLP, IndependentNormal, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss

from torchrl_genpo.baselines import (
    AlternatingCoupling,
    CouplingSolver,
    DummyFlowLoss,
    FPOActor,
    FPOLoss,
    JacobianFlowActor,
    PolicyFlowActor,
    PolicyFlowLoss,
    SelfAdjointCoupling,
)
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
from torchrl_genpo.modules import ReversibleFlowActor
from torchrl_genpo.objectives import GenPOLoss

__all__ = [
    "PAIR_FLOWS",
    "POLICIES",
    "SURROGATE_FLOWS",
    "gaussian_actor",
    "has_exact_density",
    "make_actor",
    "make_critic",
    "make_loss",
    "make_solver",
    "make_start",
    "noise_parameters",
    "observation_keys",
    "pretrained_module",
]

ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": nn.ELU, "mish": Mish, "relu": nn.ReLU, "tanh": nn.Tanh}
"""Activations by their name in a configuration."""

NOISE_PARAMETERS = ("log_scale", "log_tau", "state_independent_scale")

SOLVERS: dict[str, Callable[..., PairSolver]] = {
    "two_step": ReversibleSolver.two_step,
    "three_step": ReversibleSolver.three_step,
    "alternating_coupling": AlternatingCoupling,
    "self_adjoint_coupling": SelfAdjointCoupling,
}
"""Solvers of a pair, by their name in a configuration."""

PAIR_FLOWS: dict[str, tuple[type[ReversibleFlowActor], type[PairSolver]]] = {
    "reversible_flow": (ReversibleFlowActor, ReversibleSolver),
    "dummy_flow": (ReversibleFlowActor, AlternatingCoupling),
    "dummy_flow_jacobian": (JacobianFlowActor, AlternatingCoupling),
    "self_adjoint_flow": (ReversibleFlowActor, SelfAdjointCoupling),
}
"""Policies with an exact density of a pair: their actor, and the kind of its solver."""

SURROGATE_FLOWS: dict[str, type[FPOActor] | type[PolicyFlowActor]] = {"fpo": FPOActor, "policyflow": PolicyFlowActor}
"""Policies without one."""

POLICIES = ("gaussian", *PAIR_FLOWS, *SURROGATE_FLOWS)


def _choose(kind: str, name: str, choices: Iterable[str]) -> str:
    if name not in choices:
        raise ValueError(f"Unknown {kind} {name!r}; choose from {', '.join(sorted(choices))}.")
    return name


def _check_options(kind: str, function: Callable[..., Any], options: Iterable[str], given: Iterable[str] = ()) -> None:
    """Raises a ``ValueError`` for an option that a function does not have, or that is ``given`` to it otherwise."""
    names = [name for name in inspect.signature(function).parameters if name not in given]
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise ValueError(f"{kind} has no option {', '.join(unknown)}; it has {', '.join(names) or 'none'}.")


def make_solver(name: str, **kwargs: Any) -> PairSolver:
    """Builds a solver of :data:`SOLVERS` by its name."""
    solver = SOLVERS[_choose("solver", name, SOLVERS)]
    _check_options(f"solver {name}", solver, kwargs)
    return solver(**kwargs)


def make_start(
    name: str,
    velocity: VelocityMLP | VelocityTransformer,
    solver: PairSolver,
    scale: str = "unit",
    **kwargs: Any,
) -> Start:
    """Builds the start called ``independent`` or ``consistent`` to fit a velocity and a solver.

    Keyword arguments are those of :class:`~torchrl_genpo.IndependentStart` and
    :class:`~torchrl_genpo.ConsistentStart`, sizes excepted.
    """
    _choose("start", name, ("consistent", "independent"))
    sizes = ("scale", "action_dim", "context_dim", "num_memories")
    _check_options(f"start {name}", ConsistentStart if name == "consistent" else IndependentStart, kwargs, sizes)
    if scale != "unit" or kwargs.get("learn_tau") == "per_dimension":
        kwargs["action_dim"] = velocity.action_dim
    if scale == "state_dependent":
        kwargs["context_dim"] = velocity.context_dim
    if name == "consistent":
        return ConsistentStart(scale=scale, **kwargs)  # type: ignore[arg-type]
    return IndependentStart(scale, num_memories=solver.num_memories, **kwargs)  # type: ignore[arg-type]


def _mlp(in_features: int, out_features: int, hidden_sizes: Sequence[int], activation: str, gain: float) -> MLP:
    """An MLP with orthogonal weights, zero biases and the given gain of the last layer."""
    activation_class = ACTIVATIONS[_choose("activation", activation, ACTIVATIONS)]
    mlp = MLP(
        in_features=in_features,
        out_features=out_features,
        num_cells=list(hidden_sizes),
        activation_class=activation_class,
    )
    linears = [m for m in mlp if isinstance(m, nn.Linear)]
    for layer in linears:
        nn.init.orthogonal_(layer.weight, gain if layer is linears[-1] else 2**0.5)
        nn.init.zeros_(layer.bias)
    return mlp


def gaussian_actor(loc: nn.Module, action_dim: int) -> ProbabilisticActor:
    """TorchRL's stock normal policy with a state-independent scale.

    Args:
        loc (nn.Module): from observations ``[..., n]`` to means ``[..., action_dim]``.
        action_dim (int): size of the action.
    """
    net = nn.Sequential(loc, AddStateIndependentNormalScale(action_dim))
    return ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        return_log_prob=True,
        default_interaction_type=ExplorationType.RANDOM,
    )


def make_actor(
    env: EnvBase,
    name: str = "reversible_flow",
    *,
    hidden_sizes: Sequence[int] = (64, 64),
    activation: str = "mish",
    time_embedding_dim: int = 32,
    transformer: Mapping[str, Any] | None = None,
    solver: PairSolver | None = None,
    start: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> TensorDictModuleBase:
    """Builds the policy of an environment.

    Args:
        env (EnvBase): gives the sizes of observation and action, and the device.
        name (str): one of :data:`POLICIES`: ``gaussian`` is TorchRL's stock normal policy with a state-independent
            scale and the same trunk, ``reversible_flow`` ours, the others are those of
            :mod:`torchrl_genpo.baselines`.

    Keyword Args:
        hidden_sizes (sequence of int): the trunk.
        activation (str): a name from :data:`ACTIVATIONS`.
        time_embedding_dim (int): flow only, see :class:`~torchrl_genpo.VelocityMLP`.
        transformer (mapping, optional): flow only, arguments of :class:`~torchrl_genpo.VelocityTransformer`, which
            then takes the place of the MLP (trunk and activation are not used).
        solver (PairSolver, optional): of :data:`PAIR_FLOWS` only, and of the kind that is listed there.
        start (mapping, optional): of :data:`PAIR_FLOWS` only, arguments of :func:`make_start`. Defaults to an
            independent start with a learned scale.
        options (mapping, optional): of :data:`SURROGATE_FLOWS` only, further arguments of their actor.

    Raises:
        ValueError: for an unknown name or option, or one that does not fit the others.
    """
    _choose("policy", name, POLICIES)
    if name not in PAIR_FLOWS and (solver is not None or start is not None):
        raise ValueError(f"policy={name} has neither solver nor start: leave them out.")
    if name not in SURROGATE_FLOWS and options:
        raise ValueError(f"policy={name} has no options, got {dict(options)}.")
    obs_dim, action_dim = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    if name == "gaussian":
        # small last layer: the first policy is the same everywhere, as the flow's is
        loc = _mlp(obs_dim, action_dim, hidden_sizes, activation, gain=0.01)
        return gaussian_actor(loc, action_dim).to(env.device)
    velocity: VelocityMLP | VelocityTransformer
    if transformer is not None:
        _check_options("policy.transformer", VelocityTransformer, transformer, ("obs_dim", "action_dim"))
        velocity = VelocityTransformer(obs_dim, action_dim, time_embedding_dim=time_embedding_dim, **transformer)
    else:
        activation_class = ACTIVATIONS[_choose("activation", activation, ACTIVATIONS)]
        velocity = VelocityMLP(obs_dim, action_dim, hidden_sizes, activation_class, time_embedding_dim)
    if name in SURROGATE_FLOWS:
        _check_options("policy.options", SURROGATE_FLOWS[name], options or {}, ("velocity",))
        return SURROGATE_FLOWS[name](velocity, **(options or {})).to(env.device)
    actor_class, solver_class = PAIR_FLOWS[name]
    solver = solver_class() if solver is None else solver  # type: ignore[call-arg]
    if not isinstance(solver, solver_class):
        raise ValueError(f"policy={name} needs the solver {solver_class.__name__}, got {solver}: leave solver= out.")
    start = {"name": "independent", "scale": "learned"} if start is None else start
    return actor_class(velocity, solver=solver, start=make_start(velocity=velocity, solver=solver, **start)).to(
        env.device
    )


def has_exact_density(actor: TensorDictModuleBase) -> bool:
    """Whether a policy knows the density of its pair (action, memory), and can estimate that of the action alone."""
    return isinstance(actor, ReversibleFlowActor)


def noise_parameters(loss: ClipPPOLoss) -> list[nn.Parameter]:
    """The parameters of the policy's noise that no network computes: a start's scale and tau, a Gaussian's deviation.

    They are logarithms, for which the small rate of a pre-trained network would be none at all.
    """
    named = loss.actor_network_params.flatten_keys(".").items()
    return [parameter for name, parameter in named if name.rpartition(".")[2] in NOISE_PARAMETERS]


def observation_keys(env: EnvBase) -> list[str]:
    """What actor and critic read: ``observation`` and, where the environment has one, ``critic_observation``."""
    return [key for key in ("observation", "critic_observation") if key in env.observation_spec.keys()]


def make_critic(env: EnvBase, hidden_sizes: Sequence[int] = (64, 64), activation: str = "tanh") -> ValueOperator:
    """Builds the value network of an environment; it reads ``critic_observation`` where there is one."""
    key = observation_keys(env)[-1]
    mlp = _mlp(env.observation_spec[key].shape[-1], 1, hidden_sizes, activation, gain=1.0)
    return ValueOperator(mlp, in_keys=[key]).to(env.device)


def make_loss(actor: TensorDictModuleBase, critic: TensorDictModule, **kwargs: Any) -> ClipPPOLoss:
    """The objective of a policy: :class:`~torchrl_genpo.GenPOLoss` for our flow, else stock PPO or a baseline's own."""
    loss_class: type[ClipPPOLoss] = ClipPPOLoss
    if isinstance(actor, ReversibleFlowActor):
        loss_class = DummyFlowLoss if isinstance(actor.solver, CouplingSolver) else GenPOLoss
    elif isinstance(actor, FPOActor):
        loss_class = FPOLoss
    elif isinstance(actor, PolicyFlowActor):
        loss_class = PolicyFlowLoss
    # TorchRL's losses take any keyword and drop what they do not know
    constructors = [vars(base)["__init__"] for base in loss_class.__mro__[:-1] if "__init__" in vars(base)]
    known = {name for constructor in constructors for name in inspect.signature(constructor).parameters}
    unknown = sorted(set(kwargs) - known)
    if unknown:
        raise ValueError(f"{loss_class.__name__} has no option {', '.join(unknown)}.")
    return loss_class(actor, critic, **kwargs)


def pretrained_module(actor: TensorDictModuleBase) -> nn.Module:
    """The part of a policy that pre-training shapes: the velocity of a flow, whatever its start; else all of it."""
    return getattr(actor, "velocity", actor)
