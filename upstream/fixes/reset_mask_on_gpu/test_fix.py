# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Partial resets of Gymnasium's vector environments whose tensordicts are on a GPU."""

from types import SimpleNamespace

import gymnasium
import numpy as np
import torch
from torchrl.envs.libs.gym import GymWrapper


class OnGPU(torch.Tensor):
    """A tensor that refuses ``numpy()`` until it was brought to the CPU, as those of a GPU do."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def test_the_mask_is_brought_to_the_cpu():
    mask = torch.tensor([[True], [False]])
    vector = SimpleNamespace(autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED)
    env = SimpleNamespace(_env=vector, batch_size=torch.Size([2]))
    kwargs = GymWrapper._replace_reset(env, mask.as_subclass(OnGPU), {"options": {"kept": 1}})
    assert kwargs["options"]["kept"] == 1
    np.testing.assert_array_equal(kwargs["options"]["reset_mask"], [True, False])
