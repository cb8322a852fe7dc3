# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Random streams: each is spawned from the one seed of a run, so that no two are the same."""

from __future__ import annotations

import operator
from enum import IntEnum

import numpy as np

__all__ = ["MAX_SEED", "Purpose", "check_seed", "spawn_generator", "spawn_seed"]

MAX_SEED = 2**63 - 1
SIMULATOR_BITS = 31  # of a seed that any simulator accepts


class Purpose(IntEnum):
    """What a run draws random numbers for; the first number of the key of :func:`spawn_seed`."""

    LEARNING = 0  # weights, the policy's noise, mini-batches
    COLLECTION = 1
    EVALUATION = 2
    VIDEO = 3


def check_seed(seed: int) -> int:
    """Returns a seed as a plain integer.

    Args:
        seed (int): what a user gave.

    Raises:
        ValueError: if it is no integer from 0 to ``2**63 - 1``.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool) or not 0 <= number <= MAX_SEED:
        raise ValueError(f"seed={seed!r} must be an integer from 0 to 2**63 - 1.")
    return number


def spawn_seed(seed: int, *key: int, bits: int = 63) -> int:
    """Returns the seed of one of the streams that belong to a seed.

    Args:
        seed (int): the seed that a user gave, or one that this function returned.
        *key (int): which stream, by the spawn key of :class:`numpy.random.SeedSequence`. Only the last number may be
            ``2**32`` or more.
        bits (int, optional): the size of the returned seed. Defaults to ``63``.

    Raises:
        ValueError: if ``seed`` is no integer from 0 to ``2**63 - 1``.

    Examples:
        >>> from torchrl_genpo.envs.seeds import Purpose, spawn_seed
        >>> spawn_seed(0, Purpose.EVALUATION) == spawn_seed(0, Purpose.EVALUATION)
        True
        >>> spawn_seed(0, Purpose.EVALUATION) == spawn_seed(0, Purpose.VIDEO)
        False
    """
    return int(_sequence(seed, key).generate_state(1, np.uint64)[0] >> np.uint64(64 - bits))


def spawn_generator(seed: int, *key: int) -> np.random.Generator:
    """Returns NumPy's generator of one of the streams that belong to a seed; see :func:`spawn_seed`."""
    return np.random.default_rng(_sequence(seed, key))


def _sequence(seed: int, key: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence(check_seed(seed), spawn_key=key)
