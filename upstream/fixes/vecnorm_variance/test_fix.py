# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""``VecNormV2`` of numbers that hardly vary, and of young statistics."""

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Composite, Unbounded
from torchrl.envs.transforms import VecNormV2


def normalize(values, **kwargs):
    """The transform after it has seen some batches, and the last of them as it normalised it."""
    transform = VecNormV2(in_keys=["observation"], **kwargs)
    transform.transform_observation_spec(Composite(observation=Unbounded(values.shape[1:]), shape=values.shape[1:-1]))
    for value in values:
        data = TensorDict(observation=value, batch_size=value.shape[:-1])
        out = transform._step(data.clone(), data.clone())
    return transform, out["observation"]


@pytest.mark.parametrize("value", [1e3, 7.7e4])
def test_a_number_that_never_varies_is_normalised_to_something_finite(value):
    torch.manual_seed(0)
    values = torch.full((50, 4, 3), value) + 1e-4 * torch.rand(50, 4, 3)
    transform, out = normalize(values, decay=1.0)
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(scale).all() for scale in transform._get_loc_scale()[1].values(True, True))


def test_the_deviation_of_young_statistics_is_that_of_the_data():
    torch.manual_seed(0)
    values = 5 + torch.randn(200, 16, 3)
    transform, _ = normalize(values, decay=0.9999)
    loc, scale = transform._get_loc_scale()
    torch.testing.assert_close(loc["observation"].mean(), torch.tensor(5.0), rtol=0.05, atol=0)
    torch.testing.assert_close(scale["observation"].mean(), torch.tensor(1.0), rtol=0.1, atol=0)
