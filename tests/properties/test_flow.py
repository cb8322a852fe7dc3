"""Solvers, starts, velocities and the distribution, for whatever they may be built from."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from torchrl_genpo import ReversibleFlow, ReversibleSolver
from torchrl_genpo.flow import ConditionedVelocity
from torchrl_genpo.flow.solver import TOLERANCE

from .strategies import (
    OBS_DIM,
    batches,
    batches_or_empty,
    dims,
    dtypes,
    numbers,
    pair_solvers,
    reversible_solvers,
    seeds,
    starts,
    velocities,
)


def smooth(d: int, dtype: torch.dtype = torch.float64):
    """A bounded nonlinear velocity, the same for a seed."""
    first, last = torch.randn(d, 8, dtype=dtype), torch.randn(8, d, dtype=dtype) / 3
    return lambda x, t: torch.tanh(x.to(dtype) @ first + 3 * t) @ last


def pairs(d: int, batch: tuple[int, ...], dtype: torch.dtype = torch.float64):
    return torch.randn(2, *batch, d, dtype=dtype).unbind(0)


@st.composite
def flows(draw: st.DrawFn, batch=batches, solvers=pair_solvers, dtype=torch.float64) -> ReversibleFlow:
    torch.manual_seed(draw(seeds))
    solver, velocity, shape = draw(solvers), draw(velocities()), draw(batch)
    start = draw(starts(velocity))
    velocity, start = velocity.to(dtype), start.to(dtype)
    with torch.no_grad():
        context = velocity.condition(torch.randn(*shape, OBS_DIM, dtype=dtype))
    return ReversibleFlow(
        ConditionedVelocity(velocity, context), velocity.action_dim, solver, start, shape, dtype=dtype
    )


@given(seeds, pair_solvers, dims, batches_or_empty)
def test_invert_undoes_integrate_up_to_the_stated_amplification_of_rounding(seed, solver, d, batch):
    torch.manual_seed(seed)
    velocity, noise = smooth(d), pairs(d, batch)
    ends = solver.integrate(velocity, *noise)
    size = max([1.0, *(t.abs().max().item() for t in (*ends, *noise) if t.numel())])
    bound = 200 * solver.error_amplification * torch.finfo(torch.float64).eps * size
    for recovered, original in zip(solver.invert(velocity, *ends), noise, strict=True):
        assert recovered.shape == original.shape and recovered.dtype == torch.float64
        assert not original.numel() or (recovered - original).abs().max() <= bound


@given(seeds, pair_solvers, dims, batches)
def test_float32_noise_is_recovered_within_the_promised_tolerance(seed, solver, d, batch):
    torch.manual_seed(seed)
    velocity, noise = smooth(d, torch.float32), pairs(d, batch, torch.float32)
    ends = solver.integrate(velocity, *noise)
    assert ends[0].dtype == solver.state_dtype(torch.float32)
    size = max(1.0, *(t.abs().max().item() for t in (*ends, *noise)))
    for recovered, original in zip(solver.invert(velocity, *ends), noise, strict=True):
        # a few roundings a step, each of which the tolerance is for one
        assert (recovered - original).abs().max() <= 4 * solver.num_steps * TOLERANCE * size


@given(seeds, pair_solvers, dims)
def test_log_abs_det_is_that_of_the_autograd_jacobian(seed, solver, d):
    torch.manual_seed(seed)
    velocity = smooth(d)
    noise = torch.cat(pairs(d, ()))

    def flat(z):
        return torch.cat(solver.integrate(velocity, *z.tensor_split([d])))

    slogdet = torch.linalg.slogdet(torch.autograd.functional.jacobian(flat, noise)).logabsdet.item()
    assert math.isclose(slogdet, solver.log_abs_det(d), abs_tol=1e-6 * max(1.0, abs(slogdet)))


@given(seeds, pair_solvers, dims, batches)
def test_the_memory_of_another_shape_is_refused_with_both_shapes(seed, solver, d, batch):
    x = torch.randn(*batch, d)
    memory = torch.randn(*batch, d + 1)
    for function in (solver.integrate, solver.invert):
        with pytest.raises(ValueError, match=r"x and memory must have") as raised:
            function(smooth(d, torch.float32), x, memory)
        assert str(tuple(memory.shape)) in str(raised.value)


@given(st.data(), seeds, dims, batches)
def test_a_start_maps_noise_there_and_back_with_the_log_determinant_that_it_states(data, seed, d, batch):
    torch.manual_seed(seed)
    solver = data.draw(reversible_solvers())
    velocity = data.draw(velocities(d)).double()
    start = data.draw(starts(velocity)).double()
    context = velocity.condition(torch.randn(OBS_DIM, dtype=torch.float64)).detach()
    noise = pairs(d, batch)
    conditioned = ConditionedVelocity(velocity, context)
    there = start.from_noise(conditioned, *noise, solver=solver)
    back = start.to_noise(ConditionedVelocity(velocity, context), *there, solver=solver)
    for recovered, original in zip(back, noise, strict=True):
        torch.testing.assert_close(recovered, original, rtol=1e-9, atol=1e-9)

    def flat(z):
        fresh = ConditionedVelocity(velocity, context)
        return torch.cat(start.from_noise(fresh, *z.tensor_split([d]), solver=solver))

    z = torch.cat(pairs(d, ()))
    slogdet = torch.linalg.slogdet(torch.autograd.functional.jacobian(flat, z)).logabsdet
    stated = torch.as_tensor(start.log_abs_det(conditioned, d, solver=solver), dtype=torch.float64)
    torch.testing.assert_close(stated, slogdet, rtol=1e-8, atol=1e-8)


@given(flows(), st.lists(st.integers(1, 3), max_size=1).map(tuple))
def test_the_density_of_a_sample_is_the_one_that_was_returned_with_it(flow, sample_shape):
    (action, memory), log_prob = flow.rsample_and_log_prob(sample_shape)
    shape = (*sample_shape, *flow.batch_shape)
    assert action.shape == (*shape, flow.action_dim) and log_prob.shape == shape
    assert memory.shape == action.shape
    # what the inversion amplifies, and a narrow memory amplifies again
    tolerance = 1e-7 * max(1.0, flow.solver.error_amplification / 1e3)
    size = max(1.0, log_prob.detach().abs().max().item())
    torch.testing.assert_close(flow.log_prob(action, memory), log_prob, rtol=0, atol=tolerance * size)


@given(flows(batch=st.integers(1, 5).map(lambda n: (n,))))
def test_the_density_of_a_permuted_batch_is_permuted_and_a_batch_equals_its_single_rows(flow):
    action, memory = flow.sample()
    whole = flow.log_prob(action, memory)
    order = torch.randperm(len(action))
    context = flow.velocity.context

    def part(index):
        velocity = ConditionedVelocity(flow.velocity.velocity, context[index])
        shape = action[index].shape[:-1]
        other = ReversibleFlow(velocity, flow.action_dim, flow.solver, flow.start, shape, dtype=flow.dtype)
        return other.log_prob(action[index], memory[index])

    tolerance = 1e-7 * max(1.0, flow.solver.error_amplification / 1e3) * max(1.0, whole.abs().max().item())
    torch.testing.assert_close(part(order), whole[order], rtol=0, atol=tolerance)
    single = torch.stack([part(row) for row in range(len(action))])
    torch.testing.assert_close(single, whole, rtol=0, atol=tolerance)


@given(flows(batch=batches_or_empty.filter(lambda batch: 0 in batch)))
def test_an_empty_batch_is_sampled_scored_and_given_an_empty_entropy(flow):
    (action, memory), log_prob = flow.rsample_and_log_prob()
    assert action.shape == (*flow.batch_shape, flow.action_dim) and log_prob.shape == flow.batch_shape
    assert flow.log_prob(action, memory).shape == flow.entropy().shape == flow.mode[0].shape[:-1] == flow.batch_shape
    estimate = flow.action_log_prob(action, num_samples=2)
    assert estimate.log_prob.shape == estimate.effective_sample_size.shape == flow.batch_shape


@given(flows(), st.integers(1, 6), st.booleans())
def test_the_estimated_density_of_the_action_is_finite_with_a_sample_size_between_one_and_n(flow, n, knows_memory):
    action, memory = flow.sample()
    log_prob, size = flow.action_log_prob(action, n, memory if knows_memory else None)
    assert log_prob.shape == size.shape == flow.batch_shape and log_prob.isfinite().all()
    assert (size > 1 - 1e-6).all() and (size < n + 1e-6).all()


@given(flows(), seeds)
def test_sampling_is_the_same_for_the_same_seed(flow, seed):
    drawn = []
    for _ in range(2):
        torch.manual_seed(seed)
        drawn.append(flow.sample())
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


@given(flows(batch=batches, solvers=reversible_solvers()))
def test_both_gradients_of_the_density_are_finite_and_equal(flow):
    assume(flow.solver.error_amplification < 1e3)  # beyond, the reversible gradient inherits too much rounding
    action, memory = flow.sample()
    module, gradients = flow.velocity.velocity, []
    for gradient in ("stored", "reversible"):
        flow.solver.gradient = gradient
        module.zero_grad()
        flow.log_prob(action, memory).sum().backward(retain_graph=True)  # the scale is computed once a distribution
        gradients.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
    assert gradients[0]
    for stored, reversible in zip(*gradients, strict=True):
        assert stored.isfinite().all()
        torch.testing.assert_close(reversible, stored, rtol=1e-4, atol=1e-4 * max(1.0, stored.abs().max().item()))


@given(flows(batch=st.just(()), solvers=reversible_solvers()), st.integers(1, 4))
def test_vmap_over_pairs_equals_the_batched_density(flow, n):
    action, memory = flow.sample((n,))
    torch.testing.assert_close(torch.vmap(flow.log_prob)(action, memory), flow.log_prob(action, memory))


@given(st.data(), seeds, dtypes, batches)
def test_a_velocity_is_the_same_for_one_time_and_for_a_tensor_of_it(data, seed, dtype, batch):
    torch.manual_seed(seed)
    velocity = data.draw(velocities()).to(dtype)
    x = torch.randn(*batch, velocity.action_dim, dtype=dtype)
    context, t = velocity.condition(torch.randn(*batch, OBS_DIM, dtype=dtype)), data.draw(st.floats(0, 1, width=32))
    one = velocity(x, t, context)
    many = velocity(x, torch.full(batch, t, dtype=dtype), context)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    assert one.shape == x.shape and one.dtype == dtype
    torch.testing.assert_close(many, one, rtol=tolerance, atol=tolerance)
    samples = velocity(x.expand(2, *x.shape), t, context)  # more samples than observations
    torch.testing.assert_close(samples[1], one, rtol=tolerance, atol=tolerance)


@given(st.data(), seeds)
def test_a_state_dict_carries_start_and_velocity_over_to_new_ones(data, seed):
    torch.manual_seed(seed)
    velocity = data.draw(velocities())
    start = data.draw(starts(velocity))
    for module in (velocity, start):
        other = copy.deepcopy(module)
        other.reset_parameters()
        other.load_state_dict(module.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), module.parameters(), strict=True))


@given(numbers, st.integers(-3, 10))
def test_every_sigma_is_accepted_or_refused_by_a_value_error_that_names_it(sigma, steps):
    try:
        solver = ReversibleSolver(steps, sigma)
    except ValueError as error:
        assert str(sigma) in str(error) or f"got {steps}" in str(error)
    else:
        assert -1 < sigma <= 1 and sigma != 0 and steps >= 1 and solver.error_amplification < math.inf


@given(numbers)
def test_every_tau_is_accepted_or_refused_by_a_value_error_that_names_it(tau):
    from torchrl_genpo import ConsistentStart

    try:
        start = ConsistentStart(tau, 2)
    except ValueError as error:
        assert str(tau) in str(error)
    else:
        assert tau > 0 and all(p.isfinite().all() for p in start.parameters())
