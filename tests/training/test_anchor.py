# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Good actions that fine-tuning holds on to: demonstrations, and the policy's own successes."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential
from torchrl.modules import ValueOperator

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP
from torchrl_genpo.config.compose import compose
from torchrl_genpo.data import write_demonstrations
from torchrl_genpo.modules import ActionScale
from torchrl_genpo.training.demonstrations import Anchor

pytest.importorskip("h5py", reason="needs h5py: pip install 'torchrl-genpo[robomimic]'")
N, D, CHUNK = 17, 7, 2


@pytest.fixture
def dataset(tmp_path):
    obs = {"robot0_eef_pos": torch.full((5, 3), 2.0).numpy(), "object": torch.full((5, 14), 2.0).numpy()}
    demonstration = {
        "obs": obs,
        "next_obs": obs,
        "actions": torch.full((5, D), 0.5).numpy(),
        "rewards": torch.zeros(5).numpy(),
        "dones": torch.zeros(5).numpy(),
        "states": torch.zeros(5, 5).numpy(),
        "model_file": "<mujoco/>",
    }
    path = tmp_path / "demonstrations.hdf5"
    write_demonstrations(path, [demonstration] * 2, {"env_name": "PickPlaceCan", "type": 1, "env_kwargs": {}})
    return path


@pytest.fixture
def policy():
    torch.manual_seed(0)
    actor = ReversibleFlowActor(VelocityMLP(N, D * CHUNK, (8,)), action_key="raw_action")
    scale = ActionScale(torch.zeros(D * CHUNK), torch.full((D * CHUNK,), 0.25))
    return ProbabilisticTensorDictSequential(actor, scale)


@pytest.fixture
def anchor(dataset, policy):
    pytest.importorskip("robosuite", reason="needs robosuite: pip install 'torchrl-genpo[robomimic]'")
    keys = "env.options.observation_keys=[robot0_eef_pos,object]"
    options = ("env=robomimic/can", "anchor.coeff=0.1", f"anchor.dataset={dataset}", "anchor.own_chunks=6", keys)
    return Anchor(compose([*options, f"env.options.chunk_size={CHUNK}"]), policy)


def collected(done, success):
    """Data of environments in which these steps end an episode, well or not."""
    done, success = (torch.tensor(value).unsqueeze(-1) for value in (done, success))
    shape = done.shape[:-1]
    steps = torch.arange(shape.numel(), dtype=torch.float32).reshape(*shape, 1)
    return TensorDict(
        observation=steps.expand(*shape, N).clone(),
        raw_action=torch.ones(*shape, D * CHUNK),
        next=TensorDict(done=done.bool(), success=success.float(), batch_size=shape),
        batch_size=shape,
    )


def test_it_draws_demonstrations_in_the_units_of_the_flow_and_then_half_of_its_own(anchor):
    first = anchor.sample(8)
    assert (first["observation"] == 2).all() and (first["raw_action"] == 0.5 / 0.25).all()
    assert first["action_is_pad"].any(), "the last chunk runs over the end of its demonstration"
    anchor.extend(collected([[0, 1, 0]], [[0, 0, 1]]))
    assert (anchor.sample(8)["observation"] == 2).all(), "no episode has succeeded yet"
    anchor.extend(collected([[0, 1, 0, 1], [0, 0, 0, 0]], [[0, 1, 0, 0], [1, 1, 1, 1]]))
    both = anchor.sample(8)
    assert (both["observation"][:4] == 2).all() and set(both["observation"][4:, 0].tolist()) <= {0.0, 1.0}
    assert not both["action_is_pad"][4:].any()
    anchor.extend(collected([[0] * 6 + [1]], [[0] * 6 + [1]]))
    assert (anchor.sample(100)["observation"][50:, 0] > 0).all(), "only the newest are kept"


def test_it_comes_back_as_it_was(anchor, dataset, policy):
    anchor.extend(collected([[0, 1]], [[0, 1]]))
    state = copy.deepcopy(anchor.state_dict())  # a checkpoint is written at once
    anchor.extend(collected([[0, 0, 0, 0, 0, 1]], [[1] * 6]))
    anchor.load_state_dict(state)
    assert set(anchor.sample(40)["observation"][20:, 0].tolist()) <= {0.0, 1.0}


def test_the_loss_pulls_the_flow_to_the_anchor_and_names_what_is_missing(policy):
    critic = ValueOperator(torch.nn.Linear(N, 1))
    loss = GenPOLoss(policy, critic, anchor_coeff=1.0)
    data = policy(TensorDict(observation=torch.randn(64, N), batch_size=[64])).detach()
    data["advantage"], data["value_target"] = torch.zeros(2, 64, 1)
    with pytest.raises(KeyError, match=r"set data\['anchor'\]"):
        loss(data)
    target = torch.full((64, D * CHUNK), 2.0)
    data["anchor"] = TensorDict(observation=data["observation"], raw_action=target, batch_size=[64])
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], lr=1e-2)
    values = []
    for _ in range(100):
        out = loss(data)
        optimizer.zero_grad()
        out["loss_anchor"].backward()
        optimizer.step()
        values.append(out["loss_anchor"].item())
    assert "loss_anchor" in loss.out_keys and values[-1] < 0.5 * values[0]
    data["anchor", "action_is_pad"] = torch.ones_like(target, dtype=torch.bool)
    assert loss(data)["loss_anchor"] == 0, "padding does not count"
    each = GenPOLoss(policy, critic, anchor_coeff=1.0, reduction="none")(data)
    assert each["loss_anchor"].shape == (64,), "it is reduced as the other losses are"
    with pytest.raises(ValueError, match="anchor_coeff=-1"):
        GenPOLoss(policy, critic, anchor_coeff=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("anchor.own_chunks=5",), "no effect while anchor.coeff is null"),
        (("anchor.coeff=0.1",), "needs demonstrations: anchor.dataset"),
        (("anchor.coeff=0.1", "policy=gaussian"), "policy=gaussian"),
        (("anchor.coeff=0.1", "anchor.dataset=a", "policy.head_sizes=[8]"), r"policy.head_sizes=\[8\]"),
    ],
)
def test_options_that_have_no_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compose(["env=robomimic/can", *options])
