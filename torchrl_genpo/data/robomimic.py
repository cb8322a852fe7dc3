# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Demonstrations in the HDF5 format of robomimic, MimicGen and DexMimicGen (low-dimensional observations).

A file holds ``data/demo_<i>/{obs/<key>, next_obs/<key>, actions, rewards, dones, states}``, the environment as JSON in
``data.attrs["env_args"]``, and named subsets of the demonstrations in ``mask/<filter key>``. Files of MimicGen's
generator have neither ``rewards`` nor ``dones``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

__all__ = [
    "INSTALL",
    "read_demonstrations",
    "read_env_args",
    "write_demonstrations",
]

ROBOSUITE = 1  # robomimic's number for this family of environments
INSTALL = "pip install 'torchrl-genpo[robomimic]' && pip install --no-deps robosuite==1.5.2"


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Opens a file; whatever the HDF5 library finds wrong in it becomes a ``ValueError``."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"robomimic's files need h5py: {INSTALL}.") from error
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} is not a whole HDF5 file (cut short, or another format): {error}") from error
    try:
        if not isinstance(file.get("data"), h5py.Group):
            raise ValueError(f"{path} is not a robomimic file: it has no group 'data', but {_names(file)}.")
        yield file
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    finally:
        file.close()


def _names(group: Any) -> str:
    return ", ".join(sorted(group)) or "nothing"


def _find(group: Any, key: str, where: str) -> Any:
    """Returns what a group has under a key."""
    import h5py

    for name in key.split("/"):
        if not isinstance(group, h5py.Group) or name not in group:
            there = _names(group) if isinstance(group, h5py.Group) else "nothing"
            raise ValueError(f"{where} has no {key!r}; there are {there}.")
        group = group[name]
    return group


def _find_data(group: Any, key: str, where: str) -> Any:
    """Returns a dataset, unread."""
    import h5py

    data = _find(group, key, where)
    if not isinstance(data, h5py.Dataset) or not data.shape:
        raise ValueError(f"{where}: {key!r} is no dataset with rows.")
    return data


def read_env_args(path: str | Path) -> dict[str, Any]:
    """Reads how the environment of a file was made: ``env_name``, ``env_version``, ``type`` and ``env_kwargs``.

    Controllers of robosuite before 1.5 are converted to the present form.

    Args:
        path (str or Path): the HDF5 file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or not robomimic's, or its environment is not one of robosuite.
    """
    path = Path(path)
    with _open(path) as file:
        text = file["data"].attrs.get("env_args")
        if not isinstance(text, (str, bytes)):
            raise ValueError(f"{path}: data.attrs['env_args'] is missing, or it is no text.")
        try:
            env_args = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: data.attrs['env_args'] is no JSON: {error}") from error
    if not isinstance(env_args, dict) or not isinstance(env_args.get("env_kwargs"), dict):
        raise ValueError(f"{path}: data.attrs['env_args'] has no env_kwargs.")
    if env_args.get("type") != ROBOSUITE:
        raise ValueError(f"{path}: the environment is of type {env_args.get('type')}, not {ROBOSUITE} (robosuite).")
    kwargs = env_args["env_kwargs"]
    controllers = kwargs.get("controller_configs")
    if isinstance(controllers, list):  # one for each robot
        robots = kwargs.get("robots")
        if not isinstance(robots, list) or len(robots) != len(controllers):
            raise ValueError(f"{path}: env_kwargs has {len(controllers)} controllers for the robots {robots!r}.")
        kwargs["controller_configs"] = [
            _present_controller(controller, robot, path) for controller, robot in zip(controllers, robots, strict=True)
        ]
    elif controllers is not None:
        robots = kwargs.get("robots")
        robot = robots[0] if isinstance(robots, list) and robots else robots
        kwargs["controller_configs"] = _present_controller(controllers, robot, path)
    return env_args


def _present_controller(controller: Any, robot: Any, path: Path) -> Any:
    """Converts the configuration of a controller to the form of robosuite 1.5."""
    if "body_parts" in controller:
        return controller
    from robosuite.controllers.composite.composite_controller_factory import refactor_composite_controller_config

    if not isinstance(robot, str):
        raise ValueError(f"{path}: env_kwargs names no robot that its controller belongs to.")
    return refactor_composite_controller_config(controller, robot, ["right"])


def _demonstration_names(file: Any, path: Path, filter_key: str | None) -> list[str]:
    """Lists the demonstrations of a file, or those of one filter key, by their numbers."""
    if filter_key is None:
        names = list(file["data"])
    else:
        masks = file.get("mask", {})
        if filter_key not in masks:
            raise ValueError(f"{path} has no filter key {filter_key!r}; it has {', '.join(masks) or 'none'}.")
        found = _find_data(masks, filter_key, f"{path}: mask")[()].ravel().tolist()
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in found]
    strange = [name for name in names if re.fullmatch(r"\w*_\d{1,9}", name) is None]
    if strange:
        raise ValueError(f"{path}: {strange[0][:100]!r} is not the name of a demonstration, such as demo_0.")
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


def _find_datasets(group: Any, observation_keys: Sequence[str], where: str) -> dict[str, Any]:
    """Returns what is read of a demonstration that is not empty, unread: each dataset has a row for each step."""
    datasets = {}
    for key in ("actions", *(f"obs/{key}" for key in observation_keys)):
        data = datasets[key] = _find_data(group, key, where)
        if not data.id.get_storage_size():
            raise ValueError(f"{where}: {key!r} was allocated, but never written: leave this demonstration out.")
        if len(data) != (length := len(datasets["actions"])):
            raise ValueError(f"{where}: {key!r} has {len(data)} steps, 'actions' has {length}.")
    return datasets


def _is_empty(group: Any, where: str) -> bool:
    """Says whether a demonstration has no step, as of a recording that was stopped at once."""
    return not len(group) or len(_find_data(group, "actions", where)) == 0


def read_demonstrations(
    path: str | Path,
    observation_keys: Sequence[str],
    *,
    filter_key: str | None = None,
    num_demonstrations: int | None = None,
) -> list[TensorDictBase]:
    """Reads demonstrations, each as a TensorDict over its steps.

    A demonstration without a step is left out, with a warning that names it.

    Args:
        path (str or Path): the HDF5 file.
        observation_keys (sequence of str): the parts of the observation, concatenated in this order.

    Keyword Args:
        filter_key (str, optional): a named subset, such as ``train``. Defaults to all demonstrations.
        num_demonstrations (int, optional): the number of demonstrations to read, from the first. Defaults to all.

    Returns:
        For every demonstration, ``[T]``: ``observation`` ``[T, n]`` and ``action`` ``[T, d]``, float32.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or not robomimic's; the message names the demonstration and the key.
    """
    path = Path(path)
    demonstrations: list[TensorDictBase] = []
    with _open(path) as file:
        names: list[str] = []
        empty: list[str] = []
        for name in _demonstration_names(file, path, filter_key):
            if len(names) == num_demonstrations:
                break
            if name not in file["data"]:
                raise ValueError(f"{path}: {name}, named by the filter key {filter_key!r}, is missing.")
            is_empty = _is_empty(_find(file["data"], name, str(path)), f"{path}: {name}")
            (empty if is_empty else names).append(name)
        if empty:
            warnings.warn(f"{path}: {', '.join(empty)} without a step is left out.", stacklevel=2)
        if num_demonstrations is not None and num_demonstrations > len(names):
            raise ValueError(f"{path} holds {len(names)} demonstrations, not {num_demonstrations}: ask for fewer.")
        if not names:
            raise ValueError(f"{path} holds no demonstration" + (f" under {filter_key!r}." if filter_key else "."))
        for name in names:
            demonstrations.append(_read_demonstration(file["data"][name], observation_keys, f"{path}: {name}"))
    return demonstrations


def _read_demonstration(group: Any, observation_keys: Sequence[str], where: str) -> TensorDictBase:
    values = {key: _read(data, key, where) for key, data in _find_datasets(group, observation_keys, where).items()}
    action = values["actions"]
    if action.ndim != 2:
        raise ValueError(f"{where}: 'actions' has shape {tuple(action.shape)}, expected [steps, size].")
    parts = [values[f"obs/{key}"].reshape(len(action), -1) for key in observation_keys]
    return TensorDict(observation=torch.cat(parts, -1), action=action, batch_size=[len(action)])


def _read(data: Any, key: str, where: str) -> Tensor:
    """Reads a dataset of finite real numbers."""
    if data.dtype.kind not in "biuf":
        raise ValueError(f"{where}: {key!r} cannot be read: it holds {data.dtype}, not real numbers.")
    try:
        value = np.asarray(data[()], dtype=np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{where}: {key!r} cannot be read: {error}") from error
    if not np.isfinite(value).all():
        raise ValueError(f"{where}: {key!r} has values that are not finite.")
    return torch.from_numpy(value)


def write_demonstrations(
    path: str | Path,
    demonstrations: Sequence[Mapping[str, Any]],
    env_args: Mapping[str, Any],
    *,
    valid_fraction: float = 0.1,
) -> None:
    """Writes demonstrations so that robomimic's own ``SequenceDataset`` reads them.

    The file is written whole or not at all. The last part of the demonstrations, ``valid_fraction``, gets the filter
    key ``valid``, the rest ``train``.

    Args:
        path (str or Path): the file; one that is there is replaced.
        demonstrations (sequence of mappings): each with ``obs`` and ``next_obs`` (name to ``[T, n]``), ``actions``
            ``[T, d]``, ``rewards``, ``dones`` ``[T]``, ``states`` ``[T, m]`` and ``model_file`` (MuJoCo's XML).
        env_args (mapping): how the environment is made, see :func:`read_env_args`.

    Keyword Args:
        valid_fraction (float, optional): the part of the demonstrations for validation. Defaults to ``0.1``.

    Raises:
        ValueError: if there is no demonstration.
    """
    import h5py

    if not demonstrations:
        raise ValueError("There is no demonstration to write.")
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    names = [f"demo_{index}" for index in range(len(demonstrations))]
    num_valid = min(max(1, round(valid_fraction * len(names))), len(names) - 1) if valid_fraction > 0 else 0
    try:
        with h5py.File(temporary, "w") as file:
            data = file.create_group("data")
            for name, demonstration in zip(names, demonstrations, strict=True):
                group = data.create_group(name)
                for key in ("actions", "rewards", "dones", "states"):
                    group.create_dataset(key, data=np.asarray(demonstration[key]))
                for key in ("obs", "next_obs"):
                    for part, value in demonstration[key].items():
                        group.create_dataset(f"{key}/{part}", data=np.asarray(value))
                group.attrs["num_samples"] = len(demonstration["actions"])
                group.attrs["model_file"] = demonstration["model_file"]
            data.attrs["total"] = sum(len(demonstration["actions"]) for demonstration in demonstrations)
            data.attrs["env_args"] = json.dumps(env_args, indent=4)
            split = len(names) - num_valid
            file.create_dataset("mask/train", data=np.array(names[:split], dtype="S"))
            file.create_dataset("mask/valid", data=np.array(names[split:], dtype="S"))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
