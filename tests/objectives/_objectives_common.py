"""What TorchRL demands of every loss: the interface of its own test base, which is no part of the wheel.

TorchRL's is ``test/objectives/_objectives_common.py``; the same names are used here, so that our tests run unchanged
under either (``upstream/layout.py`` places them beside TorchRL's).
"""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import unravel_key
from tensordict.nn import set_composite_lp_aggregate

__all__ = ["LossModuleTestBase"]


class LossModuleTestBase:
    """Base of the tests of a loss; a class without a test of ``reset_parameters_recursive`` cannot be defined."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "test_reset_parameters_recursive"):
            raise TypeError(f"{cls.__name__} has no test_reset_parameters_recursive.")

    @pytest.fixture(scope="class", autouse=True)
    def _composite_log_prob(self):
        with set_composite_lp_aggregate(False):
            yield

    @staticmethod
    def _flatten_in_keys(in_keys):
        return [key if isinstance(key, str) else "_".join(unravel_key(key)) for key in in_keys]

    def tensordict_keys_test(self, loss_fn, default_keys, td_est=None):
        """Unknown keys are refused, the defaults are these, and each can be set, alone and with all others."""
        self.tensordict_keys_unknown_key_test(loss_fn)
        self.tensordict_keys_default_values_test(loss_fn, default_keys)
        self.tensordict_set_keys_test(loss_fn, default_keys)

    def tensordict_keys_unknown_key_test(self, loss_fn):
        with pytest.raises(ValueError):
            copy.deepcopy(loss_fn).set_keys(unknown_key="test2")

    def tensordict_keys_default_values_test(self, loss_fn, default_keys):
        assert {key: getattr(loss_fn.tensor_keys, key) for key in default_keys} == default_keys

    def tensordict_set_keys_test(self, loss_fn, default_keys):
        for names in [*([key] for key in default_keys), list(default_keys)]:
            loss = copy.deepcopy(loss_fn)
            loss.set_keys(**dict.fromkeys(names, "test1"))
            assert all(getattr(loss.tensor_keys, name) == "test1" for name in names)

    def set_advantage_keys_through_loss_test(self, loss_fn, td_est, loss_advantage_key_mapping):
        """Keys set on the loss reach the value estimator that it makes."""
        loss = copy.deepcopy(loss_fn)
        loss.set_keys(**{key: new for key, (_, new) in loss_advantage_key_mapping.items()})
        loss.make_value_estimator(td_est)
        for estimators_key, new in loss_advantage_key_mapping.values():
            assert getattr(loss.value_estimator.tensor_keys, estimators_key) == new

    @classmethod
    def reset_parameters_recursive_test(cls, loss_fn):
        """Every parameter, those of the targets included, is another one after a reset."""
        tensors = dict(loss_fn.named_parameters())
        for name, module in loss_fn.named_children():
            if name.startswith("target_"):
                copies = {f"{name}.{key}": value for key, value in module.flatten_keys(".").items()}
                tensors |= {key: value for key, value in copies.items() if key.removeprefix("target_") in tensors}
        with torch.no_grad():
            for tensor in tensors.values():
                tensor.add_(1000)
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        loss_fn.reset_parameters_recursive()
        unchanged = [name for name, tensor in tensors.items() if (tensor == before[name]).any()]
        assert tensors and not unchanged, unchanged
