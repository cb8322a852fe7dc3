# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Writes a trained policy as one folder that runs without this library: an ONNX model, and JSON that describes it."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import logging
import math
import os
import subprocess
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModuleBase
from tensordict.utils import unravel_key
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.data.tensor_specs import ContinuousBox
from torchrl.envs import (
    ClipTransform,
    Compose,
    EnvBase,
    ExplorationType,
    FrameSkipTransform,
    Transform,
    TransformedEnv,
    set_exploration_type,
)

import torchrl_genpo
from torchrl_genpo.deploy.policy import FORMAT, INSTALL, NAMES, ExportedPolicy
from torchrl_genpo.envs.common import simulator
from torchrl_genpo.envs.gym import PolicySpaces
from torchrl_genpo.envs.xhand import JOINTS, DeltaTarget, History, NutBoltEnv
from torchrl_genpo.envs.xhand.env import CONTROL_PERIOD
from torchrl_genpo.modules import ExportablePolicy, ReversibleFlowActor

__all__ = ["PolicyExporter"]

TOLERANCE = 1e-5  # the largest difference of an exported action from the policy's, relative to actions beyond 1
EPISODES, STEPS = 2, 128  # that are replayed, and the most steps of each
PACKAGES = ("torch", "torchrl", "tensordict", "onnx", "onnxruntime", "onnxscript")


class ExecutedPolicy(nn.Module):
    """An exportable policy whose action is clipped to what the environment takes.

    Args:
        policy (ExportablePolicy): the policy.
        spec (TensorSpec): of the environment's action.
        clips (sequence of ClipTransform): those of the environment that clip the action.
    """

    def __init__(self, policy: ExportablePolicy, spec: TensorSpec, clips: Sequence[ClipTransform]) -> None:
        super().__init__()
        self.policy = policy
        if not isinstance(spec.space, ContinuousBox):
            raise TypeError(f"An action of real numbers can be exported; the environment takes {type(spec).__name__}.")
        self.low: Tensor
        self.high: Tensor
        for name, narrow in (("low", torch.maximum), ("high", torch.minimum)):
            bound = getattr(spec.space, name).reshape(-1, *policy.action_shape)[0].detach().float().cpu().clone()
            for limit in (getattr(clip, name) for clip in clips):
                bound = bound if limit is None else narrow(bound, limit.cpu().float())
            self.register_buffer(name, bound)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The action and the states, as :class:`~torchrl_genpo.modules.ExportablePolicy` returns them."""
        action, *states = self.policy(*inputs)
        return (action.clamp(self.low, self.high), *states)


class PolicyExporter:
    """Turns a policy into a folder that holds all of it: ``policy.onnx`` and ``policy.json``.

    The exported model is the policy, from what it reads to the action that the environment executes: normaliser,
    encoders, units and squashing are modules of a policy, and what is beyond the bounds of the environment's action is
    clipped to them. ``observation_transforms`` in ``policy.json`` lists what a robot has to do itself to make what the
    model reads: what :class:`~torchrl_genpo.envs.gym.PolicySpaces` makes of a Gymnasium task's pictures, dictionaries
    and shapes, and the environment's own transforms of observations.

    A recurrent policy has its state as inputs and outputs (see :class:`~torchrl_genpo.modules.ExportablePolicy`).

    Args:
        policy (TensorDictModuleBase): any policy whose deterministic action is a function of what it reads.
        env (EnvBase): the environment that it acts in. Exporting resets and steps it.

    Keyword Args:
        noise_input (bool, optional): whether standard normal noise is an input. Defaults to ``False``.

    Attributes:
        module (torch.nn.Module): the policy as a plain module.
        metadata (dict): what :meth:`save` writes to ``policy.json``.

    Raises:
        KeyError: if the policy reads what the environment does not give.
        TypeError: if the policy or the environment's action cannot be exported.
        ValueError: if a transform of the environment changes the action, the environment has several actions, or the
            policy does not write its action.

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
        if len(env.action_keys) != 1:
            raise ValueError(f"A policy of one action can be exported; the environment has {env.action_keys}.")
        action_key = unravel_key(env.action_keys[0])
        if action_key not in policy.out_keys:
            raise ValueError(f"The environment takes {action_key!r}; the policy writes {policy.out_keys}.")
        transforms, first = _transforms(env), env.reset()
        exportable = ExportablePolicy(policy, first, action_key=action_key, noise_input=noise_input)
        clips = [t for t in transforms if isinstance(t, ClipTransform) and action_key in t.in_keys_inv]
        self.module = ExecutedPolicy(exportable, env.full_action_spec[action_key], clips)
        hand = _describe_hand(env)
        if not hand:  # which moves the targets of its joints by the action
            _check_execution(env, first, action_key, self.module)
        period = _control_period(env)
        skipped = math.prod(int(t.frame_skip) for t in transforms if isinstance(t, FrameSkipTransform))
        made = _makers(transforms, {*exportable.observations.values()})
        self.metadata = {
            "format": FORMAT,
            "policy": _describe_policy(policy),
            "dt": None if period is None else period * skipped,
            "action": {"shape": list(exportable.action_shape), **_action_bounds(self.module)},
            "inputs": {name: list(shape) for name, shape in exportable.input_shapes.items()},
            "outputs": exportable.output_names,
            "observation_transforms": [
                *_conversions(env, None if made else set(exportable.observations.values())),
                *(" ".join(repr(transform).split()) for transform in made),
            ],
            **hand,
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
        inputs = self.module.policy.example_inputs()
        batch = None if self.module.policy.batch_size else {0: torch.export.Dim.DYNAMIC}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about its own exporters
            program = torch.export.export(self.module, inputs, dynamic_shapes=((batch,) * len(inputs),))
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            torch.onnx.export(
                program,
                f=path,
                input_names=list(self.metadata["inputs"]),
                output_names=self.metadata["outputs"],
                external_data=False,
                verbose=False,
            )

    def difference(self, exported: ExportedPolicy) -> float:
        """The largest difference of exported actions from the executed ones, relative to actions beyond 1.

        The deterministic policy plays two episodes in its environment, each to its end or for 128 steps. Every action
        is compared with the one that the exported policy makes of the same observation, from the first step on with a
        state of its own.
        """
        largest = 0.0
        policy = copy.deepcopy(self._policy).eval()
        low, high = self.module.low.numpy(), self.module.high.numpy()
        observations, action_key = self.module.policy.observations, self.module.policy.action_key
        for _ in range(EPISODES):
            with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
                steps = _of_the_first(self._env, self._env.rollout(STEPS, policy))
            exported.reset()
            for step in steps:
                action = exported({name: step.get(key).cpu().numpy() for name, key in observations.items()})
                expected = np.clip(step.get(action_key).cpu().numpy(), low, high)
                error = np.abs(action - expected) / np.maximum(1.0, np.abs(expected))
                largest = max(largest, float(np.nan_to_num(error, nan=np.inf).max()))
        return largest


def _of_the_first(env: EnvBase, data: TensorDictBase) -> TensorDictBase:
    """The steps of the first environment of a batch."""
    return data.reshape(env.batch_size.numel(), -1)[0]


def _transforms(env: EnvBase) -> list[Transform]:
    """The transforms around an environment, innermost first."""
    if not isinstance(env, TransformedEnv):
        return []
    return [*_transforms(env.base_env), *_parts(env.transform)]


def _parts(transform: Transform) -> list[Transform]:
    if type(transform) is not Compose:  # a subclass does more than the parts
        return [transform]
    return [part for member in transform.transforms for part in _parts(member)]


def _check_execution(env: EnvBase, first: TensorDictBase, key: NestedKey, module: ExecutedPolicy) -> None:
    """Refuses transforms that change an action between the policy and the simulator, beyond clipping it."""
    # random ones, for those that a policy saturates look the same after many a change
    action = env.full_action_spec[key].rand()
    tensordict = first.clone().set(key, action)
    names = [type(transform).__name__ for transform in _transforms(env) if transform.in_keys_inv]
    while isinstance(env, TransformedEnv):
        tensordict, env = env.transform.inv(tensordict), env.base_env
    executed = tensordict.get(env.action_keys[0]).reshape(-1, *module.policy.action_shape).cpu().float()
    expected = action.reshape(executed.shape).cpu().float().clamp(module.low, module.high)
    if not torch.allclose(executed.clamp(module.low, module.high), expected, atol=TOLERANCE):
        raise ValueError(
            "The transforms of the environment change the action between the policy and the simulator "
            f"({', '.join(names) or 'one without keys'}): make that a module of the policy, behind the actor, so that "
            "it is exported."
        )


def _makers(transforms: list[Transform], keys: set[NestedKey]) -> list[Transform]:
    """The transforms that make these observations."""
    found: list[Transform] = []
    for transform in reversed(transforms):
        if keys & set(map(unravel_key, transform.out_keys or ())):
            found.insert(0, transform)
            keys = keys | set(map(unravel_key, transform.in_keys or ()))
    return found


def _describe_policy(policy: TensorDictModuleBase) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    actors = [module for module in policy.modules() if isinstance(module, ReversibleFlowActor)]
    if len(actors) != 1:
        samplers = [module for module in policy.modules() if isinstance(module, ProbabilisticTensorDictModule)]
        kind = ", ".join(sampler.distribution_class.__name__ for sampler in samplers) or "deterministic"
        return {"kind": kind, "parameters": parameters}
    (actor,) = actors
    return {
        "kind": "reversible_flow",
        "parameters": parameters,
        "num_steps": actor.solver.num_steps,
        "solver": repr(actor.solver),
        "start": repr(actor.start),
    }


def _first_simulator(env: EnvBase) -> Any:
    """The simulator of the first environment of a batch."""
    raw = simulator(env)
    return getattr(raw, "envs", [raw])[0]


def _conversions(env: EnvBase, keys: set[NestedKey] | None) -> list[str]:
    """How observations are made of a Gymnasium task's own, of these keys or of all."""
    raw = _first_simulator(env)
    if not isinstance(raw, PolicySpaces):
        return []
    return [made for key, made in raw.conversions.items() if keys is None or key in keys]


def _control_period(env: EnvBase) -> float | None:
    """The simulated seconds from one action to the next, or ``None`` where the simulator does not tell."""
    raw = _first_simulator(env)
    raw = getattr(raw, "unwrapped", raw)
    if isinstance(raw, NutBoltEnv):
        return CONTROL_PERIOD
    for name in ("dt", "step_dt"):  # Gymnasium's MuJoCo tasks, Isaac Lab
        if isinstance(value := getattr(raw, name, None), (int, float)):
            return float(value)
    fps = (getattr(raw, "metadata", None) or {}).get("render_fps")
    return 1 / fps if fps else None


def _action_bounds(module: ExecutedPolicy) -> dict[str, list[float | None]]:
    """The bounds of the action, row by row; an infinite one, which JSON has no word for, is ``None``."""
    rows = {name: bound.flatten().tolist() for name, bound in (("low", module.low), ("high", module.high))}
    return {name: [value if abs(value) < 1e30 else None for value in row] for name, row in rows.items()}


def _describe_hand(env: EnvBase) -> dict[str, Any]:
    """How a hand makes observations and executes actions, for a task of the XHand; else nothing."""
    kinds: tuple[Any, ...] = (NutBoltEnv, DeltaTarget, History)
    found: dict[Any, Any] = {kind: part for part in env.modules() for kind in kinds if isinstance(part, kind)}
    if len(found) < len(kinds):
        return {}
    raw, delta, history = (found[kind] for kind in kinds)
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
        "frames": history.num_frames,
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
