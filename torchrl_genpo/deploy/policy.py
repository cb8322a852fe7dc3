# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Runs an exported policy, one observation at a time."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from torchrl_genpo.deploy.hand import describe_mistake

__all__ = ["ExportedPolicy"]

Arrays: TypeAlias = Mapping[str, np.ndarray]

FORMAT = 1  # of policy.json
INSTALL = "pip install 'torchrl-genpo[deploy]'"
NAMES = ("policy.onnx", "policy.json")
Size = Annotated[int, Field(ge=1, le=10**6)]
Bounds = list[FiniteFloat | None]


class _Action(BaseModel):
    size: Size
    low: Bounds
    high: Bounds

    @model_validator(mode="after")
    def _check_sizes(self) -> _Action:
        if not len(self.low) == len(self.high) == self.size:
            raise ValueError(f"low and high have {len(self.low)} and {len(self.high)} numbers, size is {self.size}")
        return self


class _Hand(BaseModel):
    side: Literal["right", "left"]
    index_bend_sign: Literal[-1, 1]
    joints: list[str]
    active: list[str]
    masked: bool
    scale: FiniteFloat
    low: list[FiniteFloat]
    high: list[FiniteFloat]
    start_pose: list[FiniteFloat]
    frames: Size

    @model_validator(mode="after")
    def _check_joints(self) -> _Hand:
        sizes = [len(self.low), len(self.high), len(self.start_pose)]
        if any(size != len(self.joints) for size in sizes) or not set(self.active) <= set(self.joints):
            raise ValueError("low, high and start_pose need a number for each of joints, and active names some of them")
        return self


class _Description(BaseModel):
    """What running a policy reads of ``policy.json``; what else is there is for people."""

    format: int
    dt: Annotated[FiniteFloat, Field(gt=0)] | None
    action: _Action
    inputs: dict[Literal["observation", "noise"], Annotated[list[Size], Field(min_length=1, max_length=1)]]
    outputs: Annotated[list[Literal["action"]], Field(min_length=1)]
    hand: _Hand | None = None


class ExportedPolicy:
    """A policy that :class:`~torchrl_genpo.deploy.PolicyExporter` wrote, run by ONNX Runtime. It remembers nothing.

    Args:
        folder (Path or str): the folder with ``policy.json`` and ``policy.onnx``.

    Attributes:
        metadata (dict): the content of ``policy.json``.
        dt (float or None): the control period, s.
        low (np.ndarray): the lowest actions ``[d]``, NaN where there is no bound.
        high (np.ndarray): the highest actions ``[d]``, NaN where there is no bound.

    Raises:
        FileNotFoundError: if there is no policy.
        ValueError: for a newer format, or a file that is damaged or does not fit the other.
        ImportError: without ONNX Runtime.
    """

    def __init__(self, folder: Path | str) -> None:
        model_path, path = (Path(folder) / name for name in NAMES)
        if not path.exists():
            raise FileNotFoundError(
                f"{folder} holds no policy ({path.name} is missing). Write one with: genpo-export <checkpoint> <folder>"
            )
        self.metadata: dict[str, Any] = _read_metadata(path)
        self.dt: float | None = self.metadata["dt"]
        self.low, self.high = (
            np.array([np.nan if bound is None else bound for bound in self.metadata["action"][name]], np.float32)
            for name in ("low", "high")
        )
        self.run = _load_onnx(model_path)
        """Computes batched outputs by name from batched inputs by name, as :attr:`metadata` describes them."""
        self._check_run(model_path, path)

    def _check_run(self, model_path: Path, path: Path) -> None:
        """Runs the policy once, which also pays for what the first run costs."""
        shapes = self.metadata["inputs"]
        try:
            action = self.run({name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()})["action"]
        except Exception as error:  # ONNX Runtime has a dozen exceptions, none public
            raise ValueError(f"{model_path} cannot be run as {path} says: {error}") from error
        size = self.metadata["action"]["size"]
        if action.shape != (1, size):
            raise ValueError(f"{model_path} gives actions of the shape {action.shape[1:]}, {path} says [{size}].")

    def __call__(self, observation: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """The action ``[d]`` for a raw observation ``[n]``, within the bounds that held in training.

        Args:
            observation (np.ndarray): the observation ``[n]`` of the task.
            noise (np.ndarray, optional): standard normal noise, of a policy with ``noise_input``. Defaults to zeros.

        Raises:
            ValueError: for an observation or noise of another size, or noise where the policy takes none.
        """
        shapes = self.metadata["inputs"]
        given = {"observation": observation} | ({} if noise is None else {"noise": noise})
        inputs = {name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()}
        for name, value in given.items():
            if name not in shapes:
                raise ValueError("This policy takes no noise: export it with --noise-input.")
            if list(np.shape(value)) != list(shapes[name]):
                raise ValueError(f"The policy reads {name} of the shape {shapes[name]}, got {np.shape(value)}.")
            inputs[name] = np.asarray(value, np.float32)[None]
        action = self.run(inputs)["action"][0]
        return np.fmin(np.fmax(action, self.low), self.high)  # where a bound is NaN the action stays


def _read_metadata(path: Path) -> dict[str, Any]:
    """The content of ``policy.json``, if it has all that running the policy reads."""
    try:
        metadata = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    version = metadata.get("format") if isinstance(metadata, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(f"{path} has format {version}; this library reads up to {FORMAT}: update it.")
    try:
        description = _Description.model_validate(metadata, strict=True)
    except ValidationError as error:
        raise ValueError(f"{path} is damaged: {describe_mistake(error, _Description)}") from error
    if "observation" not in description.inputs:
        raise ValueError(f"{path} is damaged: inputs has no observation.")
    return metadata


def _load_onnx(path: Path) -> Callable[[Arrays], dict[str, np.ndarray]]:
    if importlib.util.find_spec("onnxruntime") is None:
        raise ImportError(f"Running an exported policy needs ONNX Runtime: {INSTALL}.")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # one action is too little work for more
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a dozen exceptions, none public
        raise ValueError(f"{path} is not a readable ONNX model (cut short, damaged or foreign): {error}") from error
    if "action" not in {output.name for output in session.get_outputs()}:
        raise ValueError(f"{path} has no output action.")

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        return {"action": session.run(["action"], dict(inputs))[0]}

    return run
