# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Files that may come from anybody: checked before anything of them is loaded.

TorchRL's checkpoints and PyTorch's exported programs fall back to pickle where a file asks for it, which runs whatever
code the file holds. So a file must consist of what this library writes, and of nothing else; and it must not unpack to
more than it is. What does not is refused by a ``ValueError``.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = ["check_checkpoint", "parse_json", "read_program", "read_yaml"]

MAX_TEXT = 2**26  # bytes of a JSON file; the largest that this library writes is 100 times smaller
MAX_YAML = 2**20
MAX_DEPTH = 40  # of nested JSON or YAML

# what TorchRL writes of a state dict
MEMBERS = re.compile(r"manifest\.json|components/[\w.-]+/(state\.json|state/meta\.json|state/tensor_\d{8}\.memmap)")
TENSORDICT = "<class 'tensordict._td.TensorDict'>"
NUMPY_DTYPE = re.compile(r"[<>|=]?[biufc]\d{1,2}")

# what PyTorch writes of a program of plain operators
PROGRAM = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json|"
    r"data/sample_inputs/model\.pt|data/weights/(weight_\d+|model_weights_config\.json)|"
    r"data/constants/(tensor_\d+|model_constants_config\.json)"
)
PYTHON_OPERATOR = re.compile(r"_operator\.(getitem|add|sub|mul|floordiv|eq|ne|ge|le|gt|lt)")
OPERATOR = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
WITHOUT_TENSORS = {"arange", "full", "ones", "promote_types", "scalar_tensor", "zeros"}  # from_file opens a file
PRIVATE = {"_assert_scalar", "_assert_tensor_metadata"}  # what else begins so may skip checks of indices
SYMBOLS = {"Symbol", "Integer", "Add", "Mul", "Pow", "Max", "Min", "FloorDiv", "Mod"}
SYMBOLS |= {"positive", "integer", "nonnegative", "True", "False"}
NAME = re.compile(r"[\w.:+-]*")
EXTENT = r"L\['\w+'\]\.(stride|size)\(\)\[\d+\]"
GUARD = re.compile(rf"{EXTENT} (==|!=|<=|>=|<|>) ({EXTENT}|\d+)")  # what is compiled to check inputs
FREE_TEXT = ("stack_trace", "nn_module_stack", "torch_fn")  # where a node comes from: shown, never run
CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")

BROKEN: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    OSError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    pickle.PickleError,
    ValueError,
    IndexError,
    ArithmeticError,
    AssertionError,
    MemoryError,
)


def parse_json(text: str | bytes, what: str) -> Any:
    """Parses JSON of a reasonable size and depth.

    Raises:
        ValueError: if it is none.

    Examples:
        >>> parse_json("[" * 10_000, "config")
        Traceback (most recent call last):
        ValueError: config is nested more than 40 deep.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"{what} has {len(text)} bytes, more than {MAX_TEXT}.")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"{what} is nested more than {MAX_DEPTH} deep.") from None
    except ValueError as error:
        raise ValueError(f"{what} is no JSON: {error}") from error
    _check_depth(value, what)
    return value


def read_yaml(path: Path) -> DictConfig:
    """Reads a configuration: a mapping without aliases, whose copies could fill the memory.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no configuration, or too large.
    """
    size = path.stat().st_size
    if size > MAX_YAML or not path.is_file():
        raise ValueError(f"{path} is no configuration: it has {size} bytes, more than {MAX_YAML}, or is no file.")
    try:
        text, depth = path.read_text(encoding="utf-8"), 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                raise ValueError(f"it has aliases, or is nested more than {MAX_DEPTH} deep.")
        config = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no configuration: {error}") from error
    if not isinstance(config, DictConfig) or not config:
        raise ValueError(f"{path} is no configuration: it holds no mapping of options.")
    return config


def check_checkpoint(path: Path) -> dict[str, Any]:
    """Checks a checkpoint of this library and returns its manifest.

    Args:
        path (Path): an archive, as :func:`~torchrl_genpo.training.make_checkpoint` writes it.

    Raises:
        ValueError: if it is cut short or damaged, holds anything but tensors and their description, or claims more than
            it has.
    """
    try:
        return _check_checkpoint(path)
    except BROKEN as error:
        raise ValueError(f"{path} is not a readable checkpoint (missing, cut short or damaged): {error}") from error


def _check_checkpoint(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        sizes = _member_sizes(archive, path, MEMBERS)
        manifest = parse_json(archive.read("manifest.json"), "manifest.json")
        config = manifest["metadata"]["config"]
        if not isinstance(config, dict) or "${" in json.dumps(config):
            raise ValueError("its configuration is no mapping of plain values.")
        for record in manifest["components"].values():
            if record["adapter"] != "torchrl.state_dict" or not set(record["files"]) >= {"state.json"}:
                raise ValueError(f"a part of it is stored as {record['adapter']!r}.")
            root = record["path"]
            absent = {f"{root}/{name}" for name in record["files"]} - set(sizes)
            if absent:
                raise ValueError(f"it has no {min(absent)[:100]!r}.")
            shapes = parse_json(archive.read(f"{root}/state/meta.json"), "meta.json")
            _check_tensors(shapes, {name: sizes.get(f"{root}/state/{name}.memmap") for name in shapes})
            _check_schema(parse_json(archive.read(f"{root}/state.json"), "state.json"), set())
    return manifest


def _member_sizes(archive: zipfile.ZipFile, path: Path, known: re.Pattern[str], prefix: str = "") -> dict[str, int]:
    """Sizes of the members, all of them known and together no larger than the file."""
    entries = archive.infolist()
    names = [entry.filename.removeprefix(prefix) for entry in entries]
    strange = [name for name in names if known.fullmatch(name) is None]
    if strange:
        raise ValueError(f"it holds {strange[0]!r}, which this library never writes and which could run code.")
    if len(set(names)) < len(names) or any(entry.flag_bits & 1 for entry in entries):
        raise ValueError("a name occurs twice in it, or it is encrypted.")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("it would unpack to more than it is.")
    return dict(zip(names, (entry.file_size for entry in entries), strict=True))


def _check_tensors(description: dict[str, Any], sizes: dict[str, int | None]) -> None:
    """Checks TensorDict's ``meta.json`` against the sizes of the files; names that do not fit are no tensors."""
    for name, value in description.items():
        if name == "_type":
            if value != TENSORDICT:
                raise ValueError(f"it asks for the type {value!r}.")
        elif isinstance(value, dict):
            dtype = getattr(torch, value["dtype"].removeprefix("torch."))
            shape = value["shape"]
            is_known = isinstance(dtype, torch.dtype) and value.get("is_nested", False) is False
            if not (is_known and all(isinstance(n, int) and n >= 0 for n in shape)):
                raise ValueError(f"{name} has the shape {shape} and type {value['dtype']!r}.")
            claimed = math.prod(shape) * dtype.itemsize
            if claimed and sizes.get(name) != claimed:
                raise ValueError(f"{name} claims {claimed} bytes and has {sizes.get(name)}.")


def _check_schema(node: Any, seen: set[str]) -> None:
    """Checks the description of a state dict: each tensor once, and no NumPy type that takes memory by itself."""
    if isinstance(node, dict):
        kind = node.get("kind")
        if kind in ("tensor", "numpy"):
            if node["key"] in seen:
                raise ValueError(f"{node['key']} is used twice.")
            seen.add(node["key"])
        if kind in ("numpy", "numpy_scalar") and NUMPY_DTYPE.fullmatch(node["dtype"]) is None:
            raise ValueError(f"it asks for the NumPy type {node['dtype']!r}.")
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _check_schema(child, seen)


def read_program(path: Path) -> io.BytesIO:
    """Reads a program of ``torch.export``, checked; ``torch.export.load`` takes the result.

    PyTorch loads such files by pickle where they ask for it, and evaluates what they say of shapes. This one holds raw
    weights, and a graph of ATen operators with plain names, none of which writes to its arguments or opens a file. How
    much memory and time it takes to run is not bounded.

    Args:
        path (Path): such as ``policy.pt2`` of :class:`~torchrl_genpo.deploy.PolicyExporter`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return _read_program(path)
    except BROKEN as error:
        raise ValueError(f"{path} is not a readable program (cut short, damaged or foreign): {error}") from error


def _read_program(path: Path) -> io.BytesIO:
    checked = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(checked, "w") as copy:
        prefix = archive.namelist()[0].partition("/")[0] + "/"
        for name in _member_sizes(archive, path, PROGRAM, prefix):
            content = archive.read(prefix + name)
            if name.endswith(".json"):
                value = parse_json(content, name)
                _check_graph(value) if name == "models/model.json" else _check_weights(value)
            elif name.endswith(".pt"):
                torch.load(io.BytesIO(content), weights_only=True)  # raises, where PyTorch would turn to pickle
            # a copy: PyTorch reads archives with another parser, which could see another file
            copy.writestr(f"policy/{name}", content)
    checked.seek(0)
    return checked


def _check_weights(config: Any) -> None:
    for name, weight in config["config"].items():
        if weight["use_pickle"] is not False or re.fullmatch(r"(weight|tensor)_\d+", weight["path_name"]) is None:
            raise ValueError(f"{name} is stored as {weight['path_name']!r}, by pickle or elsewhere.")


def _check_graph(graph: Any) -> None:
    for key, text in _strings(graph):
        if key in FREE_TEXT:
            continue
        if key == "target":
            is_known = PYTHON_OPERATOR.fullmatch(text) is not None or _is_pure(text)
        elif key == "expr_str":
            words = set(re.findall(r"[A-Za-z_]\w*", text))
            is_known = re.fullmatch(r"[\w\s(),=*+/'-]*", text) is not None and all(
                word in SYMBOLS or re.fullmatch(r"[su]\d+", word) for word in words
            )
        elif key in ("in_spec", "out_spec"):
            is_known = not text or _is_plain_tree(parse_json(text, key)[1])
        else:
            is_known = (GUARD if key == "guards_code" else NAME).fullmatch(text) is not None
        if not is_known:
            raise ValueError(f"its graph has the {key or 'name'} {text[:100]!r}, which this library never writes.")


def _is_pure(target: str) -> bool:
    """Whether it is an operator that computes a new tensor of those that it is given, and does nothing else."""
    match = OPERATOR.fullmatch(target)
    if match is None:
        return False
    name, overload = match.groups()
    operator = getattr(getattr(torch.ops.aten, name, None), overload, None)
    if operator is None or (name.startswith("_") and name not in PRIVATE):
        return False
    schema = operator._schema
    has_tensor = any("Tensor" in str(argument.type) for argument in schema.arguments)
    return not schema.is_mutable and (has_tensor or name in WITHOUT_TENSORS)


def _strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, with the key that it is under; the keys too, under none."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, dict):
        for name, child in node.items():
            yield "", name
            yield from _strings(child, name)
    elif isinstance(node, list):
        for child in node:
            yield from _strings(child, key)


def _is_plain_tree(spec: Any) -> bool:
    is_plain = spec["type"] in CONTAINERS and all(NAME.fullmatch(text) for _, text in _strings(_context(spec)))
    return is_plain and all(map(_is_plain_tree, spec["children_spec"]))


def _context(spec: Any) -> Any:
    return None if spec["context"] is None else parse_json(spec["context"], "context")


def _check_depth(value: Any, what: str) -> None:
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise ValueError(f"{what} is nested more than {MAX_DEPTH} deep.")
        parts = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list)))
        level, depth = [child for part in parts for child in part], depth + 1
