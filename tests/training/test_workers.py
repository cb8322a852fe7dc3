"""Collection by workers: whoever collects, the stored log-probability is that of the observation that is trained on."""

from __future__ import annotations

import copy
import multiprocessing
import signal

import pytest
import torch
from hydra import compose, initialize_config_module
from tensordict import TensorDict
from torchrl.envs import VecNormV2
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import SoftUpdate

from torchrl_genpo import GenPOLoss, ReversibleFlowActor, VelocityMLP
from torchrl_genpo.commands.train import train
from torchrl_genpo.configuration import as_dict, build_env, build_models
from torchrl_genpo.distributed import Ranks
from torchrl_genpo.envs import BatchNormalizer, WorkerError, freeze_normalization, make_env
from torchrl_genpo.runs import RunFolder, read_metrics
from torchrl_genpo.training import Progress, make_update
from torchrl_genpo.training.collection import make_collection
from torchrl_genpo.training.workers import make_worker_env

TINY = [
    "env=pendulum",
    "env.num_envs=4",
    "collector.frames_per_batch=128",
    "loss.mini_batch_size=64",
    "loss.epochs=2",
    "eval.num_envs=2",
    "eval.interval=100_000",
]
KINDS = ["multi_sync", "multi_async", "rpc", "ray", "ray collector.synchronous=false"]


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
    with initialize_config_module("torchrl_genpo.config", version_base="1.3"):
        return compose("genpo", overrides=[*TINY, *overrides])


@pytest.fixture
def start():
    """Makes a collection; ends its workers."""
    collections = []

    def make(*overrides):
        cfg = configure(*overrides)
        torch.manual_seed(0)
        env = build_env(cfg, cfg.env.num_envs, 0)
        actor, *_ = build_models(cfg, env)
        collections.append(make_collection(cfg, env, actor, 0, Progress()))
        return collections[-1], actor, env

    yield make
    for collection in collections:
        collection.close()


@pytest.mark.parametrize("kind", KINDS)
def test_stored_log_probabilities_are_those_of_the_version_that_acted_on_the_observation_that_is_trained_on(
    start, kind
):
    kind, *options = kind.split()
    if kind == "ray":
        pytest.importorskip("ray", reason='pip install "torchrl-genpo[ray]"')
    collection, actor, env = start(f"collector={kind}", *options)
    is_async = kind == "multi_async" or options
    policies, scales, staleness = [], [], []
    for batch, _ in zip(collection, range(5), strict=False):
        policies.append(copy.deepcopy(actor))
        assert batch.shape == (4, 32) and batch["observation"].abs().max() <= 10
        version = batch["policy_version"]
        newest = len(policies) - 1
        assert (newest - version).min() >= 0 and (is_async or (version == newest).all())
        for number in version.unique().tolist():
            part = batch[version == number]
            with torch.no_grad():
                error = policies[number].log_prob(part) - part["action_log_prob"]
            assert error.abs().max() < 1e-5, f"version {number} of {newest}"
        staleness.append((collection.metrics["collect/staleness"], (newest - version).float().mean().item()))
        scales.append(BatchNormalizer(env).statistics()["scale", "observation"])
        with torch.no_grad():  # an update: other weights, another sigma
            for parameter in actor.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        actor.solver.sigma = 0.75 + 0.01 * len(policies)
        collection.update_policy_weights_()
    assert all(logged == pytest.approx(seen) for logged, seen in staleness)
    assert not is_async or any(seen for _, seen in staleness), "nothing was stale: the test shows nothing"
    assert not torch.equal(scales[0], scales[-1]), "the statistics must go on"


def test_rollouts_that_are_too_old_are_dropped(start):
    collection, _, _ = start("collector=multi_async", "collector.max_staleness=0")
    dropped = 0
    for batch, _ in zip(collection, range(3), strict=False):
        assert (batch["policy_version"] == collection._version).all()
        dropped += collection.metrics["collect/dropped"]
        collection.update_policy_weights_()
    assert dropped > 0


@pytest.mark.parametrize("name", ["half_cheetah", "xhand/nut_bolt"])
def test_what_the_learner_normalises_is_what_a_normalising_environment_gives(name):
    options = [f"env={name}", "env.num_envs=3", "collector.frames_per_batch=96"]
    options += ["env.options.num_threads=1"] if "xhand" in name else []
    cfg = configure(*options)
    env = build_env(cfg, 3, 1)
    env.rollout(20, break_when_any_done=False)
    freeze_normalization(env)
    state = {key: value for key, value in env.transform.state_dict().items() if torch.is_tensor(value)}
    raw = make_worker_env(as_dict(cfg), 3, 1, state)
    torch.manual_seed(0)
    actions = torch.randn(30, 3, env.action_spec.shape[-1])

    def roll(one):
        one.set_seed(5)
        steps, policy = iter(actions), lambda td: td.set("action", next(steps))
        return one.rollout(30, policy, break_when_any_done=False)

    expected, batch = roll(env), roll(raw)
    normalizer = BatchNormalizer(env)
    statistics = normalizer.statistics()
    keys = list(statistics["loc"].keys())
    assert len(keys) == (2 if "xhand" in name else 1)
    normalizer.normalize(batch, statistics.expand(*batch.shape))
    for key in [*keys, *(("next", key) for key in (*keys, "reward", "discounted_return", "done"))]:
        torch.testing.assert_close(batch[key], expected[key], rtol=2e-5, atol=2e-5)


def test_running_statistics_are_those_of_all_batches_together():
    env = make_env("pendulum", num_envs=2, seed=0)
    normalizer = BatchNormalizer(env)
    assert not normalizer.has_seen_data
    raw = build_env(configure("env.normalize_observation=false", "env.scale_reward=false"), 4, 0)
    batches = [raw.rollout(steps, break_when_any_done=False) for steps in (5, 9)]
    for batch in batches:
        batch["next", "discounted_return"] = batch["next", "reward"] * 3
        normalizer.update(batch)
    assert normalizer.has_seen_data
    together = torch.cat(batches, 1)["next"].double()
    mean, deviation = together["observation"].mean((0, 1)), together["observation"].std((0, 1), correction=0)
    statistics = normalizer.statistics()
    torch.testing.assert_close(statistics["loc", "observation"].double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        statistics["scale", "observation"].double(), deviation.clamp_min(1e-4), rtol=1e-4, atol=0
    )
    assert all(m._count[key] == 56 for m in env.modules() if isinstance(m, VecNormV2) for key in m.in_keys)


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
        (["collector=multi_sync", "collector.frames_per_batch=127"], "frames_per_batch=127 must be a multiple of"),
        (["collector.kind=threads"], "Unknown collector 'threads'; choose from sync, multi_sync"),
        (["loss.proximal_decay=0.9", "policy=fpo"], "needs a policy with a density; fpo has none"),
        (["loss.ratio=action", "policy=gaussian"], "loss.ratio=action is of flows with a memory"),
    ],
)
def test_what_cannot_be_is_explained(start, overrides, message):
    with pytest.raises(ValueError, match=message):
        start(*overrides)


def test_ray_that_is_missing_is_named_with_its_installation(start, monkeypatch):
    from torchrl_genpo.training import workers

    monkeypatch.setattr(workers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "torchrl-genpo\[ray\]"'):
        start("collector=ray")


def test_a_failure_to_collect_is_a_failure_of_workers(start):
    collection, _, _ = start("collector=multi_sync")
    collection._cfg.env.name = "no_such_task"
    with pytest.raises(WorkerError, match=r"Collection failed.*no_such_task"):
        next(collection)


def test_the_decoupled_objective_clips_about_an_average_of_policies_and_weighs_by_its_ratio_to_the_behaviour():
    torch.manual_seed(0)
    actor = ReversibleFlowActor(VelocityMLP(obs_dim=3, action_dim=2, hidden_sizes=(16, 16))).double()
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
