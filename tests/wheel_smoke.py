"""Smoke test of the installed wheel: one loss step of a whole policy away from the source tree (run by .ci/run)."""

from pathlib import Path

import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictSequential
from torchrl.modules import MLP, ValueOperator

import torchrl_genpo
from torchrl_genpo.envs.xhand import make_model
from torchrl_genpo.modules import RunningNormalizer

assert "site-packages" in torchrl_genpo.__file__, torchrl_genpo.__file__
assert (Path(torchrl_genpo.__file__).parent / "py.typed").exists()

normalizer = RunningNormalizer(4)
actor = torchrl_genpo.ReversibleFlowActor(torchrl_genpo.VelocityMLP(4, 2, (32, 32)), in_keys=["normalized_observation"])
policy = ProbabilisticTensorDictSequential(normalizer, actor)
value = ValueOperator(MLP(in_features=4, out_features=1, num_cells=[32]), in_keys=["normalized_observation"])
loss = torchrl_genpo.GenPOLoss(policy, TensorDictSequential(normalizer, value))
data = policy(TensorDict(observation=torch.randn(8, 4), batch_size=[8])).detach()
data["advantage"], data["value_target"] = torch.randn(2, 8, 1)
out = loss(data)
assert out["inversion_error"] < 1e-4
(out["loss_objective"] + out["loss_critic"]).backward()
normalizer.update(data["observation"])
assert make_model().nu == 12  # from numbers that come as a file
print(f"torchrl_genpo {torchrl_genpo.__version__}: the wheel works")  # noqa: T201
