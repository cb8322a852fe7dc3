# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Malformed files for every reader: cut short, with flipped bits, with JSON that lies, and with code in them."""

from __future__ import annotations

import json
import pickle
import random
import resource
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_command_lines import in_fork
from omegaconf import OmegaConf
from tensordict import NonTensorData

from torchrl_genpo.configuration import build_actor, build_env, build_models
from torchrl_genpo.data import read_demonstrations, read_env_args, write_demonstrations
from torchrl_genpo.deploy import ExportedPolicy, PolicyExporter
from torchrl_genpo.envs import freeze_normalization
from torchrl_genpo.limits import check_config
from torchrl_genpo.runs import RunFolder, read_checkpoint_config, read_metrics
from torchrl_genpo.training import load_checkpoint, make_checkpoint
from torchrl_genpo.untrusted import read_yaml

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


class Code:
    """Pickles to a call that makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


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


def hostile(samples: Samples, folder: Path, marker: Path) -> Iterator[tuple[str, str, Path]]:
    """Files made to harm: the reader that they are for, what they do, and where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, makers in (("checkpoint", CHECKPOINTS), ("policy", PROGRAMS), ("config", CONFIGS), ("hdf5", HDF5)):
        for name, make in makers.items():
            path = folder / f"{kind} {name}"
            if kind == "policy":
                shutil.copytree(samples.policy, path)
                make(samples.policy / "policy.pt2", path / "policy.pt2", marker)
            else:
                make(getattr(samples, kind), path, marker)
            yield kind, name, path


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
    code, seconds = in_fork(child, output, limit)
    text = output.read_text(errors="replace")
    found = max((text.rfind(word) for word in ("refused: ", "fault: ", "loaded")), default=-1)
    return text[found:] if code == 0 and found >= 0 else f"fault: exit code {code} after {seconds:.0f} s: {text[-300:]}"


def _with_pickle(path: Path, target: Path, marker: Path) -> None:
    """What TensorDict stores beside tensors, by pickle."""
    root = "components/0000-loss"
    entry = f"{root}/state/evil"

    def change(name: str, content: bytes) -> bytes:
        if name == "manifest.json":
            manifest = json.loads(content)
            manifest["components"]["loss"]["files"] += ["state/evil/other.pickle", "state/evil/meta.json"]
            return json.dumps(manifest).encode()
        if name == f"{root}/state/meta.json":
            return json.dumps(json.loads(content) | {"evil": {"type": "NonTensorData"}}).encode()
        return content

    extra = {f"{entry}/other.pickle": pickle.dumps(Code(marker))}
    extra[f"{entry}/meta.json"] = json.dumps({"_type": str(NonTensorData)}).encode()
    rewrite(path, target, change, extra)


def _with_torch_payload(path: Path, target: Path, marker: Path) -> None:
    """A state stored by ``torch.save``."""
    payload = target.with_suffix(".pt")
    torch.save({"x": Code(marker)}, payload)

    def change(name: str, content: bytes) -> bytes:
        if name == "manifest.json":
            manifest = json.loads(content)
            manifest["components"]["loss"]["files"] = ["state.pt"]
            return json.dumps(manifest).encode()
        return content

    rewrite(path, target, change, {"components/0000-loss/state.pt": payload.read_bytes()})
    payload.unlink()


def _changed(pattern: str, old: str, new: Callable[[Path], str]) -> Callable[[Path, Path, Path], None]:
    """Replaces a text in the members of an archive whose name ends with ``pattern``."""

    def make(path: Path, target: Path, marker: Path) -> None:
        def change(name: str, content: bytes) -> bytes:
            if not name.endswith(pattern):
                return content
            changed = content.replace(old.encode(), new(marker).encode())
            if changed == content:
                raise RuntimeError(f"{old} is not in {name}")
            return changed

        rewrite(path, target, change)

    return make


def _with_members(members: Callable[[Path], dict[str, bytes]], **options: Any) -> Callable[[Path, Path, Path], None]:
    def make(path: Path, target: Path, marker: Path) -> None:
        rewrite(path, target, lambda _, content: content)
        with zipfile.ZipFile(target, "a", **options) as archive:
            for name, content in members(marker).items():
                archive.writestr(name, content)

    return make


def _nested(path: Path, target: Path, marker: Path) -> None:
    rewrite(path, target, lambda name, content: b"[" * 100_000 if name.endswith("0000-loss/state.json") else content)


def _pickled_inputs(path: Path, target: Path, marker: Path) -> None:
    rewrite(path, target, lambda name, content: pickle.dumps(Code(marker)) if name.endswith("model.pt") else content)


def _text(content: Callable[[], str]) -> Callable[[Path, Path, Path], None]:
    return lambda _, target, __: target.write_text(content()) and None


def _hdf5(change: Callable[[Any], None]) -> Callable[[Path, Path, Path], None]:
    def make(path: Path, target: Path, marker: Path) -> None:
        import h5py

        shutil.copy(path, target)
        with h5py.File(target, "a") as file:
            change(file)

    return make


def _replaced(key: str, **options: Any) -> Callable[[Path, Path, Path], None]:
    def change(file: Any) -> None:
        del file[key]
        file.create_dataset(key, **options)

    return _hdf5(change)


def _linked(key: str, link: Callable[[], Any]) -> Callable[[Path, Path, Path], None]:
    def change(file: Any) -> None:
        del file[key]
        file[key] = link()

    return _hdf5(change)


def _virtual(file: Any) -> None:
    import h5py

    layout = h5py.VirtualLayout((10**12, 2), dtype="f4")
    layout[:6] = h5py.VirtualSource("/dev/zero", "x", (6, 2))
    del file["data/demo_0/actions"]
    file.create_virtual_dataset("data/demo_0/actions", layout)


def _external(name: str, key: str) -> Any:
    import h5py

    return h5py.ExternalLink(name, key)


def _soft(key: str) -> Any:
    import h5py

    return h5py.SoftLink(key)


SYMBOL = "Symbol('s"
CHECKPOINTS = {
    "with pickled code": _with_pickle,
    "with a payload of torch.save": _with_torch_payload,
    "of another class": _changed("state/meta.json", "tensordict._td.TensorDict", lambda _: "os.system"),
    "that claims 10^15 numbers": _changed(
        "0000-loss/state/meta.json", '"shape":[8]', lambda _: '"shape":[1000000000000000]'
    ),
    "with a tensor read a thousand times": _changed(
        "0000-loss/state.json", "tensor_00000001", lambda _: "tensor_00000002"
    ),
    "with a path upwards": _with_members(lambda _: {"components/../../../evil": b"x"}),
    "with a link to itself": _with_members(lambda _: {"manifest.json": b"{}"}),
    "that unpacks to a gigabyte": _with_members(
        lambda _: {"components/0000-loss/state/tensor_99999999.memmap": bytes(2**30)}, compression=zipfile.ZIP_DEFLATED
    ),
    "nested 100000 deep": _nested,
    "with an interpolation": _changed("manifest.json", '"pendulum"', lambda _: '"${oc.env:HOME}"'),
}
PROGRAMS = {
    "with pickled inputs": _pickled_inputs,
    "with pickled weights": _changed("weights_config.json", '"use_pickle": false', lambda _: '"use_pickle": true'),
    "with code in a shape": _changed("model.json", SYMBOL, lambda marker: f"open('{marker}','w') or {SYMBOL}"),
    "with code in a guard": _changed(
        "model.json", '"guards_code": []', lambda marker: f"\"guards_code\": [\"open('{marker}','w')\"]"
    ),
    "that calls the system": _changed("model.json", "torch.ops.aten.unsqueeze.default", lambda _: "torch.os.system"),
    "with an opaque object": _with_members(
        lambda marker: {"policy/data/constants/opaque_obj_0": pickle.dumps(Code(marker))}
    ),
    "with a compiled library": _with_members(lambda _: {"policy/data/aotinductor/model/x.so": b"\x7fELF"}),
    "that reads another file": _changed("weights_config.json", '"weight_0"', lambda _: '"../../../etc/passwd"'),
}
CONFIGS = {
    "with a billion laughs": _text(
        lambda: "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    ),
    "with a Python object": _text(lambda: "seed: !!python/object/apply:os.getcwd []\n"),
    "of four megabytes": _text(lambda: "seed: 1\n" + "#" * 2**22),
    "nested 5000 deep": _text(lambda: "{a: " * 5000 + "1" + "}" * 5000),
    "that is a list": _text(lambda: "- 1\n"),
    "that is empty": _text(lambda: " "),
    "that refers to itself": _text(lambda: "seed: ${seed}\n"),
    "with a layer of 10^12": _text(lambda: "policy: {hidden_sizes: [1000000000000]}\n"),
}
HDF5 = {
    "that claims 10^12 rows": _replaced("data/demo_0/actions", shape=(10**12, 2), dtype="f4", chunks=(1024, 2)),
    "that claims 10^12 rewards": _replaced("data/demo_0/rewards", shape=(10**12,), dtype="f4", chunks=(1024,)),
    "that claims 10^12 names": _replaced("mask/train", shape=(10**12,), dtype="S6", chunks=(1024,)),
    "of texts": _replaced("data/demo_0/actions", data=[["a", "b"]] * 6),
    "of records": _replaced("data/demo_0/actions", data=np.zeros(6, dtype=[("x", "f4"), ("y", "i4")])),
    "of complex numbers": _replaced("data/demo_0/obs/object", data=np.ones((6, 2), dtype=complex) * 1j),
    "of infinities": _replaced("data/demo_0/obs/object", data=np.full((6, 2), np.inf)),
    "without rows": _replaced("data/demo_0/actions", shape=(0, 2), dtype="f4"),
    "with a number for actions": _replaced("data/demo_0/actions", data=1.0),
    "with nothing for actions": _replaced("data/demo_0/actions", dtype="f4"),
    "with a dataset for a demonstration": _replaced("data/demo_0", data=[1.0]),
    "with a link to another file": _linked("data/demo_0/actions", lambda: _external("/dev/zero", "x")),
    "with a link to itself": _linked("data/demo_0/actions", lambda: _soft("/data/demo_0/actions")),
    "with a virtual dataset": _hdf5(_virtual),
    "kept in another file": _replaced(
        "data/demo_0/actions", shape=(6, 2), dtype="f4", external=[("/etc/passwd", 0, 48)]
    ),
    "with a strange name": _hdf5(lambda file: file["data"].create_group("demo_" + "9" * 5000) and None),
    "with nested arguments": _hdf5(lambda file: file["data"].attrs.__setitem__("env_args", "[" * 60_000)),
    "with a number for arguments": _hdf5(lambda file: file["data"].attrs.__setitem__("env_args", 3)),
    "with a list for arguments": _hdf5(lambda file: file["data"].attrs.__setitem__("env_args", "[1]")),
}
