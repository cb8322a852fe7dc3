# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Runs an exported policy, one observation at a time."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

__all__ = ["ExportedPolicy"]

Runtime: TypeAlias = Literal["onnx", "torch"]
Arrays: TypeAlias = Mapping[str, np.ndarray]

FORMAT = 1  # of policy.json
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
        ValueError: for an unknown runtime or a newer format.
        ImportError: without ONNX Runtime, if it is asked for.
    """

    def __init__(self, folder: Path | str, runtime: Runtime = "onnx") -> None:
        folder = Path(folder)
        if runtime not in FILES:
            raise ValueError(f"Unknown runtime {runtime!r}; choose from {', '.join(FILES)}.")
        path = folder / "policy.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{folder} holds no policy ({path.name} is missing). Write one with: python -m "
                "torchrl_genpo.deploy.export <checkpoint> <folder>"
            )
        self.metadata: dict[str, Any] = json.loads(path.read_text())
        if self.metadata["format"] > FORMAT:
            raise ValueError(
                f"{path} has format {self.metadata['format']}; this library reads up to {FORMAT}: update it."
            )
        self.dt: float | None = self.metadata["dt"]
        self.low, self.high = (
            np.array([np.nan if bound is None else bound for bound in self.metadata["action"][name]], np.float32)
            for name in ("low", "high")
        )
        self.run: Callable[[Arrays], Arrays] = (_run_onnx if runtime == "onnx" else _run_torch)(
            folder / FILES[runtime], self.metadata["outputs"]
        )
        """From batched inputs to batched outputs by name, as ``metadata`` describes them; remembers nothing."""
        self._history: np.ndarray | None = None

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


def _run_onnx(path: Path, output_names: list[str]) -> Callable[[Arrays], Arrays]:
    if importlib.util.find_spec("onnxruntime") is None:
        raise ImportError(f"runtime='onnx' needs ONNX Runtime: {INSTALL}; or use runtime='torch'.")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # one action is too little work for more
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(output_names, session.run(output_names, dict(inputs)), strict=True))

    return run


def _run_torch(path: Path, output_names: list[str]) -> Callable[[Arrays], Arrays]:
    import torch

    module = torch.export.load(path).module()

    @torch.no_grad()
    def run(inputs: Arrays) -> Arrays:
        outputs = module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in zip(output_names, outputs, strict=True)}

    return run
