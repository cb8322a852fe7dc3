# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Malformed files for every reader: cut short, with flipped bits, with JSON that lies; and the readers of them."""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from forks import run_forked
from omegaconf import OmegaConf

from torchrl_genpo.configuration import build_actor, build_env, build_models
from torchrl_genpo.data import read_demonstrations, read_env_args, write_demonstrations
from torchrl_genpo.deploy import ExportedPolicy, PolicyExporter
from torchrl_genpo.envs import freeze_normalization
from torchrl_genpo.limits import check_config
from torchrl_genpo.runs import RunFolder, read_checkpoint_config, read_metrics
from torchrl_genpo.training import load_checkpoint, make_checkpoint
from torchrl_genpo.untrusted import read_yaml

KINDS = ("checkpoint", "policy", "config", "metrics", "hdf5")
CONFIG = {
    "seed": 0,
    "device": "cpu",
    "env": {"name": "pendulum", "num_envs": 1, "normalize_observation": True, "scale_reward": True},
    "policy": {"name": "reversible_flow", "hidden_sizes": [8], "activation": "mish", "time_embedding_dim": 8},
    "solver": {"name": "two_step", "num_steps": 3, "sigma": 0.75, "gradient": "stored"},
    "start": {"name": "independent", "scale": "learned"},
    "critic": {"hidden_sizes": [8], "activation": "tanh"},
    "loss": {
        "gamma": 0.99,
        "clip_epsilon": 0.2,
        "clip_value": None,
        "critic_coeff": 0.5,
        "entropy_coeff": 0.0,
        "normalize_advantage": True,
        "ratio": "pair",
        "num_memories": 2,
    },
}
REFUSALS = (ValueError, FileNotFoundError)  # what the readers document
MEMORY = 4 * 2**30  # that a reader may take beyond what this process has
LIES = [None, True, -1, 0, 1, 2**40, 10**30, 1e308, float("nan"), "", "x", "../../x", "S2000000000", "/etc/passwd"]
LIES += [[], {}, [[]], {"a": 1}, "${oc.env:HOME}", "__import__('os').getcwd()", "a" * 1000, [2**40, 2**40]]


class Samples:
    """One good file of each kind, and the readers of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        cfg = OmegaConf.create(CONFIG)
        env = build_env(cfg, 1, 0)
        env.rollout(20)
        _, _, loss = build_models(cfg, env)
        self._checkpoint = make_checkpoint(loss=loss, env=env)
        self.checkpoint = folder / "good.torchrl"
        self._checkpoint.save(self.checkpoint, metadata={"frames": 0, "config": CONFIG})
        self.policy = PolicyExporter(build_actor(cfg, freeze_normalization(env)), env).save(folder / "policy")
        self.config = folder / "config.yaml"
        self.config.write_text(OmegaConf.to_yaml(cfg))
        self.metrics = folder / "metrics.csv"
        self.metrics.write_text("frames,train/return\n" + "".join(f"{64 * i},{i / 7}\n" for i in range(1, 9)))
        self.hdf5 = folder / "good.hdf5"
        steps = np.linspace(0, 1, 12, dtype=np.float32).reshape(6, 2)
        parts = {"obs": {"object": steps}, "next_obs": {"object": steps}, "actions": steps, "model_file": "<mujoco/>"}
        parts |= dict.fromkeys(("rewards", "dones", "states"), steps[:, 0])
        write_demonstrations(
            self.hdf5, [parts, parts], {"env_name": "Lift", "type": 1, "env_kwargs": {"robots": "Panda"}}
        )

    def read_checkpoint(self, path: Path) -> None:
        read_checkpoint_config(path)
        load_checkpoint(self._checkpoint, path)

    def read_policy(self, path: Path) -> None:
        for runtime in ("onnx", "torch"):
            ExportedPolicy(path, runtime)(np.zeros(4))

    @staticmethod
    def read_config(path: Path) -> None:
        check_config(read_yaml(path))

    @staticmethod
    def read_metrics(path: Path) -> None:
        read_metrics(path)
        folder = RunFolder(path.with_name(f"{path.name}.run"), columns=["frames", "train/return"])
        shutil.copy(path, folder.metrics_path)
        folder.truncate_metrics(256)

    @staticmethod
    def read_hdf5(path: Path) -> None:
        read_env_args(path)
        for filter_key in (None, "train"):
            read_demonstrations(path, ["object"], filter_key=filter_key)


def damage(rng: random.Random, content: bytes) -> bytes:
    """Cuts, flips, overwrites, repeats or drops a part of a file."""
    data, place = bytearray(content), rng.randrange(max(1, len(content)))
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        for _ in range(rng.choice([1, 1, 2, 8, 64])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        size = rng.randrange(1, 65)
        data[place : place + size] = rng.randbytes(size)
    elif kind == 3:
        data[place:place] = data[place : place + rng.randrange(1, 4096)]
    else:
        del data[place : place + rng.randrange(1, 4096)]
    return bytes(data)


def lie(rng: random.Random, value: Any) -> Any:
    """The same JSON with one value, anywhere in it, replaced or removed."""
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            collect(node[key])

    value = json.loads(json.dumps(value))
    collect(value)
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(LIES)
    return value


def rewrite(
    path: Path, target: Path, change: Callable[[str, bytes], bytes], extra: dict[str, bytes] | None = None
) -> None:
    """Copies a zip archive, its contents changed, so that its checksums are right."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            copy.writestr(name, change(name, archive.read(name)))
        for name, content in (extra or {}).items():
            copy.writestr(name, content)


def lying_archive(rng: random.Random, path: Path, target: Path) -> None:
    """A zip archive one of whose JSON members lies."""
    with zipfile.ZipFile(path) as archive:
        chosen = rng.choice([name for name in archive.namelist() if name.endswith(".json")])

    def change(name: str, content: bytes) -> bytes:
        return json.dumps(lie(rng, json.loads(content))).encode() if name == chosen else content

    rewrite(path, target, change)


def malformed(samples: Samples, kind: str, rng: random.Random, folder: Path) -> Path:
    """A file, or for a policy a folder, that is damaged or lies."""
    original: Path = getattr(samples, kind)
    target = folder / original.name
    if kind == "policy":
        shutil.copytree(original, target)
        name = rng.choice(["policy.json", "policy.onnx", "policy.pt2"])
        if name == "policy.pt2" and rng.random() < 0.6:
            lying_archive(rng, original / name, target / name)
        elif name == "policy.json" and rng.random() < 0.6:
            (target / name).write_text(json.dumps(lie(rng, json.loads((original / name).read_text()))))
        else:
            (target / name).write_bytes(damage(rng, (original / name).read_bytes()))
    elif kind == "checkpoint" and rng.random() < 0.6:
        lying_archive(rng, original, target)
    elif kind == "config" and rng.random() < 0.6:
        target.write_text(json.dumps(lie(rng, CONFIG)))
    else:
        target.write_bytes(damage(rng, original.read_bytes()))
    return target


def read(samples: Samples, kind: str, path: Path, folder: Path, limit: float = 30.0) -> str:
    """Reads a file in a fork with little memory: ``loaded``, ``refused`` with the message, or what went wrong."""

    def child() -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        try:
            getattr(samples, f"read_{kind}")(path)
        except REFUSALS as error:
            sys.stdout.write(f"refused: {type(error).__name__}: {error}")
        except BaseException as error:
            sys.stdout.write(f"fault: {type(error).__name__}: {error}")
        else:
            sys.stdout.write("loaded")

    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "output.txt"
    code, seconds = run_forked(child, output, limit, method="fork")
    text = output.read_text(errors="replace")
    found = max((text.rfind(word) for word in ("refused: ", "fault: ", "loaded")), default=-1)
    return text[found:] if code == 0 and found >= 0 else f"fault: exit code {code} after {seconds:.0f} s: {text[-300:]}"
