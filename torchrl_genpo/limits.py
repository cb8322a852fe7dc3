# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What names and values of a configuration may be: checked before a folder is made or memory is taken."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = [
    "LIMITS",
    "SECTIONS",
    "TRAINING",
    "Choice",
    "Names",
    "Number",
    "Sizes",
    "Text",
    "check_config",
    "check_memory",
    "did_you_mean",
]

BYTES = 4  # of a number
DEVICE = r"cpu|(cuda|xpu)(:\d{1,3})?|mps"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The sentence of an error that offers the known names closest to a mistyped one; empty if none is close.

    Examples:
        >>> did_you_mean("hoper", ["hopper", "walker2d"])
        ' Did you mean hopper?'
    """
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {', '.join(close)}?" if close else ""


@dataclass(frozen=True)
class Number:
    """A finite number in ``[low, high]``.

    Attributes:
        low (float): smallest value.
        high (float): largest value: far above what makes sense, lest a slip of the keyboard fill the memory.
        is_whole (bool): whether it must be an integer.
        is_open (bool): whether ``low`` itself is excluded.
        is_optional (bool): whether it may be ``null``.
    """

    low: float = 0
    high: float = 1e12
    is_whole: bool = False
    is_open: bool = False
    is_optional: bool = False

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or ``None``.

        Examples:
            >>> Number(0, 1, is_open=True).problem(0)
            'must be a number above 0 and at most 1'
        """
        if value is None and self.is_optional:
            return None
        is_number = isinstance(value, int if self.is_whole else (int, float)) and not isinstance(value, bool)
        if is_number and self.low <= value <= self.high and not (self.is_open and value == self.low):
            return None
        kind = "an integer" if self.is_whole else "a number"
        least = f"above {self.low:g}" if self.is_open else f"of at least {self.low:g}"
        return f"must be {kind} {least} and at most {self.high:g}" + (", or null" if self.is_optional else "")


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Any, ...]

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or ``None``; 1 is not ``true``."""
        if any(type(value) is type(known) and value == known for known in self.values):
            return None
        names = ("null" if known is None else str(known).lower() for known in self.values)
        return "must be " + " or ".join(names)


@dataclass(frozen=True)
class Text:
    """A name or a path."""

    is_optional: bool = False

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or ``None``."""
        if (isinstance(value, str) and value and "\0" not in value) or (value is None and self.is_optional):
            return None
        return "must be a text that is not empty" + (", or null" if self.is_optional else "")


@dataclass(frozen=True)
class Names:
    """Some names, or ``null``."""

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or ``None``."""
        if value is None or (isinstance(value, list) and value and not any(map(Text().problem, value))):
            return None
        return "must be a list of names, as [a,b], or null"


@dataclass(frozen=True)
class Sizes:
    """Widths of the layers of a network."""

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or ``None``."""
        width = Number(1, 1e5, is_whole=True)
        if isinstance(value, list) and 0 < len(value) <= 100 and not any(map(width.problem, value)):
            return None
        return "must be a list of one to 100 integers, each of at least 1 and at most 100000"


def _count(low: int = 1, high: float = 1e12, **kwargs: Any) -> Number:
    return Number(low, high, is_whole=True, **kwargs)


FLAG = Choice((True, False))
POSITIVE = Number(0, 1e6, is_open=True)
NOT_NEGATIVE = Number(0, 1e6)
FRACTION = Number(0, 1)
SWITCHES = ("all_joints", "end_at_success", "randomize", "reward_shaping")
NETWORK: dict[str, Sizes | Text] = {"hidden_sizes": Sizes(), "activation": Text()}
SECTIONS = (
    *("checkpoint", "collector", "compile", "critic", "diagnostics", "env", "eval"),
    *("logger", "loss", "optim", "policy", "pretrain", "solver", "start", "tolerance"),
)
"""Mappings of options, where they are there."""

LIMITS: dict[str, Number | Choice | Text | Names | Sizes] = {
    "seed": _count(0, 2**31 - 1),
    "num_threads": _count(1, 4096),
    "device": Text(),
    "video": FLAG,
    "resume": Text(is_optional=True),
    "evaluate": Text(is_optional=True),
    "euler": FLAG,
    "env.name": Text(),
    "env.num_envs": _count(1, 2**17),
    "env.steps_per_env": _count(1, 1e6),
    "env.mini_batches": _count(1, 1e6),
    "env.iterations": _count(1, 1e9),
    "env.normalize_observation": FLAG,
    "env.scale_reward": FLAG,
    "env.symmetry": FLAG,
    **dict.fromkeys((f"env.options.{name}" for name in SWITCHES), FLAG),
    "env.options.chunk_size": _count(1, 1e4),
    "env.options.num_workers": _count(0, 4096),
    "env.options.num_threads": _count(1, 4096, is_optional=True),
    "env.options.history": _count(1, 1e3),
    "env.options.horizon": _count(1, 1e9, is_optional=True),
    "env.options.max_steps": _count(1, 1e9),
    "env.options.reward_scale": Number(-1e6, 1e6),
    "env.options.simulation_timestep": Number(0, 1, is_open=True),
    "env.options.asset_root": Text(is_optional=True),
    "env.options.dataset": Text(is_optional=True),
    "env.options.observation_keys": Names(),
    "env.options.physics": Text(is_optional=True),
    "collector.kind": Text(),
    "collector.total_frames": _count(),
    "collector.frames_per_batch": _count(1, 1e9),
    "collector.num_workers": _count(1, 4096),
    "collector.max_staleness": _count(0, 1e6),
    "collector.synchronous": FLAG,
    "collector.address": Text(is_optional=True),
    "collector.cpus_per_worker": Number(0, 4096),
    "collector.launcher": Choice(("mp", "submitit")),
    "collector.port": _count(1, 65535, is_optional=True),
    **{f"policy.{name}": rule for name, rule in NETWORK.items()},
    "policy.name": Text(),
    "policy.time_embedding_dim": _count(0, 1e4, is_optional=True),
    "policy.init": Text(is_optional=True),
    "policy.transformer.chunk_size": _count(1, 1e4),
    "policy.transformer.width": _count(1, 1e5),
    "policy.transformer.num_layers": _count(1, 1e3),
    "policy.transformer.num_heads": _count(1, 1e4),
    "policy.options.num_steps": _count(1, 1e4),
    "policy.options.perturbation": NOT_NEGATIVE,
    "policy.options.initial_scale": POSITIVE,
    "policy.loss.num_samples": _count(1, 1e5),
    "policy.loss.max_error": POSITIVE,
    "policy.loss.max_log_ratio": POSITIVE,
    "policy.loss.compression_coeff": NOT_NEGATIVE,
    "policy.loss.brownian_coeff": NOT_NEGATIVE,
    "solver.name": Text(),
    "solver.num_steps": _count(1, 1e6),
    "solver.a": Number(-1e6, 1e6),
    "solver.mixing": FRACTION,
    "solver.adapt.target": POSITIVE,
    "solver.adapt.min_sigma": FRACTION,
    "solver.adapt.max_sigma": FRACTION,
    "start.name": Text(),
    "start.initial_scale": POSITIVE,
    "logger.backend": Choice(("csv", "tensorboard", "wandb")),
    "logger.mode": Choice(("offline", "online", "disabled", None)),
    "logger.project": Text(is_optional=True),
    **{f"critic.{name}": rule for name, rule in NETWORK.items()},
    "loss.gamma": FRACTION,
    "loss.gae_lambda": FRACTION,
    "loss.clip_epsilon": Number(0, 1e3, is_open=True),
    "loss.clip_value": Choice((True, False, None)),
    "loss.critic_coeff": NOT_NEGATIVE,
    "loss.entropy_coeff": NOT_NEGATIVE,
    "loss.normalize_advantage": FLAG,
    "loss.ratio": Choice(("pair", "action")),
    "loss.num_memories": _count(1, 1e4),
    "loss.proximal_decay": Number(0, 1, is_optional=True),
    "loss.epochs": _count(1, 1e6),
    "loss.mini_batch_size": _count(1, 1e9),
    "optim.lr": POSITIVE,
    "optim.schedule": Choice(("kl_adaptive", "linear", "constant")),
    "optim.target_kl": POSITIVE,
    "optim.min_lr": NOT_NEGATIVE,
    "optim.max_lr": POSITIVE,
    "optim.max_grad_norm": POSITIVE,
    "optim.noise_lr": Number(0, 1e6, is_open=True, is_optional=True),
    "optim.critic_lr": Number(0, 1e6, is_open=True, is_optional=True),
    "optim.critic_warmup": _count(0),
    "diagnostics.samples": _count(0, 1e9),
    "diagnostics.num_memories": _count(1, 1e5),
    "eval.interval": _count(),
    "eval.num_envs": _count(1, 2**17),
    "eval.rounds": _count(0, 1e6),
    "checkpoint.interval": _count(),
    "checkpoint.keep_last": _count(1, 1e6),
    "checkpoint.keep_best": Text(is_optional=True),
    "checkpoint.preempted_exit_code": _count(0, 255),
    "tolerance.undone_updates": _count(1, 1e6),
    "tolerance.restarts": _count(0, 1e6),
    "compile.enabled": FLAG,
    "compile.mode": Choice(("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")),
    "compile.cudagraphs": FLAG,
    "pretrain.dataset": Text(is_optional=True),
    "pretrain.filter_key": Text(is_optional=True),
    "pretrain.num_demonstrations": _count(is_optional=True),
    "pretrain.iterations": _count(),
    "pretrain.batch_size": _count(1, 1e9),
    "pretrain.action_noise": NOT_NEGATIVE,
    "pretrain.lr": POSITIVE,
    "pretrain.weight_decay": NOT_NEGATIVE,
    "pretrain.ema": FRACTION,
    "pretrain.log_interval": _count(),
    "pretrain.checkpoint_interval": _count(),
}
"""What a value of the configuration may be, by its dotted name; checked where it is there."""


ALWAYS = (
    *("seed", "device", "video", "num_threads", "critic", "loss", "optim"),
    *("diagnostics", "eval", "checkpoint", "compile", "tolerance"),
)
TRAINING = (
    *("policy.name", "env.name", "env.num_envs", "env.normalize_observation", "env.scale_reward"),
    *("collector.kind", "collector.total_frames", "collector.frames_per_batch"),
    *(name for name in LIMITS if name.split(".")[0] in ALWAYS),
)
"""What ``genpo.py`` reads of every configuration."""


def check_config(cfg: DictConfig, required: Sequence[str] = ()) -> None:
    """Checks the values of a configuration one by one, and those that must agree.

    Args:
        cfg (DictConfig): of ``genpo.py`` or ``pretrain.py``, or of a checkpoint.
        required (sequence of str, optional): what must be there, such as :data:`TRAINING`.

    Raises:
        ValueError: names the option, its value and what it may be.

    Examples:
        >>> check_config(OmegaConf.create({"seed": -1}))
        Traceback (most recent call last):
        ValueError: seed=-1: seed must be an integer of at least 0 and at most 2.14748e+09.
    """
    try:
        values: Any = OmegaConf.to_container(cfg, resolve=True)
    except (OmegaConfBaseException, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"The configuration cannot be resolved: {str(error).splitlines()[0]}") from error
    if missing := OmegaConf.missing_keys(cfg):
        raise ValueError(f"{', '.join(sorted(missing))} is missing: give it a value.")
    for section in SECTIONS:
        if section in values and not isinstance(values[section], dict):
            raise ValueError(f"{section}={_shown(values[section])}: {section} must be a mapping of options.")
    for name, rule in LIMITS.items():
        value, is_there = _select(values, name)
        problem = rule.problem(value) if is_there else None
        if not is_there and name in required:
            raise ValueError(f"{name} is missing: leave it where it is, or give it a value.")
        if problem is not None:
            raise ValueError(f"{name}={_shown(value)}: {name} {problem}.")
    device = values.get("device", "cpu")
    if re.fullmatch(DEVICE, device) is None:
        raise ValueError(f"device={device}: use cpu, cuda or cuda:<number>.")
    if values.get("compile", {}).get("cudagraphs"):
        if not device.startswith("cuda"):
            raise ValueError(f"compile.cudagraphs=true needs a CUDA device, not device={device}.")
        adapted, _ = _select(values, "solver.adapt.quantity")
        if adapted is not None:
            raise ValueError(
                f"solver.adapt.quantity={_shown(adapted)} moves sigma, which a CUDA graph keeps as it was captured: "
                "leave out compile.cudagraphs."
            )
    optim = values.get("optim", {})
    if optim.get("min_lr", 0) > optim.get("max_lr", math.inf):
        raise ValueError(f"optim.min_lr={optim['min_lr']} is above optim.max_lr={optim['max_lr']}.")
    frames = values.get("collector", {}).get("frames_per_batch", 0)
    check_memory(64 * BYTES * frames, f"collector.frames_per_batch={frames}")  # of a small task, in the three places
    for name in ("policy", "critic"):
        widths = values.get(name, {}).get("hidden_sizes", [])
        weights = sum(a * b for a, b in pairwise(widths))
        # parameters, gradients and two moments of the optimizer
        check_memory(4 * BYTES * weights, f"{name}.hidden_sizes={widths}")


def check_memory(size: int, what: str) -> None:
    """Raises a ``ValueError`` if ``size`` bytes are more than this machine has."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > available:
        raise ValueError(
            f"{what} would take about {size / 2**30:.0f} GiB of memory; this machine has {available / 2**30:.0f} GiB."
        )


def _shown(value: Any) -> str:
    """A value as a command line has it, not too long."""
    return "null" if value is None else f"{value!s:.200}"


def _select(values: Any, name: str) -> tuple[Any, bool]:
    for key in name.split("."):
        if not isinstance(values, Mapping) or key not in values:
            return None, False
        values = values[key]
    return values, True
