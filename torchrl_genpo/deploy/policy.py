# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Runs an exported policy, one observation at a time."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from torchrl_genpo.config.explain import explain

__all__ = ["ExportedPolicy"]

Arrays: TypeAlias = Mapping[str, np.ndarray]

FORMAT = 2  # of policy.json
INSTALL = "pip install 'torchrl-genpo[deploy]'"
NAMES = ("policy.onnx", "policy.json")
DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
    **{f"tensor({name})": np.dtype(name) for name in ("uint8", "int8", "int16", "int32", "int64")},
}
"""The dtypes of inputs by ONNX Runtime's names."""
Size = Annotated[int, Field(ge=1, le=10**6)]
Shape = Annotated[list[Size], Field(max_length=8)]
Bounds = list[FiniteFloat | None]


class _Action(BaseModel):
    shape: Shape
    low: Bounds
    high: Bounds

    @model_validator(mode="after")
    def _check_sizes(self) -> _Action:
        if not len(self.low) == len(self.high) == math.prod(self.shape):
            raise ValueError(f"low and high have {len(self.low)} and {len(self.high)} numbers, shape is {self.shape}")
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
    inputs: dict[str, Shape]
    outputs: list[str]
    hand: _Hand | None = None

    @model_validator(mode="after")
    def _check_names(self) -> _Description:
        states = [name.removeprefix("next.") for name in self.outputs[1:]]
        if self.outputs[:1] != ["action"] or not {f"next.{name}" for name in self.inputs} >= set(self.outputs[1:]):
            raise ValueError(f"outputs must be action and next.<input> for each state, got {self.outputs}")
        if not set(self.inputs) - {"noise", *states}:
            raise ValueError("inputs has no observation")
        return self


class ExportedPolicy:
    """A policy that :class:`~torchrl_genpo.deploy.PolicyExporter` wrote, run by ONNX Runtime.

    It remembers the state of a recurrent policy from one action to the next, and nothing else; call :meth:`reset` where
    an episode begins.

    Args:
        folder (Path or str): the folder with ``policy.json`` and ``policy.onnx``.

    Attributes:
        metadata (dict): the content of ``policy.json``.
        dt (float or None): the control period, s.
        low (np.ndarray): the lowest actions, of the action's shape, NaN where there is no bound.
        high (np.ndarray): the highest actions, of the action's shape, NaN where there is no bound.
        state_names (tuple of str): the inputs that are the state of a recurrent policy.

    Raises:
        FileNotFoundError: if there is no policy.
        ValueError: for another format, or a file that is damaged or does not fit the other.
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
        action = self.metadata["action"]
        self.low, self.high = (
            np.array([np.nan if bound is None else bound for bound in action[name]], np.float32).reshape(
                action["shape"]
            )
            for name in ("low", "high")
        )
        self.state_names = tuple(name.removeprefix("next.") for name in self.metadata["outputs"][1:])
        self.run = _load_onnx(model_path)
        """Computes batched outputs by name from batched inputs by name, as :attr:`metadata` describes them."""
        self.reset()
        self._check_run(model_path, path)

    def reset(self) -> None:
        """Begins an episode: the state of a recurrent policy becomes zero."""
        self._state = {name: self._zeros(name) for name in self.state_names}

    def _left(self) -> str:
        """For errors: what has to be done to an observation before the policy reads it."""
        left = "; ".join(self.metadata.get("observation_transforms") or ())
        return f" It does not make this of the task's observation itself: {left}." if left else ""

    def _zeros(self, name: str) -> np.ndarray:
        return np.zeros((1, *self.metadata["inputs"][name]), np.float32)

    def _check_run(self, model_path: Path, path: Path) -> None:
        """Runs the policy once, which also pays for what the first run costs."""
        try:
            outputs = self.run({name: self._zeros(name) for name in self.metadata["inputs"]})
            shapes = {name: outputs[name].shape for name in self.metadata["outputs"]}
        except Exception as error:  # ONNX Runtime has a dozen exceptions, none public
            raise ValueError(f"{model_path} cannot be run as {path} says: {error}") from error
        states = {f"next.{name}": self._state[name].shape for name in self.state_names}
        for name, shape in ({"action": (1, *self.low.shape)} | states).items():
            if shapes[name] != shape:
                raise ValueError(f"{model_path} gives {name} of the shape {shapes[name][1:]}, {path} says {shape[1:]}.")

    def __call__(
        self, observation: np.ndarray | Mapping[str, np.ndarray], noise: np.ndarray | None = None
    ) -> np.ndarray:
        """The action that the base environment would execute for a raw observation.

        Args:
            observation (np.ndarray or mapping): the observation of the task, of the shape that :attr:`metadata` tells
                under ``inputs``; several by name. What ``observation_transforms`` lists there is done to it before.
            noise (np.ndarray, optional): standard normal noise, of a policy with ``noise_input``. Defaults to zeros.

        Raises:
            ValueError: for an observation or noise of another shape, with a number that is not finite, one that is
                missing, or one that the policy does not take.
        """
        shapes = self.metadata["inputs"]
        given = dict(observation) if isinstance(observation, Mapping) else {"observation": observation}
        expected = [name for name in shapes if name not in (*self.state_names, "noise")]
        if set(given) != set(expected):
            raise ValueError(f"The policy reads {', '.join(expected)}, got {', '.join(given)}.{self._left()}")
        if noise is not None and "noise" not in shapes:
            raise ValueError("This policy takes no noise: export it with --noise-input.")
        if "noise" in shapes:
            given["noise"] = self._zeros("noise")[0] if noise is None else noise
        for name, value in given.items():
            if list(np.shape(value)) != list(shapes[name]):
                raise ValueError(
                    f"The policy reads {name} of the shape {shapes[name]}, got {np.shape(value)}.{self._left()}"
                )
            if not np.isfinite(np.asarray(value)).all():  # a normaliser would take it for the mean
                raise ValueError(f"The {name} has numbers that are not finite: a sensor failed.")
        outputs = self.run({name: np.asarray(value)[None] for name, value in given.items()} | self._state)
        self._state = {name: outputs[f"next.{name}"] for name in self.state_names}
        return outputs["action"][0]


def _read_metadata(path: Path) -> dict[str, Any]:
    """The content of ``policy.json``, if it has all that running the policy reads."""
    try:
        metadata = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    version = metadata.get("format") if isinstance(metadata, dict) else None
    if type(version) is int and version != FORMAT:
        remedy = "update the library" if version > FORMAT else "export the policy again (genpo-export)"
        raise ValueError(f"{path} has format {version}; this library reads format {FORMAT}: {remedy}.")
    try:
        _Description.model_validate(metadata, strict=True)
    except ValidationError as error:
        raise ValueError(f"{path} is damaged: {explain(error, _Description, metadata)}") from error
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
    names = [output.name for output in session.get_outputs()]
    dtypes = {tensor.name: DTYPES.get(tensor.type) for tensor in session.get_inputs()}

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        cast = {name: np.asarray(value, dtypes.get(name)) for name, value in inputs.items()}
        return dict(zip(names, session.run(None, cast), strict=True))

    return run
