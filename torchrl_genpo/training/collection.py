# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Where the data of a run is collected: in this process, or by workers that have processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

from torchrl_genpo.config.schema import TrainOptions
from torchrl_genpo.envs import one_simulation, simulator_state, spawn_seed, stagger_episodes
from torchrl_genpo.training.progress import Progress

__all__ = ["Collection", "LocalCollection", "make_collection"]


class Collection(Protocol):
    """What the loop asks of a collection; iterated over, it yields raw batches ``[num_envs, time]``.

    Attributes:
        metrics (dict): of the last batch, as columns of ``metrics.csv``.
        columns (list of str): the names that ``metrics`` may have.
    """

    metrics: dict[str, float]
    columns: list[str]

    def __iter__(self) -> Iterator[TensorDictBase]: ...

    def update_policy_weights_(self) -> None:
        """To be called when the policy has changed."""

    def restart_episodes(self) -> None:
        """Leaves all episodes and begins others."""

    def parts(self) -> dict[str, Any]:
        """What a checkpoint has to hold to continue the episodes; nothing where they begin anew."""

    def close(self) -> None:
        """Ends the workers; the environment that the collection was given stays."""


class _Carrier:
    """The tensordict in which a collector keeps its place in the environments.

    TorchRL does not save it (``Collector.state_dict`` holds weights, transforms and counters only).
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def state_dict(self) -> dict[str, Any]:
        return self._collector._carrier.exclude("next").flatten_keys(".").to_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        carrier = self._collector._carrier
        carrier.update(TensorDict(state_dict, batch_size=carrier.batch_size).unflatten_keys("."))


class LocalCollection:
    """Collection in this process, from the environment itself; resumes exactly where the simulator can.

    Args:
        options (TrainOptions): of the run.
        env (EnvBase): the environment.
        policy (TensorDictModuleBase): the policy.
        seed (int): the seed of this process for its environments.
        progress (Progress): of the run.
    """

    def __init__(
        self, options: TrainOptions, env: EnvBase, policy: TensorDictModuleBase, seed: int, progress: Progress
    ) -> None:
        self.metrics: dict[str, float] = {}
        self.columns: list[str] = []
        self._env, self._seed, self._progress = env, seed, progress
        self._collector = Collector(
            env,
            policy,
            frames_per_batch=options.collector.frames_per_batch,
            total_frames=-1,  # the loop counts, over all ranks
            device=options.device,
            trust_policy=True,
            track_traj_ids=False,
            auto_register_policy_transforms=False,
            no_cuda_sync=options.device == "cpu",
            compile_policy={"mode": options.compile.mode} if options.compile.enabled else None,
            cudagraph_policy=options.compile.cudagraphs or None,
        )
        stagger_episodes(env)

    def __iter__(self) -> Iterator[TensorDictBase]:
        return iter(self._collector)

    def update_policy_weights_(self) -> None:
        """Matters where the collector has a copy, as with CUDA graphs."""
        self._collector.update_policy_weights_()

    def restart_episodes(self) -> None:
        """With streams of the present frame."""
        self._env.set_seed(spawn_seed(self._seed, self._progress.frames))
        self._collector.reset()
        stagger_episodes(self._env)

    def parts(self) -> dict[str, Any]:
        """The simulator and the collector's place in it."""
        simulator = simulator_state(self._env)
        return {} if simulator is None else {"carrier": _Carrier(self._collector), "simulator": simulator}

    def close(self) -> None:
        """Ends the collector."""
        self._collector.shutdown(close_env=False)


def make_collection(
    options: TrainOptions, env: EnvBase, policy: TensorDictModuleBase, seed: int, progress: Progress
) -> Collection:
    """Builds what ``collector.kind`` says; the arguments are those of :class:`LocalCollection`.

    Raises:
        ValueError: for a kind that the environment or the number of workers does not allow.
    """
    kind = options.collector.kind
    if kind == "sync":
        return LocalCollection(options, env, policy, seed, progress)
    if one_simulation(options.env.name):
        raise ValueError(
            f"collector={kind} is for simulators on CPUs; for {options.env.name} on several GPUs use torchrun."
        )
    from torchrl_genpo.training.workers import WorkerCollection

    return WorkerCollection(options, policy, seed, progress)
