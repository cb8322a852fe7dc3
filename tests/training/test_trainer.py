"""GenPOTrainer learns what the loss by hand learns, handles the pair, and resumes."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale, ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from torchrl.checkpoint import Checkpoint
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
from torchrl.envs import GymEnv
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import ClipPPOLoss, KLAdaptiveLR
from torchrl.objectives.value import GAE

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP
from torchrl_genpo.training import GenPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore:GenPOTrainer is an experimental:UserWarning")

FRAMES = 64  # of a batch


def make_actor(**keys):
    gaussian = nn.Sequential(nn.Linear(3, 1), AddStateIndependentNormalScale(1))
    actor = ReversibleFlowActor(VelocityMLP(3, 1, (16, 16)), gaussian=gaussian, **keys)
    nn.init.normal_(actor.velocity.trunk[-1].weight, std=0.3)
    return actor


def make_critic():
    return ValueOperator(MLP(in_features=3, out_features=1, num_cells=[16]), in_keys=["observation"])


def make_trainer(
    loss=None,
    policy=None,
    batches=1,
    batch_size=FRAMES,
    optimizer_class=torch.optim.Adam,
    lr=3e-3,
    optimizer=None,
    **kwargs,
):
    """A trainer and its log, a dictionary for each time that something was logged."""
    loss = GenPOLoss(make_actor(), make_critic()) if loss is None else loss
    collector = Collector(
        GymEnv("Pendulum-v1"),
        loss.actor_network if policy is None else policy,
        frames_per_batch=FRAMES,
        total_frames=-1,
        auto_register_policy_transforms=False,
    )
    trainer = GenPOTrainer(
        collector=collector,
        total_frames=batches * FRAMES,
        frame_skip=1,
        optim_steps_per_batch=None,
        loss_module=loss,
        optimizer=optimizer_class(loss.parameters(), lr=lr) if optimizer is None else optimizer,
        replay_buffer=ReplayBuffer(
            storage=LazyTensorStorage(FRAMES), sampler=SamplerWithoutReplacement(), batch_size=batch_size
        ),
        clip_norm=0.5,
        progress_bar=False,
        seed=0,
        **kwargs,
    )
    log = []
    trainer._log = lambda log_pbar=False, **scalars: log.append(scalars)
    return trainer, log


def logged(log, key):
    return [float(scalars[key]) for scalars in log if key in scalars]


def test_it_learns_what_the_loss_by_hand_learns():
    # plain gradient steps: Adam would enlarge the rounding of gradients that are nearly zero
    trainer, _ = make_trainer(num_epochs=3, optimizer_class=torch.optim.SGD, lr=0.1)
    actor, critic = copy.deepcopy((trainer.loss_module.actor_network, trainer.loss_module.critic_network))
    loss = GenPOLoss(actor, critic)
    initial = [(name, parameter.clone()) for name, parameter in loss.named_parameters()]
    batches = []
    trainer.register_op("batch_process", lambda batch: batches.append(batch.clone()) or batch)
    trainer.train()

    gae = GAE(gamma=0.99, lmbda=0.95, value_network=critic, average_gae=True)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    (batch,) = batches
    for _ in range(3):
        out = loss(gae(batch))
        (out["loss_objective"] + out["loss_critic"]).backward()
        nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    changes = []
    for (name, start), ours, theirs in zip(initial, trainer.loss_module.parameters(), loss.parameters(), strict=True):
        assert (ours != start).any(), name
        changes.append(torch.stack([ours - start, theirs - start]).flatten(1))
    ours, theirs = torch.cat(changes, 1)
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()  # the buffer shuffles: sums round differently


def test_the_first_batch_is_collected_by_the_policy_that_is_trained():
    trainer, log = make_trainer(policy=make_actor(), num_epochs=1)
    collecting, trained = trainer.collector.policy, trainer.loss_module.actor_network
    assert any((p != q).any() for p, q in zip(collecting.parameters(), trained.parameters(), strict=True))
    trainer.train()
    assert logged(log, "inversion_error")[0] < 1e-4
    assert abs(logged(log, "max_ratio")[0] - 1) < 1e-4


def test_the_collector_follows_the_policy_from_batch_to_batch():
    trainer, log = make_trainer(policy=make_actor(), batches=3, batch_size=16)
    trainer.train()
    assert len(logged(log, "inversion_error")) == 3
    assert max(logged(log, "inversion_error")) < 1e-4  # at the first mini-batch; the ratio moves afterwards
    assert min(logged(log, "max_ratio")) > 1.001


def test_the_loss_sees_each_batch_once_before_its_updates():
    loss = GenPOLoss(make_actor(), make_critic())
    trainer, _ = make_trainer(loss, batches=2, batch_size=32)
    seen = []
    before_updates = loss.before_updates
    loss.before_updates = lambda batch: seen.append(len(batch)) or before_updates(batch)
    trainer.train()
    assert seen == [FRAMES, FRAMES]


def test_the_learning_rate_follows_the_kl_of_the_last_epoch(tmp_path):
    loss = GenPOLoss(make_actor(), make_critic())
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
    schedule = KLAdaptiveLR(optimizer, 1e-6, factor=2.0)  # every update is too large
    options = {"batch_size": FRAMES // 2, "num_epochs": 2}
    saving = {"checkpoint": Checkpoint(), "save_trainer_file": tmp_path / "trainer"}
    trainer, _ = make_trainer(loss, batches=2, optimizer=optimizer, lr_scheduler=schedule, **saving, **options)
    kls = []
    trainer.register_op("process_loss", lambda _, losses: kls.append(losses["kl_approx"].item()) or losses)
    trainer.train()
    ends = [sum(kls[i : i + 2]) / 2 for i in (2, 6)]  # of two batches, each of two epochs of two mini-batches
    assert len(kls) == 8 and schedule.last_kl == pytest.approx(ends[-1])
    rate = 3e-3 / 2 ** sum(kl > 2e-6 for kl in ends)
    assert rate < 3e-3 and optimizer.param_groups[0]["lr"] == pytest.approx(rate)

    loss = GenPOLoss(make_actor(), make_critic())
    optimizer = torch.optim.Adam(loss.parameters(), lr=1.0)
    resumed = KLAdaptiveLR(optimizer, 1.0)
    saving = {"checkpoint": Checkpoint(), "save_trainer_file": tmp_path / "other"}
    trainer, _ = make_trainer(loss, batches=3, optimizer=optimizer, lr_scheduler=resumed, **saving, **options)
    trainer.load_from_file(tmp_path / "trainer")
    assert resumed.last_kl == schedule.last_kl and optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    trainer.train()
    assert resumed.last_kl != schedule.last_kl
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate / 2 if resumed.last_kl > 2e-6 else rate)


def test_other_losses_are_refused():
    actor = make_actor()
    trainer, _ = make_trainer(ClipPPOLoss(actor, make_critic(), entropy_bonus=False))
    with pytest.raises(TypeError, match="GenPOLoss, got ClipPPOLoss"):
        trainer.train()


def test_keys_of_ones_own():
    actor = make_actor(action_key="torque", memory_key=("flow", "memory"), log_prob_key=("flow", "log_prob"))
    data = actor(TensorDict(observation=torch.randn(FRAMES, 3), batch_size=[FRAMES])).detach()
    loss = GenPOLoss(actor, make_critic())
    trainer, _ = make_trainer(loss, policy=make_actor(), action_key="torque")
    data["next"] = TensorDict(
        observation=torch.randn(FRAMES, 3),
        reward=torch.randn(FRAMES, 1),
        done=torch.zeros(FRAMES, 1, dtype=torch.bool),
        terminated=torch.zeros(FRAMES, 1, dtype=torch.bool),
        truncated=torch.zeros(FRAMES, 1, dtype=torch.bool),
        batch_size=[FRAMES],
    )
    before = [p.clone() for p in loss.parameters()]
    trainer.optim_steps(data)
    assert any((p != q).any() for p, q in zip(loss.parameters(), before, strict=True))


def test_a_saved_trainer_resumes_where_it_stopped(tmp_path):
    first, _ = make_trainer(batches=2, checkpoint=Checkpoint(), save_trainer_file=tmp_path / "trainer")
    first.train()
    second, log = make_trainer(batches=3, checkpoint=Checkpoint(), save_trainer_file=tmp_path / "other")
    second.load_from_file(tmp_path / "trainer")
    assert second.collected_frames == 2 * FRAMES
    for ours, theirs in zip(second.loss_module.parameters(), first.loss_module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    states = (second.optimizer.state_dict()["state"], first.optimizer.state_dict()["state"])
    assert len(states[0]) == len(list(second.loss_module.parameters()))
    for ours, theirs in zip(states[0].values(), states[1].values(), strict=True):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(ours[key], theirs[key], atol=0, rtol=0)
    second.train()
    assert second.collected_frames == 3 * FRAMES and len(logged(log, "inversion_error")) == 1
    assert logged(log, "inversion_error")[0] < 1e-4


@pytest.mark.parametrize("is_copied", [False, True])
def test_a_sequence_with_an_encoder_collects_with_the_weights_that_are_trained(is_copied):
    encoder = TensorDictModule(nn.Sequential(nn.Linear(3, 8), nn.Tanh()), ["observation"], ["features"])
    actor = ReversibleFlowActor(VelocityMLP(8, 1, (16,)), in_keys=["features"], action_key="raw_action")
    bound = TensorDictModule(nn.Tanh(), ["raw_action"], ["action"])
    policy = ProbabilisticTensorDictSequential(encoder, actor, bound)
    loss = GenPOLoss(policy, make_critic())
    collects = copy.deepcopy(policy) if is_copied else policy
    trainer, log = make_trainer(loss, policy=collects, batches=3, lr=1e-2)
    trainer.train()
    assert max(logged(log, "inversion_error")) < 1e-4  # stored and trained densities are of the same weights
    trained = dict(loss.actor_network_params.flatten_keys(".").items())
    for name, parameter in trainer.collector.policy.named_parameters():
        torch.testing.assert_close(parameter, trained[name])
