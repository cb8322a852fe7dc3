"""The scale of actions maps those of order one to the task's units and back."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_genpo.modules import ActionScale


def test_normalising_undoes_scaling():
    scale = ActionScale(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]))
    raw = torch.randn(7, 2)
    td = scale(TensorDict(raw_action=raw, batch_size=[7]))
    torch.testing.assert_close(td["action"], raw * torch.tensor([0.5, 3.0]) + torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(scale.normalize(td["action"]), raw)


@pytest.mark.parametrize(
    ("loc", "scale"), [([0.0], [0.0]), ([0.0], [-1.0]), ([float("nan")], [1.0]), ([0.0, 0.0], [1.0])]
)
def test_a_scale_that_cannot_be_inverted_is_refused(loc, scale):
    with pytest.raises(ValueError, match="scale must be"):
        ActionScale(torch.tensor(loc), torch.tensor(scale))
