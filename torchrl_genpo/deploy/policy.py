# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Runs an exported policy, one observation at a time."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from torchrl_genpo.untrusted import parse_json, read_program

__all__ = ["ExportedPolicy"]

Runtime: TypeAlias = Literal["onnx", "torch"]
Arrays: TypeAlias = Mapping[str, np.ndarray]

FORMAT = 1  # of policy.json
MAX_SIZE = 10**6  # of an input
FILES: dict[Runtime, str] = {"onnx": "policy.onnx", "torch": "policy.pt2"}
"""The same policy for each runtime."""
INSTALL = "pip install 'torchrl-genpo[deploy]'"


class ExportedPolicy:
    """A policy that :class:`~torchrl_genpo.deploy.PolicyExporter` wrote; remembers its history, if it has one.

    Args:
        folder (Path or str): with ``policy.json`` and the file of the runtime.
        runtime (str, optional): ``"onnx"`` for ONNX Runtime, the faster, or ``"torch"``. Defaults to ``"onnx"``.

    Attributes:
        metadata (dict): of ``policy.json``.
        dt (float or None): control period, s.

    Raises:
        FileNotFoundError: if there is no policy.
        ValueError: for an unknown runtime, a newer format, or a file that is damaged or holds what no export does.
        ImportError: without ONNX Runtime, if it is asked for.
    """

    def __init__(self, folder: Path | str, runtime: Runtime = "onnx") -> None:
        folder = Path(folder)
        if runtime not in FILES:
            raise ValueError(f"Unknown runtime {runtime!r}; choose from {', '.join(FILES)}.")
        path = folder / "policy.json"
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
        self.run: Callable[[Arrays], Arrays] = (_run_onnx if runtime == "onnx" else _run_torch)(
            folder / FILES[runtime], self.metadata["outputs"]
        )
        """From batched inputs to batched outputs by name, as ``metadata`` describes them; remembers nothing."""
        self._check_run(folder / FILES[runtime])
        self._history: np.ndarray | None = None

    def _check_run(self, path: Path) -> None:
        """Runs the policy once, which also pays for what the first run costs."""
        try:
            outputs = self.run(
                {name: np.zeros((1, *shape), np.float32) for name, shape in self.metadata["inputs"].items()}
            )
            sizes = {name: value.shape[1:] for name, value in outputs.items()}
        except Exception as error:  # each runtime has exceptions of its own
            raise ValueError(f"{path} cannot be run as {path.parent / 'policy.json'} says: {error}") from error
        if sizes["action"] != (self.metadata["action"]["size"],):
            raise ValueError(f"{path} has actions of {sizes['action']}, not of {self.metadata['action']['size']}.")

    def reset(self) -> None:
        """Forgets the history: the next observation begins an episode."""
        self._history = None

    def __call__(self, observation: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """The action ``[d]`` for a raw observation ``[n]``, within the bounds that held in training.

        Args:
            observation (np.ndarray): ``[n]``.
            noise (np.ndarray, optional): standard normal, of a policy with ``noise_input``. Defaults to zero noise.

        Raises:
            ValueError: for an observation of another size, or noise where the policy takes none.
        """
        shapes = self.metadata["inputs"]
        observation = np.asarray(observation, np.float32)
        if list(observation.shape) != shapes["observation"]:
            raise ValueError(f"The policy reads an observation of {shapes['observation']}, got {observation.shape}.")
        if noise is not None and "noise" not in shapes:
            raise ValueError("This policy takes no noise: export it with --noise-input.")
        inputs = {"observation": observation[None]}
        if "history" in shapes:
            if self._history is None:
                self._history = np.broadcast_to(observation, (1, *shapes["history"])).copy()
            inputs["history"] = self._history
        if "noise" in shapes:
            inputs["noise"] = np.zeros((1, *shapes["noise"]), np.float32) if noise is None else noise[None]
        outputs = self.run(inputs)
        self._history = outputs.get("next_history")
        return np.fmin(np.fmax(outputs["action"][0], self.low), self.high)  # an infinite bound is written as none


def _read_metadata(path: Path) -> dict[str, Any]:
    """``policy.json``, with all that running the policy reads."""
    metadata = parse_json(path.read_bytes(), str(path))
    if not isinstance(metadata, dict) or not isinstance(metadata.get("format"), int):
        raise ValueError(f"{path} is not the description of a policy: it has no format.")
    if metadata["format"] > FORMAT:
        raise ValueError(f"{path} has format {metadata['format']}; this library reads up to {FORMAT}: update it.")

    def is_number(value: Any) -> bool:
        return isinstance(value, (int, float)) and math.isfinite(value)

    try:
        action, inputs, outputs = metadata["action"], metadata["inputs"], metadata["outputs"]
        bounds = [bound for name in ("low", "high") for bound in action[name] if bound is not None]
        sizes = [size for name in ("observation", *inputs) for size in inputs[name]]
        is_whole = all(map(is_number, [*bounds, action["size"], *([] if metadata["dt"] is None else [metadata["dt"]])]))
        is_whole &= len(action["low"]) == len(action["high"]) == action["size"] and "action" in outputs
        is_whole &= all(isinstance(size, int) and 0 <= size <= MAX_SIZE for size in sizes)
        is_whole &= set(inputs) <= {"observation", "history", "noise"} and set(outputs) <= {"action", "next_history"}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r} is missing or of another kind.") from error
    if not is_whole:
        raise ValueError(f"{path} is damaged: sizes, bounds or names of inputs and outputs are not those of a policy.")
    return metadata


def _run_onnx(path: Path, output_names: list[str]) -> Callable[[Arrays], Arrays]:
    if importlib.util.find_spec("onnxruntime") is None:
        raise ImportError(f"runtime='onnx' needs ONNX Runtime: {INSTALL}; or use runtime='torch'.")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # one action is too little work for more
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a dozen exceptions, none public
        raise ValueError(f"{path} is not a readable ONNX model (cut short, damaged or foreign): {error}") from error
    missing = set(output_names) - {output.name for output in session.get_outputs()}
    if missing:
        raise ValueError(f"{path} has no output {', '.join(sorted(missing))}.")

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(output_names, session.run(output_names, dict(inputs)), strict=True))

    return run


def _run_torch(path: Path, output_names: list[str]) -> Callable[[Arrays], Arrays]:
    import torch

    program = read_program(path)
    try:
        module = torch.export.load(program).module()
    except Exception as error:  # PyTorch's own checks are assertions and whatever a damaged graph meets
        raise ValueError(f"{path} is not a readable program (cut short, damaged or foreign): {error}") from error

    @torch.no_grad()
    def run(inputs: Arrays) -> Arrays:
        outputs = module(**{name: torch.tensor(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in zip(output_names, outputs, strict=True)}

    return run
