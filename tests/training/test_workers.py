"""Collection by workers: whoever collects, the stored log-probability is that of the observation that is trained on."""

from __future__ import annotations

import copy
import multiprocessing
import signal

import pytest
import torch
from tensordict import TensorDict
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import SoftUpdate

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP
from torchrl_genpo.commands.train import train
from torchrl_genpo.config.compose import compose
from torchrl_genpo.envs import WorkerError
from torchrl_genpo.modules import encode
from torchrl_genpo.training import make_update
from torchrl_genpo.training.build import build_env, build_models, normalizers
from torchrl_genpo.training.collection import make_collection
from torchrl_genpo.training.metrics import read_metrics
from torchrl_genpo.training.progress import Progress
from torchrl_genpo.training.ranks import Ranks
from torchrl_genpo.training.run_folder import RunFolder

TINY = [
    "env=pendulum",
    "env.num_envs=4",
    "collector.frames_per_batch=128",
    "loss.mini_batch_size=64",
    "loss.epochs=2",
    "eval.num_envs=2",
    "eval.interval=100_000",
]


@pytest.fixture(autouse=True)
def forked():
    """Workers that need not import everything again; and the handlers of signals as they were."""
    method = multiprocessing.get_start_method(allow_none=True)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    multiprocessing.set_start_method("fork", force=True)
    yield
    multiprocessing.set_start_method(method, force=True)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def configure(*overrides):
    return compose([*TINY, *overrides])


@pytest.fixture
def start():
    """Makes a collection; ends its workers."""
    collections = []

    def make(*overrides, seed=0):
        options = configure(*overrides)
        torch.manual_seed(0)
        env = build_env(options, options.env.num_envs, seed)
        policy, *_ = build_models(options, env)
        collections.append(make_collection(options, env, policy, seed, Progress()))
        return collections[-1], policy

    yield make
    for collection in collections:
        collection.close()


@pytest.mark.parametrize("kind", ["multi_sync", "multi_async"])
def test_stored_log_probabilities_are_those_of_the_version_that_acted(start, kind):
    collection, policy = start(f"collector={kind}")
    (normalizer,) = normalizers(policy)
    is_async = kind == "multi_async"
    policies, staleness = [], []
    for batch, _ in zip(collection, range(5), strict=False):
        policies.append(copy.deepcopy(policy))
        assert batch.shape == (4, 32)
        version = batch["policy_version"]
        newest = len(policies) - 1
        assert (newest - version).min() >= 0 and (is_async or (version == newest).all())
        for number in version.unique().tolist():
            flow, seen = encode(policies[number], batch[version == number])
            with torch.no_grad():
                error = flow.log_prob(seen) - seen["action_log_prob"]
            assert error.abs().max() < 1e-5, f"version {number} of {newest}"
        staleness.append((collection.metrics["collect/staleness"], (newest - version).float().mean().item()))
        with torch.no_grad():  # an update: other weights, and the statistics go on
            for parameter in policy.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        normalizer.update(batch["observation"])
        collection.update_policy_weights_()
    assert all(logged == pytest.approx(seen) for logged, seen in staleness)
    assert not is_async or any(seen for _, seen in staleness), "nothing was stale: the test shows nothing"


def test_neither_workers_nor_runs_of_neighbouring_seeds_share_a_stream(start):
    states = []
    for seed in (0, 1):
        collection, _ = start("collector=multi_sync", seed=seed)
        for _ in range(2):
            states += [tuple(row) for row in next(collection)["observation"][:, 0].tolist()]
            collection.restart_episodes()
            collection._progress.frames += 128
    assert len(set(states)) == len(states) == 16


def test_rollouts_that_are_too_old_are_dropped(start):
    collection, _ = start("collector=multi_async", "collector.max_staleness=0")
    dropped = 0
    for batch, _ in zip(collection, range(3), strict=False):
        assert (batch["policy_version"] == collection._version).all()
        dropped += collection.metrics["collect/dropped"]
        collection.update_policy_weights_()
    assert dropped > 0


def run(folder, *overrides, resume=False):
    run_folder = RunFolder(folder, resume=resume)
    assert train(configure(*overrides), run_folder, Ranks("cpu")) == 0
    run_folder._lock.release()  # which would be the end of the process
    return read_metrics(folder / "metrics.csv")


def test_a_run_on_workers_trains_on_exact_ratios_and_resumes_with_its_statistics(tmp_path):
    folder = tmp_path / "run"
    run(folder, "collector=multi_sync", "collector.total_frames=256")
    columns = run(folder, "collector=multi_sync", "collector.total_frames=512", resume=True)
    assert columns["frames"] == [128, 256, 384, 512] and columns["collect/staleness"] == [0, 0, 0, 0]
    assert max(columns["train/inversion_error"]) < 1e-5, "of the first mini-batch of every update"
    assert max(columns["train/kl"]) < 1


def test_a_run_on_stale_data_has_the_decoupled_objective(tmp_path):
    options = ["collector=multi_async", "collector.total_frames=512", "loss.proximal_decay=0.9"]
    columns = run(tmp_path / "run", *options)
    assert len(columns["frames"]) == 4 and sum(columns["collect/max_staleness"]) > 0
    assert all(value == value for value in columns["train/loss_objective"])


def test_workers_that_die_are_replaced(tmp_path, monkeypatch):
    from torchrl_genpo.training import workers

    gather, killed = workers.WorkerCollection._gather, []

    def kill_one(self):
        if self._version == 1 and not killed:
            killed.append(self._collector.procs[0])
            killed[0].kill()
            killed[0].join()
        return gather(self)

    monkeypatch.setattr(workers.WorkerCollection, "_gather", kill_one)
    columns = run(tmp_path / "run", "collector=multi_sync", "collector.total_frames=384")
    assert killed and columns["frames"] == [128, 256, 384]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["collector=multi_sync", "collector.num_workers=3"], "env.num_envs=4 must be a multiple of"),
        (
            ["collector=multi_sync", "collector.frames_per_batch=127"],
            "frames_per_batch=127 is no multiple of env.num_envs=4",
        ),
    ],
)
def test_what_cannot_be_is_explained(start, overrides, message):
    with pytest.raises(ValueError, match=message):
        start(*overrides)


def test_a_failure_to_collect_is_a_failure_of_workers(start):
    collection, _ = start("collector=multi_sync")
    chosen = collection._run.env.model_copy(update={"name": "no_such_task"})
    collection._run = collection._run.model_copy(update={"env": chosen})
    with pytest.raises(WorkerError, match=r"Collection failed.*no_such_task"):
        next(collection)


def test_the_decoupled_objective_clips_about_an_average_of_policies_and_weighs_by_its_ratio_to_the_behaviour():
    torch.manual_seed(0)
    actor = ReversibleFlowActor(VelocityMLP(in_features=3, action_dim=2, num_cells=(16, 16))).double()
    critic = ValueOperator(MLP(in_features=3, out_features=1, num_cells=[8])).double()
    data = actor(TensorDict(observation=torch.randn(64, 3).double(), batch_size=[64])).detach()
    data["advantage"], data["value_target"] = torch.randn(2, 64, 1).double()

    def moved(size):
        other = copy.deepcopy(actor)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter += size * torch.randn_like(parameter)
        return other

    proximal, current = moved(0.02), moved(0.05)
    loss = GenPOLoss(copy.deepcopy(proximal), critic, clip_epsilon=0.1, delay_actor=True, normalize_advantage=False)
    average = SoftUpdate(loss, eps=0.9)  # begins where the policy of the loss is
    loss.actor_network_params.data.update_(TensorDict.from_module(current).data)
    scored = data.exclude("action_log_prob")
    new, old, behaviour = current.log_prob(scored), proximal.log_prob(scored), data["action_log_prob"]
    gain = data["advantage"].squeeze(-1)

    def surrogate(ratio):
        return torch.minimum(ratio * gain, ratio.clamp(0.9, 1.1) * gain)

    expected = -((old - behaviour).exp() * surrogate((new - old).exp())).mean()
    coupled = -surrogate((new - behaviour).exp()).mean()
    assert abs(expected - coupled) > 1e-3, "the two objectives are the same here: the test shows nothing"
    torch.testing.assert_close(loss(data)["loss_objective"], expected)

    before = loss.target_actor_network_params.data.clone()
    make_update(loss, torch.optim.SGD(loss.parameters(), 0.1), 1.0, proximal=average)(data)
    moved_by = loss.target_actor_network_params.data - before
    wanted = (loss.actor_network_params.data - before) * 0.1
    for key, value in wanted.items(True, True):
        torch.testing.assert_close(moved_by[key], value)
