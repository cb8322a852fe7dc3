# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Measures the time and the memory that a piece of work takes."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["CLOCKS", "PeakMemory", "medians", "peak_megabytes", "synchronized"]

CLOCKS = {"cpu": time.process_time, "cuda": time.perf_counter}
"""The clock of a device: other work on the machine hardly changes the processor time of a process."""


def medians(
    works: dict[Any, Callable[[], Any]], repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Any, float]:
    """Returns the median seconds of each work. The works take turns, so that all of them meet the same conditions."""
    for work in works.values():
        for _ in range(3):
            work()
    times: dict[Any, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            begin = clock()
            work()
            times[name].append(clock() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def synchronized(work: Callable[[], Any], device: str) -> Callable[[], None]:
    """Returns the work followed by a wait until the device has done it."""

    def run() -> None:
        work()
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def peak_megabytes(work: Callable[[], Any], device: str = "cpu") -> float:
    """Returns the most megabytes of tensors made by the work that are alive at one time."""
    if device == "cpu":
        with PeakMemory() as memory:
            work()
        return memory.peak / 1e6
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._track(tensor.untyped_storage())
        return out

    def _track(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
