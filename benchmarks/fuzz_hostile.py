# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Files made to harm: to run code, to fill the memory, or to read what is not theirs."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_files import Samples, rewrite
from tensordict import NonTensorData


class Code:
    """Pickles to a call that makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


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


def _with_operator(name: str) -> Callable[[Path, Path, Path], None]:
    return _changed("model.json", "torch.ops.aten.unsqueeze.default", lambda _: name)


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
    "that calls the system": _with_operator("torch.os.system"),
    "that opens a file": _with_operator("torch.ops.aten.from_file.default"),
    "that writes to a tensor": _with_operator("torch.ops.aten.fill_.Scalar"),
    "that looks up without a check": _with_operator("torch.ops.aten._unsafe_index.Tensor"),
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
