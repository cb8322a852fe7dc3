# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The units of an action, as the last module of a policy."""

from __future__ import annotations

from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import unravel_key
from torch import Tensor

from torchrl_genpo.modules.inputs import read

__all__ = ["ActionScale"]


class ActionScale(TensorDictModuleBase):
    """Scales and shifts the action of a network, which is of order one, to the units of the task.

    The density of the policy is that of the unscaled action: the map is fixed, so its determinant cancels in every
    likelihood ratio.

    Args:
        loc (Tensor): what an unscaled action of 0 means, ``[d]``.
        scale (Tensor): what a change of 1 means, positive, ``[d]``.

    Keyword Args:
        in_key (NestedKey, optional): the unscaled action ``[..., d]``. Defaults to ``"raw_action"``.
        out_key (NestedKey, optional): the action in the task's units. Defaults to ``"action"``.

    Raises:
        ValueError: if the shapes differ, a number is not finite, or a scale is not positive.

    Examples:
        >>> import torch
        >>> from torchrl_genpo.modules import ActionScale
        >>> scale = ActionScale(torch.tensor([1.0]), torch.tensor([3.0]))
        >>> scale(raw_action=torch.tensor([[-1.0], [0.5]]))
        tensor([[-2.0000],
                [ 2.5000]])
        >>> scale.normalize(torch.tensor([4.0]))
        tensor([1.])
    """

    def __init__(
        self, loc: Tensor, scale: Tensor, *, in_key: NestedKey = "raw_action", out_key: NestedKey = "action"
    ) -> None:
        super().__init__()
        if loc.ndim != 1 or loc.shape != scale.shape or not (loc.isfinite().all() and scale.isfinite().all()):
            raise ValueError(
                f"loc and scale must be finite vectors [d] of one size, got {loc} and {scale}. (Those of a batched "
                "environment are one for each: take the first.)"
            )
        if not (scale > 0).all():
            raise ValueError(f"scale must be positive, got {scale}.")
        self.in_keys, self.out_keys = [unravel_key(in_key)], [unravel_key(out_key)]
        self.loc: Tensor
        self.scale: Tensor
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("scale", scale.detach().clone())

    def denormalize(self, action: Tensor) -> Tensor:
        """The action ``[..., d]`` in the task's units."""
        return action * self.scale + self.loc

    def normalize(self, action: Tensor) -> Tensor:
        """The inverse of :meth:`denormalize`, for demonstrations."""
        return (action - self.loc) / self.scale

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the action in the task's units."""
        return tensordict.set(self.out_keys[0], self.denormalize(*read(tensordict, *self.in_keys)))

    def extra_repr(self) -> str:
        return f"{self.loc.numel()}, in_key={self.in_keys[0]!r}, out_key={self.out_keys[0]!r}"
