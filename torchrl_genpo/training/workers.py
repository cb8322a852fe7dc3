# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Collection by TorchRL's collectors in several processes of this machine.

Workers act by copies of the policy, its normaliser included. Every step tells which version of the policy acted.
"""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.collectors import BaseCollector, MultiAsyncCollector, MultiSyncCollector
from torchrl.envs import EnvBase
from torchrl.weight_update import MultiProcessWeightSyncScheme

from torchrl_genpo.config.schema import TrainOptions
from torchrl_genpo.envs import WorkerError, spawn_seed
from torchrl_genpo.training.build import build_env
from torchrl_genpo.training.progress import Progress
from torchrl_genpo.training.signals import ignore_signals

__all__ = ["VersionedPolicy", "WorkerCollection", "make_worker_env"]

COLUMNS = ("collect/staleness", "collect/max_staleness", "collect/dropped")  # that only workers have

VERSION = "policy_version"


class VersionedPolicy(TensorDictModuleBase):
    """What acts in a worker: the policy, and the version of it.

    All that changes between updates is a parameter or a buffer, so that TorchRL's weight synchronisation carries it.
    Writes what the policy writes and ``policy_version`` ``[...]``, int64: the version that acted. (TorchRL's own
    ``PolicyVersion`` counts the updates that a worker has received, not the learner's.)

    Args:
        policy (TensorDictModuleBase): the policy.
    """

    def __init__(self, policy: TensorDictModuleBase) -> None:
        super().__init__()
        self.in_keys, self.out_keys = list(policy.in_keys), [*policy.out_keys, VERSION]
        self.policy = policy
        self.version: Tensor
        self.register_buffer("version", torch.zeros((), dtype=torch.int64))
        self._received: deque[TensorDictBase] = deque(maxlen=1)

    def weights(self) -> TensorDict:
        """A copy of all parameters and buffers."""
        return TensorDict.from_module(self).data.clone()

    def receive(self, weights: TensorDictBase) -> None:
        """Takes weights, from any thread, that count from the next step on."""
        self._received.append(weights)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Acts, and writes which version did."""
        if self._received:
            mine = TensorDict.from_module(self)
            for key, value in self._received.pop().items(True, True):
                mine[key].data = value  # not in place: the memory may be that of all workers
        tensordict = self.policy(tensordict)
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


def make_worker_env(config: dict[str, Any], num_envs: int, seed: int) -> EnvBase:
    """The environment of one worker, on the CPU; signals are for the process of the run.

    Args:
        config (dict): the options of the run.
        num_envs (int): of this worker.
        seed (int): of this worker, for its policy too.
    """
    ignore_signals()
    options = TrainOptions.model_validate(config | {"device": "cpu"})
    torch.set_num_threads(options.num_threads)
    env = build_env(options, num_envs, seed)
    torch.manual_seed(seed)
    return env


class WorkerCollection:
    """Collection by workers; see :class:`~torchrl_genpo.training.collection.Collection` for what the loop calls.

    Each of ``collector.num_workers`` has its part of ``env.num_envs`` environments, and a batch is one rollout of each.
    Where workers do not wait for the learner (``multi_async``), a batch is made of the rollouts that come first, those
    with a step older than ``collector.max_staleness`` updates are dropped, and a worker may be in it twice. Workers
    start with the first batch, and again after a restart or a resume, with new episodes.

    Args:
        options (TrainOptions): of the run.
        policy (TensorDictModuleBase): the policy that is trained.
        seed (int): the seed of this process for its environments.
        progress (Progress): of the run.
    """

    def __init__(self, options: TrainOptions, policy: TensorDictModuleBase, seed: int, progress: Progress) -> None:
        self.columns = list(COLUMNS)
        self.metrics: dict[str, float] = {}
        self._run, self._seed, self._progress = options, seed, progress
        self._options: Any = options.collector
        self._is_async = self._options.kind == "multi_async"
        self._version = -1
        self._learner = VersionedPolicy(policy)
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
        batch = TensorDict.cat(rollouts).to(self._run.device)
        staleness = (self._version - batch[VERSION]).float()
        self.metrics["collect/staleness"] = staleness.mean().item()
        self.metrics["collect/max_staleness"] = staleness.max().item()
        return batch

    def update_policy_weights_(self) -> None:
        """Sends the weights with the next batch, when the statistics of the normaliser are settled too."""
        self._has_news = True

    def restart_episodes(self) -> None:
        """Ends the workers; the next batch starts others, with streams of the present frame."""
        self.close()

    def parts(self) -> dict[str, Any]:
        """Nothing: simulators begin anew."""
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
            if self._is_async and self._version - int(rollout[VERSION].min()) > self._options.max_staleness:
                self.metrics["collect/dropped"] += rollout.numel()
            else:
                rollouts.append(rollout)
        return rollouts

    def _publish(self) -> None:
        """Makes a new version of the policy, and sends it."""
        self._version += 1
        self._learner.version.fill_(self._version)
        self._has_news = False
        if self._collector is not None:
            self._collector.update_policy_weights_(self._learner.weights().cpu())

    def _start(self) -> None:
        self._publish()
        options = self._options
        makers = [
            partial(
                make_worker_env,
                self._run.model_dump(mode="json"),
                self._run.env.num_envs // options.num_workers,
                spawn_seed(self._seed, worker, self._progress.frames),
            )
            for worker in range(options.num_workers)
        ]
        kind: Any = MultiAsyncCollector if self._is_async else MultiSyncCollector
        self._collector = collector = kind(
            makers,
            copy.deepcopy(self._learner).cpu(),
            frames_per_batch=options.frames_per_batch // (options.num_workers if self._is_async else 1),
            total_frames=-1,
            device="cpu",
            trust_policy=True,
            auto_register_policy_transforms=False,
            weight_sync_schemes={"policy": _BetweenSteps()},
            use_buffers=True,
            num_threads=torch.get_num_threads(),
            **({} if self._is_async else {"cat_results": 0}),
        )
        self._batches = iter(collector)
        if not self._is_async:
            collector.update_policy_weights_(self._learner.weights().cpu())
