"""Sigma follows a measured quantity within its limits."""

from __future__ import annotations

import pytest
import torch

from torchrl_genpo import ReversibleSolver
from torchrl_genpo.flow import AdaptiveSigma


def test_sigma_moves_towards_one_above_the_band_and_away_below_it():
    solver = ReversibleSolver(5, 0.75)
    adaptive = AdaptiveSigma(solver, 0.02)
    adaptive.step(0.02)
    assert solver.sigma == pytest.approx(0.75)
    adaptive.step(0.1)
    assert 0.75 < solver.sigma < 0.8 and solver.log_abs_det(1) == pytest.approx(5 * _log(solver.sigma))
    for _ in range(100):
        adaptive.step(0.1)
    assert solver.sigma == pytest.approx(0.95)
    for _ in range(100):
        adaptive.step(0.0)
    assert solver.sigma == pytest.approx(0.5)


def _log(x):
    import math

    return math.log(x)


def test_state_is_restored():
    solver, other = ReversibleSolver(5, 0.75), ReversibleSolver(5, 0.75)
    adaptive = AdaptiveSigma(solver, 0.02)
    adaptive.step(1.0)
    AdaptiveSigma(other, 0.02).load_state_dict(adaptive.state_dict())
    assert other.sigma == solver.sigma and other.coefficients == solver.coefficients


@pytest.mark.parametrize(
    ("solver", "kwargs", "message"),
    [
        (ReversibleSolver.three_step(), {}, "two-step solver"),
        (ReversibleSolver(2, [0.5, 0.6]), {}, "one sigma"),
        (ReversibleSolver(5, 1.0), {}, r"sigma in \(0, 1\)"),
        (ReversibleSolver(5, 0.75), {"target": 0}, "target must be positive"),
        (ReversibleSolver(5, 0.75), {"min_sigma": 0.8}, "min_sigma <= sigma"),
        (ReversibleSolver(100, 0.9), {"min_sigma": 0.5}, "cannot be inverted"),
    ],
)
def test_nonsense_is_refused(solver, kwargs, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveSigma(solver, **{"target": 0.02, **kwargs})


def test_states_have_one_dtype_whatever_sigma_becomes():
    solver = ReversibleSolver(20, 0.95)
    assert solver.state_dtype(torch.float32) == torch.float32
    AdaptiveSigma(solver, 0.02)
    assert solver.state_dtype(torch.float32) == torch.float64


def test_a_quantity_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        AdaptiveSigma(ReversibleSolver(), 0.02).step(float("nan"))
