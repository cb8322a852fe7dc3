"""Hypothesis strategies over everything that a reversible flow is made of.

What is drawn is small, so that thousands of examples take minutes; shapes, dtypes, sigmas and keys are drawn over
all of the range that the classes promise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale
from torch import nn

from torchrl_genpo import (
    ConsistentStart,
    IndependentStart,
    ReversibleFlowActor,
    ReversibleSolver,
    SteeredStart,
    VelocityMLP,
    VelocityTransformer,
)
from torchrl_genpo.baselines import AlternatingCoupling
from torchrl_genpo.flow import PairSolver, Start

OBS_DIM = 3
MAX_STEPS = 8
seeds = st.integers(0, 2**31 - 1)
dims = st.integers(1, 4)
dtypes = st.sampled_from([torch.float32, torch.float64])
batches = st.lists(st.integers(1, 4), max_size=2).map(tuple)
batches_or_empty = st.lists(st.integers(0, 3), max_size=2).map(tuple)
names = st.text("abcxyz_", min_size=1, max_size=4)
keys = st.one_of(names, st.tuples(names, names))
numbers = st.floats(allow_nan=True, allow_infinity=True)


def largest_steps(make: Callable[[int], PairSolver]) -> int:
    """Steps of a rule, up to ``MAX_STEPS``, that float64 can invert."""
    for steps in range(1, MAX_STEPS + 1):
        try:
            make(steps)
        except ValueError:
            return steps - 1
    return MAX_STEPS


@st.composite
def sigmas(draw: st.DrawFn, smallest: float = 0.05) -> float:
    """Weights of the memory in ``(-1, 1]``, not 0."""
    size = draw(st.floats(smallest, 1.0))
    return -size if draw(st.booleans()) and size < 1 else size


@st.composite
def reversible_solvers(draw: st.DrawFn) -> ReversibleSolver:
    """The paper's rule, with every sigma."""
    make = partial(ReversibleSolver, sigma=draw(sigmas()))
    return make(draw(st.integers(1, largest_steps(make))))


@st.composite
def coupling_solvers(draw: st.DrawFn) -> AlternatingCoupling:
    """GenPO's."""
    mixing = draw(st.floats(0.5, 1.0))
    make = partial(AlternatingCoupling, mixing=mixing)
    return make(draw(st.integers(1, largest_steps(make))))


pair_solvers = st.one_of(reversible_solvers(), coupling_solvers())


def randomized(module: nn.Module, std: float = 0.3) -> nn.Module:
    """The module with parameters that are not nearly zero anywhere."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn_like(parameter))
    return module


@st.composite
def velocities(draw: st.DrawFn, d: int | None = None) -> VelocityMLP | VelocityTransformer:
    """Both networks, their weights drawn from the seed that the test has set."""
    if draw(st.booleans()):
        action_dim = draw(dims) if d is None else d
        hidden = draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
        return randomized(VelocityMLP(OBS_DIM, action_dim, hidden, time_embedding_dim=draw(st.sampled_from([4, 8]))))
    chunk = draw(st.integers(1, 3)) if d is None else draw(st.sampled_from([k for k in range(1, d + 1) if d % k == 0]))
    action_dim = chunk * draw(st.integers(1, 2)) if d is None else d
    return randomized(VelocityTransformer(OBS_DIM, action_dim, chunk, 8, 1, 2, time_embedding_dim=4))


@st.composite
def starts(draw: st.DrawFn, velocity: nn.Module) -> Start:
    """Every start that fits a velocity."""
    d = velocity.action_dim
    kind = draw(st.sampled_from(["independent", "consistent", "steered"]))
    if kind == "steered":
        return randomized(SteeredStart(IndependentStart(), d, velocity.context_dim, (8,)))
    if kind == "independent":
        return IndependentStart()
    return randomized(ConsistentStart(draw(st.floats(0.05, 3.0)), draw(st.sampled_from([None, d]))))


@st.composite
def actors(
    draw: st.DrawFn, solvers: st.SearchStrategy = pair_solvers, nested: bool = True, bare: bool = False
) -> ReversibleFlowActor:
    """Policies of any solver, start, network and keys; bare ones bend no Gaussian."""
    torch.manual_seed(draw(seeds))
    solver, velocity = draw(solvers), draw(velocities())
    start, gaussian = draw(starts(velocity)), None
    if not bare and draw(st.booleans()):
        scale = AddStateIndependentNormalScale(velocity.action_dim, init_value=draw(st.floats(-1.0, 1.0)))
        gaussian = nn.Sequential(nn.Linear(velocity.in_features, velocity.action_dim), scale)
    if not nested:
        return ReversibleFlowActor(velocity, solver=solver, start=start, gaussian=gaussian)
    prefixes = [draw(st.sampled_from([(), ("agent",), ("agents", "first")])) for _ in range(4)]
    observation, action, memory, log_prob = (
        (*prefix, name) if prefix else name
        for prefix, name in zip(prefixes, ("observation", "act", "memory", "log_prob"), strict=True)
    )
    return ReversibleFlowActor(
        velocity,
        solver=solver,
        start=start,
        gaussian=gaussian,
        in_keys=[observation],
        action_key=action,
        memory_key=memory,
        log_prob_key=log_prob,
    )


def observations(actor: nn.Module, batch: tuple[int, ...], dtype: torch.dtype = torch.float32) -> TensorDict:
    """Random observations under the keys of an actor."""
    data = TensorDict({}, batch_size=batch)
    for key in actor.in_keys:
        data.set(key, torch.randn(*batch, OBS_DIM, dtype=dtype))
    return data
