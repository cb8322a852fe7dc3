"""Solvers know their order, stability and precision, and refuse what they cannot invert."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from torchrl_genpo import ReversibleSolver


@pytest.mark.parametrize(
    ("num_steps", "sigma", "message"),
    [
        (0, 0.75, "num_steps must be an integer"),
        (2.5, 0.75, "num_steps must be an integer"),
        (5, 0.0, "must not be 0"),
        (5, float("nan"), "finite"),
        (5, float("inf"), "finite"),
        (5, 1.5, r"\(-1, 1\]"),
        (5, -1.0, r"\(-1, 1\]"),
    ],
)
def test_solver_refuses_settings_it_cannot_invert(num_steps, sigma, message):
    with pytest.raises(ValueError, match=message):
        ReversibleSolver(num_steps, sigma)


def test_solver_names_the_largest_step_count_that_float64_can_hold():
    with pytest.raises(ValueError, match=r"sigma=0\.5 with num_steps=60 .* at most (\d+)") as error:
        ReversibleSolver(60, 0.5)
    largest = int(str(error.value).split("at most ")[1].split(";")[0])
    ReversibleSolver(largest, 0.5)
    with pytest.raises(ValueError):
        ReversibleSolver(largest + 1, 0.5)


def test_state_is_float64_where_float32_cannot_hold_the_inversion():
    assert ReversibleSolver(5, 0.75).state_dtype(torch.float32) == torch.float32
    assert ReversibleSolver(20, 0.5).state_dtype(torch.float32) == torch.float64
    solver = ReversibleSolver(20, 0.5)
    velocity = lambda x, t: torch.sin(x.float() + t)  # noqa: E731
    torch.manual_seed(8)
    x, memory = torch.randn(2, 100, 3)
    pair = solver.integrate(velocity, x, memory)
    assert pair[0].dtype == torch.float64
    recovered = solver.invert(velocity, *pair)
    assert (recovered[0] - x).abs().max() < 1e-6
    assert (recovered[1] - memory).abs().max() < 1e-6


RULES = {
    "paper": lambda n: ReversibleSolver(n, 0.75),
    "midpoint": lambda n: ReversibleSolver(n, 1.0),
    "schedule": lambda n: ReversibleSolver(n, [0.6, 0.9, 0.8][:n] + [0.7] * (n - 3)),
    "three_step(0.5)": lambda n: ReversibleSolver.three_step(0.5, n),
    "three_step(1)": lambda n: ReversibleSolver.three_step(1.0, n),
    "three_step(2)": lambda n: ReversibleSolver.three_step(2.0, n),
}


@pytest.mark.parametrize("rule", RULES)
def test_error_falls_with_the_stated_order(rule):
    # x' = cos(t) x, x(t) = exp(sin t), started from exact states
    exact = lambda t: torch.tensor([math.exp(math.sin(t))], dtype=torch.float64)  # noqa: E731
    errors, steps = [], [128, 256, 512]
    for n in steps:
        # a float64 inversion is refused for so many steps, the integration alone is what converges here
        solver = RULES[rule](4)
        states = [exact(-j / n) for j in range(solver.num_memories + 1)]
        solver._gains = [gain * 4 / n for gain in solver._gains]
        for i in range(n):
            states = solver.step(i % 4, states, math.cos(i / n) * states[0])
        errors.append((states[0] - exact(1.0)).abs().item())
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(abs(slope - RULES[rule](4).order) < 0.15 for slope in slopes), slopes


@pytest.mark.parametrize("rule", RULES)
def test_roots_are_those_of_the_characteristic_polynomial(rule):
    solver = RULES[rule](4)
    for step, coefficients in enumerate(solver.coefficients):
        roots = solver.roots(step)
        assert abs(roots[0] - 1) < 1e-9 and all(abs(z) <= 1 for z in roots[1:])
        for z in roots:
            k = len(coefficients)
            assert abs(z**k - sum(a * z ** (k - 1 - j) for j, a in enumerate(coefficients))) < 1e-9


@pytest.mark.parametrize("rule", RULES)
def test_rounding_grows_no_faster_than_stated(rule):
    num_steps = 15
    solver = RULES[rule](num_steps)
    torch.manual_seed(0)
    pair = torch.randn(1000, 3, dtype=torch.float64), torch.randn(1000, 3 * solver.num_memories, dtype=torch.float64)
    # of the map without a velocity, which is linear: a perturbation of the end and what becomes of it
    moved = [half + 1e-8 * torch.randn_like(half) for half in pair]
    back = [torch.cat(solver.invert(lambda x, t: torch.zeros_like(x), *p), -1) for p in (pair, moved)]
    growth = (
        (back[0] - back[1]).norm(dim=-1) / torch.cat([a - b for a, b in zip(pair, moved, strict=True)], -1).norm(dim=-1)
    ).max()
    assert 0.5 * solver.error_amplification < growth < 1.001 * solver.error_amplification
    assert 0.1 * solver.step_amplification**num_steps < growth < 10 * solver.step_amplification**num_steps


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ((0.5, 0.4), "Inconsistent.*sum to 0.9"),
        ((1.0, 0.0), "last coefficient must not be 0"),
        ((1.0,), "at least two"),
        ((float("nan"), 1.0), "finite"),
        ((3.0, -2.0), "Unstable.*moduli 1, 2;"),
        ((2.0, -1.0), "Unstable"),
        ((-0.5, 1.0, 0.5), None),
    ],
)
def test_inconsistent_and_unstable_coefficients_are_refused(coefficients, message):
    if message is None:
        assert ReversibleSolver(3, coefficients=coefficients).num_memories == 2
        return
    with pytest.raises(ValueError, match=message):
        ReversibleSolver(3, coefficients=coefficients)


@pytest.mark.parametrize("a", [0, 3, -1, float("nan"), "1"])
def test_three_step_outside_its_stable_interval_is_refused(a):
    with pytest.raises(ValueError, match=r"a in \(0, 3\)"):
        ReversibleSolver.three_step(a)


def test_three_step_is_strictly_stable_on_its_whole_interval():
    for a in torch.linspace(0.02, 2.98, 75).tolist():
        assert max(abs(z) for z in ReversibleSolver.three_step(a, 1).roots()[1:]) < 1


def test_schedule_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="2 values for num_steps=3"):
        ReversibleSolver(3, [0.5, 0.6])


def test_memory_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match="2 memories for each state"):
        ReversibleSolver.three_step().integrate(lambda x, t: x, torch.zeros(4, 3), torch.zeros(4, 3))


def test_unknown_gradient_is_refused():
    with pytest.raises(ValueError, match="'stored' or 'reversible', got 'adjoint'"):
        ReversibleSolver(gradient="adjoint")


def test_a_refused_sigma_leaves_the_old_one():
    solver = ReversibleSolver(5, 0.75)
    with pytest.raises(ValueError, match=r"sigma=0.0001 with num_steps=5 cannot be inverted"):
        solver.sigma = 1e-4
    assert repr(solver) == repr(ReversibleSolver(5, 0.75)) and solver.coefficients == [(0.25, 0.75)] * 5
