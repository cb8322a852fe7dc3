"""Private methods of TorchRL that are overridden: one that a new version renames would never be called, silently."""

from __future__ import annotations

import pytest

from torchrl_genpo import FlowMatchingLoss, GenPOLoss
from torchrl_genpo.baselines import FPOLoss, PolicyFlowLoss
from torchrl_genpo.envs import DiscountedReturn, NutBoltEnv
from torchrl_genpo.envs.isaaclab import LastObservationAtReset
from torchrl_genpo.envs.xhand import ActionDelay, DeltaTarget, History, Noise
from torchrl_genpo.runs import SyncedCheckpoint
from torchrl_genpo.trainers import GenPOTrainer
from torchrl_genpo.training.workers import _BetweenSteps

TRANSFORM = ("_step", "_reset")
OVERRIDDEN = {
    ActionDelay: ("_inv_call", *TRANSFORM),
    DeltaTarget: ("_inv_call", *TRANSFORM),
    DiscountedReturn: TRANSFORM,
    FPOLoss: ("_set_in_keys",),
    FlowMatchingLoss: ("_forward_value_estimator_keys",),
    GenPOLoss: ("_get_cur_log_prob", "_set_in_keys"),
    GenPOTrainer: ("_setup_hook", "_process_batch_hook", "_pre_epoch_hook", "_process_loss_hook"),
    History: TRANSFORM,
    LastObservationAtReset: TRANSFORM,
    Noise: ("_inv_call", *TRANSFORM),
    NutBoltEnv: ("_set_seed", "_reset", "_step"),
    PolicyFlowLoss: ("_apply", "_get_cur_log_prob", "_set_in_keys"),
    SyncedCheckpoint: ("_publish_path",),
    _BetweenSteps: ("_background_receive_loop",),
}


@pytest.mark.parametrize("cls", OVERRIDDEN, ids=lambda cls: cls.__name__)
def test_what_is_overridden_is_there(cls):
    ours = [base for base in cls.__mro__ if base.__module__.startswith("torchrl_genpo")]
    theirs = [base for base in cls.__mro__ if base.__module__.startswith("torchrl.")]
    for name in OVERRIDDEN[cls]:
        assert any(name in vars(base) for base in ours), f"{cls.__name__} no longer overrides {name}: drop it here"
        assert any(name in vars(base) for base in theirs), f"TorchRL's {theirs[0].__name__} no longer has {name}"


def test_every_override_is_listed():
    """Private methods of our classes that TorchRL's have too."""
    for cls, names in OVERRIDDEN.items():
        theirs = [base for base in cls.__mro__ if base.__module__.startswith("torchrl.")]
        found = {
            name
            for name, value in vars(cls).items()
            if name.startswith("_") and not name.startswith("__") and callable(value)
            if any(name in vars(base) for base in theirs)
        }
        assert found - {"_AcceptedKeys"} <= set(names), cls.__name__
