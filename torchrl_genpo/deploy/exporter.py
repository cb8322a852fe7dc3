# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A trained policy as one folder that runs without this library: ONNX, ``torch.export`` and what they mean."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.envs import ActionScaling, EnvBase, ExplorationType, Transform, TransformedEnv, set_exploration_type

import torchrl_genpo
from torchrl_genpo.deploy.policy import FILES, FORMAT, INSTALL, ExportedPolicy
from torchrl_genpo.envs.common import simulator
from torchrl_genpo.envs.xhand import JOINTS, DeltaTarget, NutBoltEnv
from torchrl_genpo.envs.xhand.env import CONTROL_PERIOD
from torchrl_genpo.modules.export import ExportablePolicy, FlowHead, Normalizer, ObservationPipeline

__all__ = ["PolicyExporter"]

TOLERANCE = 1e-5  # largest difference of an exported action from the actor's
PACKAGES = ("torch", "torchrl", "tensordict", "onnx", "onnxruntime", "onnxscript")


class PolicyExporter:
    """Turns an actor and what its environment did to observations into one self-contained policy.

    Args:
        actor (TensorDictModule): a :class:`~torchrl_genpo.ReversibleFlowActor` or a stock Gaussian actor.
        env (EnvBase): the environment that it was trained in, with the statistics of its normalisation.

    Keyword Args:
        noise_input (bool, optional): see :class:`~torchrl_genpo.modules.ExportablePolicy`. Defaults to ``False``.

    Attributes:
        module (ExportablePolicy): the policy as a plain module.
        metadata (dict): what :meth:`save` writes beside it.

    Raises:
        ValueError: if a transform of the environment cannot be exported.

    Examples:
        >>> from tempfile import mkdtemp
        >>> from torchrl_genpo.deploy import ExportedPolicy, PolicyExporter
        >>> from torchrl_genpo.envs import make_env
        >>> from torchrl_genpo.models import make_actor
        >>> env = make_env("pendulum", num_envs=2, seed=0)
        >>> actor = make_actor(env)
        >>> rollout = env.rollout(20)
        >>> folder = PolicyExporter(actor, env).save(mkdtemp())
        >>> sorted(path.name for path in folder.iterdir())
        ['policy.json', 'policy.onnx', 'policy.pt2']
        >>> ExportedPolicy(folder)(rollout["observation"][0, 0].numpy()).shape
        (1,)
    """

    def __init__(self, actor: TensorDictModule, env: EnvBase, *, noise_input: bool = False) -> None:
        (key,) = actor.in_keys
        self._actor = actor
        transforms: list[Any] = []
        base = env
        while isinstance(base, TransformedEnv):
            transforms = [*base.transform, *transforms]
            base = base.base_env
        pipeline = ObservationPipeline.from_transforms(transforms, env.observation_spec[key].shape[-1], key)
        scalings = [transform for transform in transforms if isinstance(transform, ActionScaling)]
        if len(scalings) > 1:
            raise ValueError(
                f"The environment scales actions {len(scalings)} times; one ActionScaling can be exported."
            )
        self._scaling = _execution(env, scalings[0] if scalings else None)
        self.module = ExportablePolicy(actor, pipeline, noise_input=noise_input, action_scaling=self._scaling)
        self.metadata = {
            "format": FORMAT,
            "policy": _describe_actor(self.module),
            "dt": _control_period(env),
            "observation": {
                "parts": _part_sizes(env, pipeline),
                "size": pipeline.obs_dim,
                "frames": pipeline.num_frames,
                "normalization": {
                    name: None if part is None else _describe_normalizer(part)
                    for name, part in (("each_frame", pipeline.each_frame), ("stacked", pipeline.stacked))
                },
            },
            "action": {"size": env.action_spec.shape[-1], **_action_bounds(env)},
            "inputs": {name: list(shape) for name, shape in self.module.input_shapes.items()},
            "outputs": self.module.output_names,
            **_describe_hand(env, transforms),
        }

    def save(self, folder: Path | str, source: Mapping[str, Any] | None = None) -> Path:
        """Writes ``policy.onnx``, ``policy.pt2`` and ``policy.json``, and checks both against the actor.

        Args:
            folder (Path or str): created if needed; a policy that is there is replaced, once the new one is checked.
            source (mapping, optional): where the policy comes from, written as it is.

        Returns:
            The folder.

        Raises:
            ImportError: without the packages of ``torchrl-genpo[deploy]``.
            RuntimeError: if an exported action differs from the actor's by more than 1e-5.
        """
        for package in ("onnx", "onnxscript", "onnxruntime"):
            if importlib.util.find_spec(package) is None:
                raise ImportError(f"Exporting needs {package}: {INSTALL}.")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        metadata = self.metadata | {
            "source": dict(source or {}) | {"library": torchrl_genpo.__version__, "commit": _commit()},
            "versions": {name: version(name) for name in PACKAGES},
        }
        with tempfile.TemporaryDirectory(prefix="unchecked-", dir=folder) as temporary:
            draft = Path(temporary)
            self._write_programs(draft)
            path = draft / "policy.json"
            path.write_text(json.dumps(metadata))
            differences = {runtime: self.difference(ExportedPolicy(draft, runtime=runtime)) for runtime in FILES}
            if not max(differences.values()) <= TOLERANCE:
                raise RuntimeError(f"Exported actions differ from the actor's by {differences}: nothing is written.")
            path.write_text(json.dumps(metadata | {"largest_difference": differences}, indent=2) + "\n")
            for name in (*FILES.values(), path.name):
                os.replace(draft / name, folder / name)
        return folder

    def _write_programs(self, folder: Path) -> None:
        inputs = self.module.dummy_inputs()
        batch = {name: {0: torch.export.Dim.DYNAMIC} for name in inputs}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about its own exporters
            program = torch.export.export(self.module, (), inputs, dynamic_shapes=batch)
            torch.export.save(program, folder / FILES["torch"])
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            torch.onnx.export(
                program,
                f=folder / FILES["onnx"],
                input_names=self.module.input_names,
                output_names=self.module.output_names,
                external_data=False,
                verbose=False,
            )

    @torch.no_grad()
    def difference(self, policy: ExportedPolicy, batch_size: int = 64) -> float:
        """Largest difference of a policy's zero-noise actions from the actor's, for random observations."""
        inputs = self.module.dummy_inputs(batch_size)
        if "noise" in inputs:
            inputs["noise"].zero_()
        observation = self.module.pipeline(inputs["observation"], inputs.get("history"))[0]
        (key,) = self._actor.in_keys
        td = TensorDict({key: observation}, [batch_size]).to(next(self._actor.parameters()).device)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            expected: Tensor = self._actor(td)["action"].cpu()
        if self._scaling is not None:
            expected = self._scaling.denormalize(expected)
        action = torch.from_numpy(policy.run({name: value.numpy() for name, value in inputs.items()})["action"])
        return (action - expected).abs().max().item()


def _part_sizes(env: EnvBase, pipeline: ObservationPipeline) -> dict[str, int]:
    if len(pipeline.parts) == 1:
        return {str(pipeline.parts[0]): pipeline.obs_dim}
    return {str(part): env.observation_spec[part].shape[-1] for part in pipeline.parts}


def _first_simulator(env: EnvBase) -> Any:
    """What steps the first environment of a batch."""
    raw = simulator(env)
    return getattr(raw, "envs", [raw])[0]


def _control_period(env: EnvBase) -> float | None:
    """Seconds of simulated time from one action to the next; ``None`` where the simulator does not tell."""
    raw = _first_simulator(env)
    raw = getattr(raw, "unwrapped", raw)
    if isinstance(raw, NutBoltEnv):
        return CONTROL_PERIOD
    for name in ("dt", "step_dt"):  # Gymnasium's MuJoCo tasks, Isaac Lab
        if isinstance(value := getattr(raw, name, None), (int, float)):
            return float(value)
    fps = (getattr(raw, "metadata", None) or {}).get("render_fps")
    return 1 / fps if fps else None


def _action_wrapper(env: EnvBase, kind: type) -> Any:
    """The wrapper of a kind around a Gymnasium task, or ``None``; what it wraps has the task's own action space."""
    import gymnasium

    raw = _first_simulator(env)
    while isinstance(raw, gymnasium.Wrapper):
        if isinstance(raw, kind):
            return raw
        raw = raw.env
    return None


def _execution(env: EnvBase, scaling: ActionScaling | None) -> ActionScaling | None:
    """From the policy's action to the one that the task executes: the environment's transform, then its wrapper."""
    import gymnasium

    wrapper = _action_wrapper(env, gymnasium.wrappers.RescaleAction)
    if wrapper is None:
        return scaling
    space = wrapper.env.action_space  # which the wrapper maps [-1, 1] to
    low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
    middle, half = (high + low) / 2, (high - low) / 2
    location, scale = torch.zeros_like(middle), torch.ones_like(middle)
    if scaling is not None:
        location = scaling.denormalize(location)
        scale = scaling.denormalize(scale) - location
    return ActionScaling(loc=middle + half * location, scale=half * scale)


def _action_bounds(env: EnvBase) -> dict[str, list[float | None]]:
    """What the environment clips an action to; ``None``, which JSON can say and infinity it cannot, where nothing."""
    from gymnasium.wrappers import ClipAction, RescaleAction

    # of a task that is rescaled the exported action is its own; a clipped one calls its own space unbounded
    wrapper = _action_wrapper(env, RescaleAction) or _action_wrapper(env, ClipAction)
    space = env.action_spec.space if wrapper is None else wrapper.env.action_space
    bounds = {name: getattr(space, name) for name in ("low", "high")}
    rows = {name: bound.reshape(-1, bound.shape[-1])[0].tolist() for name, bound in bounds.items()}
    return {name: [value if abs(value) < 1e30 else None for value in row] for name, row in rows.items()}


def _describe_hand(env: EnvBase, transforms: Sequence[Transform]) -> dict[str, Any]:
    """How actions become the position targets of a hand, for a task of the XHand; else nothing."""
    raw = simulator(env)
    integrators = [transform for transform in transforms if isinstance(transform, DeltaTarget)]
    if not isinstance(raw, NutBoltEnv) or not integrators:
        return {}
    (delta,) = integrators
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
    }
    return {"hand": hand}


def _describe_normalizer(normalizer: Normalizer) -> dict[str, Any]:
    lists = {"loc": normalizer.loc.tolist(), "scale": normalizer.scale.tolist()}
    return lists | {"low": normalizer.low, "high": normalizer.high}


def _describe_actor(module: ExportablePolicy) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in module.head.parameters())
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


def _commit() -> str | None:
    """The commit of this library where it runs from a clone, not of a repository around the environment it is in."""
    command, root = ["git", "describe", "--always", "--dirty", "--abbrev=12"], Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
