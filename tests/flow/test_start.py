"""Starts know their density, and refuse what makes no sense."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from torchrl_genpo import IndependentStart


def test_unit_start_is_the_standard_normal_pair():
    start = IndependentStart()
    x, memory, log_prob = start.sample(None, (10, 3))
    normal = Normal(0.0, 1.0)
    expected = normal.log_prob(x).sum(-1) + normal.log_prob(memory).sum(-1)
    torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(start.log_prob(None, x, memory), expected)
    assert not list(start.parameters()) and start.has_constant_entropy


def test_learned_scale_is_an_exact_density_with_a_gradient():
    start = IndependentStart("learned", 3)
    torch.testing.assert_close(start.log_scale.exp(), torch.ones(2, 3))
    with torch.no_grad():
        start.log_scale.normal_()
    x, memory, log_prob = start.sample(None, (10, 3))
    scale = start.log_scale.exp()
    expected = Normal(0.0, scale[0]).log_prob(x).sum(-1) + Normal(0.0, scale[1]).log_prob(memory).sum(-1)
    torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(start.log_prob(None, x, memory), expected)
    torch.testing.assert_close(start.entropy(3), Normal(0.0, scale).entropy().sum())
    (gradient,) = torch.autograd.grad(start.entropy(3), start.log_scale)
    torch.testing.assert_close(gradient, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("args", "message"),
    [(("other",), "'unit' or 'learned'"), (("learned",), "needs action_dim"), (("unit", 3), "no effect")],
)
def test_nonsense_is_refused(args, message):
    with pytest.raises(ValueError, match=message):
        IndependentStart(*args)
