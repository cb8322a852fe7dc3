"""The solver has its order and precision, and refuses what it cannot invert."""

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
        (5, "1", "finite number"),
        (5, True, "finite number"),
        (5, [0.5, 0.6, 0.5, 0.6, 0.5], "finite number"),
        (5, 1e-4, r"sigma=0.0001 with num_steps=5 cannot be inverted .* at most 1"),
        (1, 5e-324, "cannot be inverted"),
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


@pytest.mark.parametrize(("sigma", "order"), [(0.75, 1), (0.5, 1), (-0.7, 1), (1.0, 2)])
def test_error_falls_with_the_stated_order(sigma, order):
    # x' = cos(t) x, x(t) = exp(sin t), started from exact states
    exact = lambda t: torch.tensor([math.exp(math.sin(t))], dtype=torch.float64)  # noqa: E731
    errors, steps = [], [128, 256, 512]
    for n in steps:
        # a float64 inversion is refused for so many steps, the integration alone is what converges here
        solver = ReversibleSolver(4, sigma)
        solver._gain *= 4 / n
        x, memory = exact(0.0), exact(-1 / n)
        for i in range(n):
            x, memory = solver.step(x, memory, math.cos(i / n) * x)
        errors.append((x - exact(1.0)).abs().item())
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(abs(slope - order) < 0.15 for slope in slopes), slopes


@pytest.mark.parametrize("sigma", [0.3, 0.75, 0.95, 1.0, -0.7, -0.999])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 11])
def test_error_amplification_is_the_largest_singular_value_of_the_inverse(num_steps, sigma):
    solver = ReversibleSolver(num_steps, sigma)

    def inverse(pair):
        return torch.cat(solver.invert(lambda x, t: torch.zeros_like(x), *pair.split(1)))

    matrix = torch.autograd.functional.jacobian(inverse, torch.zeros(2, dtype=torch.float64))
    assert solver.error_amplification == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-12)


@pytest.mark.parametrize("sigma", [0.75, 1.0, 0.5, -0.7])
def test_rounding_grows_no_faster_than_stated(sigma):
    num_steps = 15
    solver = ReversibleSolver(num_steps, sigma)
    torch.manual_seed(0)
    pair = torch.randn(2, 1000, 3, dtype=torch.float64)
    # of the map without a velocity, which is linear: a perturbation of the end and what becomes of it
    moved = pair + 1e-8 * torch.randn_like(pair)
    back = [torch.cat(solver.invert(lambda x, t: torch.zeros_like(x), *p), -1) for p in (pair, moved)]
    growth = ((back[0] - back[1]).norm(dim=-1) / torch.cat([*(pair - moved)], -1).norm(dim=-1)).max()
    assert 0.5 * solver.error_amplification < growth < 1.001 * solver.error_amplification
    assert 0.1 * abs(sigma) ** -num_steps < growth < 10 * abs(sigma) ** -num_steps


def test_memory_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match=r"the same shape, got \(4, 3\) and \(4, 6\)"):
        ReversibleSolver().integrate(lambda x, t: x, torch.zeros(4, 3), torch.zeros(4, 6))


def test_sigma_cannot_be_moved_after_densities_were_stored():
    solver = ReversibleSolver(5, 0.75)
    with pytest.raises(AttributeError):
        solver.sigma = 0.5
    assert solver.sigma == 0.75 and repr(solver) == "ReversibleSolver(num_steps=5, sigma=0.75)"


def test_unknown_gradient_is_refused():
    with pytest.raises(ValueError, match="'stored' or 'reversible', got 'adjoint'"):
        ReversibleSolver(gradient="adjoint")
