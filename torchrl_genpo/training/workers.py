# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Collection by TorchRL's distributed collectors, with one running normalisation for all workers.

Workers simulate without normalisation and act by a :class:`BehaviorPolicy`, in which frozen statistics precede the
policy. The learner normalises a batch with the statistics of the version that collected it, and only then lets the raw
batch move them. So the stored log-probability is that of exactly the observation that an update sees.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor
from torchrl.collectors import BaseCollector, MultiAsyncCollector, MultiSyncCollector
from torchrl.envs import EnvBase
from torchrl.weight_update import MultiProcessWeightSyncScheme

from torchrl_genpo.configuration import as_dict, build_env
from torchrl_genpo.envs import BatchNormalizer, WorkerError, normalization_transforms
from torchrl_genpo.models import observation_keys
from torchrl_genpo.training.checkpoint import Progress

__all__ = ["BehaviorPolicy", "WorkerCollection", "make_worker_env"]

COLUMNS = ("collect/staleness", "collect/max_staleness", "collect/dropped")  # that only workers have

VERSION = "policy_version"
Makers = list[Callable[[], EnvBase]]
FIRST_STEPS = 32  # in each of the learner's environments, for statistics to begin with


class BehaviorPolicy(TensorDictModuleBase):
    """What acts in a worker: frozen normalisation, the policy, and the version of both.

    All that changes with an update is a parameter or a buffer, so that TorchRL's weight synchronisation carries it.
    Reads raw observations, writes what the policy writes and ``policy_version`` ``[...]``, int64: the version that
    acted. (TorchRL's own ``PolicyVersion`` counts the updates that a worker has received, not the learner's.)

    Args:
        actor (TensorDictModule): the policy.
        statistics (TensorDictBase): see :meth:`~torchrl_genpo.envs.BatchNormalizer.statistics`.
    """

    def __init__(self, actor: TensorDictModule, statistics: TensorDictBase) -> None:
        super().__init__()
        self.in_keys, self.out_keys = list(actor.in_keys), [*actor.out_keys, VERSION]
        self.actor = actor
        self._normalized = [key for key in self.in_keys if key in statistics["loc"].keys()]
        for key in self._normalized:
            for name in ("loc", "scale"):
                self.register_buffer(f"{key}_{name}", statistics[name, key].clone())
        self.register_buffer("version", torch.zeros((), dtype=torch.int64))
        sigma = getattr(getattr(actor, "solver", None), "sigma", None)
        if isinstance(sigma, float):  # moves with an AdaptiveSigma
            self.register_buffer("sigma", torch.tensor(sigma, dtype=torch.float64))
        self._received: deque[TensorDictBase] = deque(maxlen=1)

    def set_statistics(self, statistics: TensorDictBase, version: int) -> None:
        """Takes over the learner's present statistics, version and sigma; the weights are its own."""
        for key in self._normalized:
            for name in ("loc", "scale"):
                self.get_buffer(f"{key}_{name}").copy_(statistics[name, key])
        self.version.fill_(version)
        if hasattr(self, "sigma"):
            self.sigma.fill_(self.actor.solver.sigma)

    def weights(self) -> TensorDict:
        """A copy of all parameters and buffers."""
        return TensorDict.from_module(self).data.clone()

    def receive(self, weights: TensorDictBase) -> None:
        """Takes weights, from any thread, that count from the next step on."""
        self._received.append(weights)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Acts on raw observations."""
        if self._received:
            mine = TensorDict.from_module(self)
            for key, value in self._received.pop().items(True, True):
                mine[key].data = value  # not in place: the memory may be that of all workers
        if hasattr(self, "sigma") and (sigma := self.sigma.item()) != self.actor.solver.sigma:
            self.actor.solver.sigma = sigma
        seen = tensordict.select(*self.in_keys)
        for key in self._normalized:
            statistics = (self.get_buffer(f"{key}_{name}") for name in ("loc", "scale"))
            seen[key] = BatchNormalizer.normalize_observation(seen[key], *statistics)
        tensordict.update(self.actor(seen).exclude(*self.in_keys))
        return tensordict.set(VERSION, self.version.expand(tensordict.batch_size).clone())


class _BetweenSteps(MultiProcessWeightSyncScheme):
    """TorchRL's queues for weights, but a worker that is collecting never acts by half an update.

    The thread that receives would write them while the policy reads; here the policy takes them over between two steps.
    """

    def _background_receive_loop(self) -> None:
        while not self._stop_event.is_set():
            instruction = self._wait_for_instruction()
            if instruction == "receive":
                self.model.receive(self._receiver_transport.receive_weights())
                self._send_ack("updated")
            elif instruction == "stop":
                break


def make_worker_env(
    config: dict[str, Any], num_envs: int, seed: int, state: dict[str, Tensor], ignore_signals: bool = False
) -> EnvBase:
    """The environment of one worker: raw numbers, on the CPU.

    Args:
        config (dict): of the run.
        num_envs (int): of this worker.
        seed (int): of this worker, for its policy too.
        state (dict): of the transforms of the learner's environment; ranges that stand still come from it.
        ignore_signals (bool, optional): SIGINT and SIGTERM, which a terminal or a scheduler sends to every process: the
            learner decides when to stop. Defaults to ``False``.
    """
    if ignore_signals and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    cfg = OmegaConf.create(config)
    torch.set_num_threads(cfg.num_threads)
    wanted = cfg.env.normalize_observation, cfg.env.scale_reward
    cfg.device, cfg.env.normalize_observation, cfg.env.scale_reward = "cpu", False, False
    env = build_env(cfg, num_envs, seed)
    keys = observation_keys(env) if wanted[0] else []
    for transform in normalization_transforms(keys, cfg.loss.gamma if wanted[1] else None, deferred=True):
        env.append_transform(transform)
    mine = env.transform.state_dict()
    env.transform.load_state_dict(mine | {key: value for key, value in state.items() if key in mine})
    torch.manual_seed(seed)
    return env


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


class WorkerCollection:
    """Collection by workers; see :class:`~torchrl_genpo.training.collection.Collection` for what the loop calls.

    Each of ``collector.num_workers`` has its part of ``env.num_envs`` environments, and a batch is one rollout of each.
    Where workers do not wait for the learner (``multi_async``, ``ray`` with ``synchronous=false``), a batch is made of
    the rollouts that come first, those with a step older than ``collector.max_staleness`` updates are dropped, and a
    worker may be in it twice. Workers start with the first batch, and again after a restart or a resume, with new
    episodes.

    Args:
        cfg (DictConfig): of the run.
        env (EnvBase): of the learner; holds the statistics, and collects a few steps to begin them.
        actor (TensorDictModule): the policy that is trained.
        seed (int): of this process.
        progress (Progress): of the run.
    """

    def __init__(self, cfg: DictConfig, env: EnvBase, actor: TensorDictModule, seed: int, progress: Progress) -> None:
        self.columns = list(COLUMNS)
        self.metrics: dict[str, float] = {}
        self._cfg, self._env, self._actor, self._seed, self._progress = cfg, env, actor, seed, progress
        options = self._options = cfg.collector
        for name, number in (("env.num_envs", cfg.env.num_envs), ("frames_per_batch", options.frames_per_batch)):
            if number % options.num_workers or number < options.num_workers:
                raise ValueError(f"{name}={number} must be a multiple of collector.num_workers={options.num_workers}.")
        if options.kind == "ray" and importlib.util.find_spec("ray") is None:
            raise ImportError('collector=ray needs Ray: pip install "torchrl-genpo[ray]"')
        self._is_async = options.kind == "multi_async" or not options.get("synchronous", True)
        if options.kind == "rpc" and torch.distributed.is_initialized():
            raise ValueError("collector=rpc has a process group of its own: under torchrun use multi_sync or ray.")
        self._normalizer = BatchNormalizer(env)
        self._statistics: dict[int, TensorDict] = {}  # by version
        self._version = -1
        self._learner = BehaviorPolicy(actor, self._normalizer.statistics())
        self._collector: BaseCollector | None = None

    def __iter__(self) -> Iterator[TensorDictBase]:
        return self

    def __next__(self) -> TensorDictBase:
        try:
            if self._collector is None:
                self._start()
            elif self._has_news:
                self._publish()
            rollouts = self._gather()
        except Exception as error:
            self.close()
            raise WorkerError(f"Collection failed ({self._options.kind}): {type(error).__name__}: {error}") from error
        batch = TensorDict.cat(rollouts).to(self._cfg.device)
        version = batch[VERSION]
        oldest = min(self._statistics)
        table = TensorDict.stack([self._statistics[number] for number in range(oldest, self._version + 1)])
        raw = batch.select(*(("next", key) for key in batch["next"].keys())).clone()
        self._normalizer.normalize(batch, table.to(batch.device)[version - oldest])
        self._normalizer.update(raw)
        staleness = (self._version - version).float()
        self.metrics["collect/staleness"] = staleness.mean().item()
        self.metrics["collect/max_staleness"] = staleness.max().item()
        return batch

    def update_policy_weights_(self) -> None:
        """Sends weights and statistics with the next batch, when both are settled."""
        self._has_news = True

    def restart_episodes(self) -> None:
        """Ends the workers; the next batch starts others, with seeds of the present frame."""
        self.close()

    def parts(self) -> dict[str, Any]:
        """Nothing: weights and statistics are the learner's, simulators begin anew."""
        return {}

    def close(self) -> None:
        """Ends the workers."""
        collector, self._collector = self._collector, None
        if collector is not None:
            with contextlib.suppress(Exception):  # a dead worker cannot say goodbye
                collector.shutdown()

    def _gather(self) -> list[TensorDictBase]:
        """Rollouts ``[envs, time]`` for one batch, fresh enough."""
        wanted = self._options.num_workers if self._is_async else 1
        rollouts: list[TensorDictBase] = []
        self.metrics["collect/dropped"] = 0
        while len(rollouts) < wanted:
            rollout = next(self._batches)
            rollout = rollout.reshape(-1, rollout.shape[-1])
            rollout.names = None
            if self._version - int(rollout[VERSION].min()) > self._max_staleness:
                self.metrics["collect/dropped"] += rollout.numel()
            else:
                rollouts.append(rollout)
        return rollouts

    @property
    def _max_staleness(self) -> int:
        return self._options.get("max_staleness", 0) if self._is_async else 0

    def _publish(self) -> None:
        """Makes a new version of weights and statistics, and sends it."""
        self._version += 1
        statistics = self._statistics[self._version] = self._normalizer.statistics().cpu()
        for version in list(self._statistics):
            if version < self._version - self._max_staleness:
                del self._statistics[version]
        self._learner.set_statistics(statistics, self._version)
        self._has_news = False
        if self._collector is None:
            return
        weights = self._learner.weights().cpu()
        if self._options.kind == "ray":
            TensorDict.from_module(self._sent).data.update_(weights)
        if not (self._options.kind == "ray" and self._is_async):  # which sends them to a worker that comes back
            self._collector.update_policy_weights_(weights)

    def _start(self) -> None:
        if not self._normalizer.has_seen_data:
            with torch.no_grad():
                self._env.rollout(FIRST_STEPS, self._actor, break_when_any_done=False)
        self._statistics.clear()
        self._publish()
        self._sent = copy.deepcopy(self._learner).cpu()
        options, seed = self._options, self._seed + self._progress.frames
        num_envs = self._cfg.env.num_envs // options.num_workers
        state = {key: value.cpu() for key, value in self._env.transform.state_dict().items() if torch.is_tensor(value)}
        makers = [
            partial(
                make_worker_env,
                as_dict(self._cfg),
                num_envs,
                seed + worker * num_envs,
                state,
                ignore_signals=options.kind.startswith("multi"),
            )
            for worker in range(options.num_workers)
        ]
        self._collector = getattr(self, f"_make_{options.kind}")(makers)
        self._batches = iter(self._collector)
        if not self._is_async:
            self._collector.update_policy_weights_(self._learner.weights().cpu())

    def _make_multi(self, kind: Callable[..., BaseCollector], makers: Makers, **options: Any) -> BaseCollector:
        return kind(
            makers,
            self._sent,
            total_frames=-1,
            device="cpu",
            trust_policy=True,
            auto_register_policy_transforms=False,
            weight_sync_schemes={"policy": _BetweenSteps()},
            use_buffers=True,
            num_threads=torch.get_num_threads(),
            **options,
        )

    def _make_multi_sync(self, makers: Makers) -> BaseCollector:
        return self._make_multi(
            MultiSyncCollector, makers, frames_per_batch=self._options.frames_per_batch, cat_results=0
        )

    def _make_multi_async(self, makers: Makers) -> BaseCollector:
        frames = self._options.frames_per_batch // self._options.num_workers
        return self._make_multi(MultiAsyncCollector, makers, frames_per_batch=frames)

    def _make_ray(self, makers: Makers) -> BaseCollector:
        from torchrl.collectors.distributed import RayCollector

        options = self._options
        frames = options.frames_per_batch // (options.num_workers if self._is_async else 1)
        return RayCollector(
            makers,
            self._sent,
            frames_per_batch=frames,
            total_frames=sys.maxsize,
            device="cpu",
            sync=not self._is_async,
            update_after_each_batch=self._is_async,
            trust_policy=True,
            collector_kwargs=[{"auto_register_policy_transforms": False} for _ in makers],
            ray_init_config={"address": options.address, "logging_level": "warning", "log_to_driver": False},
            remote_configs={"num_cpus": options.cpus_per_worker},
        )

    def _make_rpc(self, makers: Makers) -> BaseCollector:
        from torchrl.collectors.distributed import RPCCollector

        options = self._options
        return RPCCollector(
            makers,
            self._sent,
            frames_per_batch=options.frames_per_batch,
            total_frames=sys.maxsize,
            device="cpu",
            sync=True,
            collector_kwargs={"trust_policy": True, "auto_register_policy_transforms": False},
            launcher=options.launcher,
            slurm_kwargs=as_dict(options.slurm),
            tcp_port=options.port or _free_port(),
        )
