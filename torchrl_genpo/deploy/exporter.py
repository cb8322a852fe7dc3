# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Writes a trained policy as one folder that runs without this library: an ONNX model, and JSON that describes it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type

import torchrl_genpo
from torchrl_genpo.deploy.policy import FORMAT, INSTALL, NAMES, ExportedPolicy
from torchrl_genpo.envs.common import simulator
from torchrl_genpo.envs.xhand import JOINTS, DeltaTarget, NutBoltEnv
from torchrl_genpo.envs.xhand.env import CONTROL_PERIOD
from torchrl_genpo.modules.export import ExportablePolicy, FlowHead

__all__ = ["PolicyExporter"]

TOLERANCE = 1e-5  # the largest difference of an exported action from the policy's, relative to actions beyond 1
STEPS = 16  # of the rollout whose observations are compared
PACKAGES = ("torch", "torchrl", "tensordict", "onnx", "onnxruntime", "onnxscript")


class PolicyExporter:
    """Turns a policy into a folder that holds all of it: ``policy.onnx`` and ``policy.json``.

    The exported model is the policy: it reads the raw observation of the environment and computes the action that the
    environment is given. What the environment clips actions to is written beside it.

    Args:
        policy (TensorDictModuleBase): see :class:`~torchrl_genpo.modules.ExportablePolicy`.
        env (EnvBase): the environment that it acts in. Saving resets and steps it.

    Keyword Args:
        noise_input (bool, optional): whether standard normal noise is an input. Defaults to ``False``.

    Attributes:
        module (ExportablePolicy): the policy as a plain module.
        metadata (dict): what :meth:`save` writes to ``policy.json``.

    Raises:
        TypeError: if the policy cannot be exported.
        ValueError: if it reads more than one observation.

    Examples:
        >>> from tempfile import mkdtemp
        >>> from tensordict.nn import ProbabilisticTensorDictSequential
        >>> from torchrl_genpo import ReversibleFlowActor, VelocityMLP
        >>> from torchrl_genpo.deploy import ExportedPolicy, PolicyExporter
        >>> from torchrl_genpo.envs import make_env
        >>> from torchrl_genpo.modules import RunningNormalizer
        >>> env = make_env("pendulum", num_envs=2, seed=0)
        >>> actor = ReversibleFlowActor(VelocityMLP(4, 1, num_cells=(32,)), in_keys=["normalized_observation"])
        >>> policy = ProbabilisticTensorDictSequential(RunningNormalizer(4), actor)
        >>> folder = PolicyExporter(policy, env).save(mkdtemp())
        >>> sorted(path.name for path in folder.iterdir())
        ['policy.json', 'policy.onnx']
        >>> ExportedPolicy(folder)(env.reset()["observation"][0].numpy()).shape
        (1,)
    """

    def __init__(self, policy: TensorDictModuleBase, env: EnvBase, *, noise_input: bool = False) -> None:
        self._policy, self._env = policy, env
        obs_dim = env.observation_spec[policy.in_keys[0]].shape[-1] if len(policy.in_keys) == 1 else None
        self.module = ExportablePolicy(policy, obs_dim=obs_dim, noise_input=noise_input)
        self.metadata = {
            "format": FORMAT,
            "policy": _describe_policy(self.module),
            "dt": _control_period(env),
            "action": {"size": env.action_spec.shape[-1], **_action_bounds(env)},
            "inputs": {name: list(shape) for name, shape in self.module.input_shapes.items()},
            "outputs": self.module.output_names,
            **_describe_hand(env, obs_dim),
        }

    def save(self, folder: Path | str, source: Mapping[str, Any] | None = None) -> Path:
        """Writes ``policy.onnx`` and ``policy.json``, once the first is checked against the policy.

        Args:
            folder (Path or str): the folder, created if needed. A policy that is there is replaced.
            source (mapping, optional): where the policy comes from, written as it is.

        Returns:
            The folder.

        Raises:
            ImportError: without the packages of ``torchrl-genpo[deploy]``.
            RuntimeError: if an exported action differs from the policy's by more than 1e-5 (relative to an action
                beyond 1).
        """
        for package in ("onnx", "onnxscript", "onnxruntime"):
            if importlib.util.find_spec(package) is None:
                raise ImportError(f"Exporting needs {package}: {INSTALL}.")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        metadata = self.metadata | {
            "source": dict(source or {}) | {"library": torchrl_genpo.__version__, "commit": _commit()},
            # imported, for a nightly build has another distribution name
            "versions": {name: importlib.import_module(name).__version__ for name in PACKAGES},
        }
        with tempfile.TemporaryDirectory(prefix="unchecked-", dir=folder) as temporary:
            draft = Path(temporary)
            model_path, path = (draft / name for name in NAMES)
            self._write_onnx(model_path)
            path.write_text(json.dumps(metadata))
            difference = self.difference(ExportedPolicy(draft))
            if not difference <= TOLERANCE:
                raise RuntimeError(
                    f"Exported actions differ from the policy's by {difference:.1e}: nothing is written."
                )
            path.write_text(json.dumps(metadata | {"largest_difference": difference}, indent=2) + "\n")
            for name in NAMES:
                os.replace(draft / name, folder / name)
        return folder

    def _write_onnx(self, path: Path) -> None:
        inputs = self.module.dummy_inputs()
        batch = {name: {0: torch.export.Dim.DYNAMIC} for name in inputs}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about its own exporters
            program = torch.export.export(self.module, (), inputs, dynamic_shapes=batch)
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            torch.onnx.export(
                program,
                f=path,
                input_names=self.module.input_names,
                output_names=self.module.output_names,
                external_data=False,
                verbose=False,
            )

    @torch.no_grad()
    def difference(self, exported: ExportedPolicy) -> float:
        """The largest difference of zero-noise actions from the policy's, relative to actions beyond 1.

        The policy is called as an evaluation calls it, on observations of a short rollout and on random ones.
        """
        (key,) = self._policy.in_keys
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            seen = self._env.rollout(STEPS, self._policy, break_when_any_done=False)[key].flatten(0, -2)
            observation = torch.cat([seen, self.module.dummy_inputs(64)["observation"].to(seen)])
            expected = self._policy(TensorDict({key: observation}, [len(observation)]))["action"].cpu().numpy()
        inputs = {
            name: np.zeros((len(observation), *shape), np.float32) for name, shape in self.module.input_shapes.items()
        }
        inputs["observation"] = observation.cpu().float().numpy()
        error = np.abs(exported.run(inputs)["action"] - expected)
        return float((error / np.maximum(1.0, np.abs(expected))).max())


def _describe_policy(module: ExportablePolicy) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    if not isinstance(module.head, FlowHead):
        return {"kind": "gaussian", "parameters": parameters}
    solver = module.head.solver
    return {
        "kind": "reversible_flow",
        "parameters": parameters,
        "num_steps": solver.num_steps,
        "solver": repr(solver),
        "start": repr(module.head.start),
    }


def _control_period(env: EnvBase) -> float | None:
    """The simulated seconds from one action to the next, or ``None`` where the simulator does not tell."""
    raw = simulator(env)
    raw = getattr(raw, "envs", [raw])[0]  # the first of a batch
    raw = getattr(raw, "unwrapped", raw)
    if isinstance(raw, NutBoltEnv):
        return CONTROL_PERIOD
    for name in ("dt", "step_dt"):  # Gymnasium's MuJoCo tasks, Isaac Lab
        if isinstance(value := getattr(raw, name, None), (int, float)):
            return float(value)
    fps = (getattr(raw, "metadata", None) or {}).get("render_fps")
    return 1 / fps if fps else None


def _action_bounds(env: EnvBase) -> dict[str, list[float | None]]:
    """The bounds to which the environment clips an action; an infinite one, which JSON has no word for, is ``None``."""
    space, size = env.action_spec.space, env.action_spec.shape[-1]
    rows = {name: getattr(space, name).reshape(-1, size)[0].tolist() for name in ("low", "high")}
    return {name: [value if abs(value) < 1e30 else None for value in row] for name, row in rows.items()}


def _describe_hand(env: EnvBase, obs_dim: int | None) -> dict[str, Any]:
    """How a hand makes observations and executes actions, for a task of the XHand; else nothing."""
    kinds: tuple[Any, Any] = (NutBoltEnv, DeltaTarget)
    found: dict[Any, Any] = {kind: part for part in env.modules() for kind in kinds if isinstance(part, kind)}
    if len(found) < len(kinds):
        return {}
    raw, delta = (found[kind] for kind in kinds)
    hand = {
        "side": raw.scene.side,
        "index_bend_sign": raw.scene.index_bend_sign,
        "joints": list(JOINTS),
        "active": [JOINTS[index] for index in delta.active.tolist()],
        "masked": delta.masked,
        "scale": delta.scale,
        "low": delta.low.tolist(),
        "high": delta.high.tolist(),
        "start_pose": raw.scene.start_pose().tolist(),
        "frames": (obs_dim or 0) // (2 * len(JOINTS)),
    }
    return {"hand": hand}


def _commit() -> str | None:
    """The commit of this library if it runs from its own repository, else ``None``."""
    command, root = ["git", "describe", "--always", "--dirty", "--abbrev=12"], Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
