# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A policy as a plain module from observations to an action, for exporters that know neither TensorDict nor chance."""

from __future__ import annotations

import copy

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModuleBase, TensorDictSequential
from tensordict.utils import unravel_key
from torch import Tensor, nn
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import IndependentNormal, set_recurrent_mode

from torchrl_genpo.modules.actor import ReversibleFlowActor
from torchrl_genpo.modules.inputs import read
from torchrl_genpo.modules.sequence import steps

__all__ = ["ExportablePolicy"]

NOISE = "noise"
IS_INIT = "is_init"  # what TorchRL's recurrent modules read beside their state


class FlowFromNoise(TensorDictModuleBase):
    """A :class:`~torchrl_genpo.ReversibleFlowActor` that reads standard normal noise ``[..., 2 d]`` and draws none."""

    def __init__(self, actor: ReversibleFlowActor) -> None:
        super().__init__()
        self.actor = actor
        self.in_keys, self.out_keys = [*actor.in_keys, NOISE], [actor.action_key]
        self.noise_size = 2 * actor.velocity.action_dim

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the action."""
        (noise,) = read(tensordict, NOISE)
        dist = self.actor.get_dist(tensordict.select(*self.actor.in_keys))
        pair = noise.to(self.actor.solver.state_dtype(noise.dtype)).chunk(2, -1)
        action, _ = dist.from_noise(*pair)
        return tensordict.set(self.out_keys[0], action.to(noise.dtype))


class NormalFromNoise(TensorDictModuleBase):
    """The sampler of an ``IndependentNormal`` that reads standard normal noise ``[..., d]`` and draws none."""

    noise_size = None  # that of the action

    def __init__(self, sampler: ProbabilisticTensorDictModule) -> None:
        super().__init__()
        self.in_keys, self.out_keys = [*sampler.in_keys, NOISE], [sampler.out_keys[0]]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the action."""
        loc, scale, noise = read(tensordict, *self.in_keys)
        return tensordict.set(self.out_keys[0], loc + scale * noise)


class ExportablePolicy(nn.Module):
    """A policy as a plain module from raw observations to actions, ready for ``torch.export`` and ONNX.

    It holds a copy of the policy, on the CPU, and calls it under ``ExplorationType.DETERMINISTIC``, so that any
    TensorDict module is exported whose deterministic action is a function of what it reads: normalisers, encoders, a
    flow, squashed or not, or another distribution.

    A recurrent policy, which reads ``k`` and writes ``("next", k)`` as TorchRL's ``GRUModule`` and ``LSTMModule`` do,
    takes its state as an input and returns the new one. An episode begins with a state of zeros, which is what those
    modules make of the ``is_init`` flag. It takes one observation at a time, where other policies take any number.

    Inputs have the dtype of the example and the action is float32. The one observation of a policy is called
    ``observation``; several are called as their keys, nested ones with dots.

    Args:
        policy (TensorDictModuleBase): the policy.
        example (TensorDictBase): what it reads, such as ``env.reset()``, for the shapes and for tracing.

    Keyword Args:
        action_key (NestedKey, optional): defaults to ``"action"``.
        noise_input (bool, optional): whether standard normal noise is an input, for a policy that samples:
            ``[b, ..., 2 d]`` of a flow, ``[b, ..., d]`` of a normal policy. Defaults to ``False``.

    Attributes:
        observation_keys (list of NestedKey): the keys of the observations.
        state_keys (list of NestedKey): the keys of the recurrent state.
        action_shape (tuple of int): the shape of the action, without its batch dimension.

    Raises:
        KeyError: if the example lacks what the policy reads.
        TypeError: if the policy draws under ``DETERMINISTIC``, or, with ``noise_input``, by other means than one
            ``ReversibleFlowActor`` or one ``IndependentNormal``.
        ValueError: if it does not write the action, or two inputs have one name.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.envs import ExplorationType, set_exploration_type
        >>> from torchrl_genpo import ReversibleFlowActor, VelocityMLP
        >>> from torchrl_genpo.modules import ExportablePolicy
        >>> actor = ReversibleFlowActor(VelocityMLP(in_features=4, action_dim=2, num_cells=(32, 32)))
        >>> data = TensorDict(observation=torch.randn(8, 4), batch_size=[8])
        >>> policy = ExportablePolicy(actor, data)
        >>> (action,) = policy(data["observation"])
        >>> with set_exploration_type(ExplorationType.DETERMINISTIC):
        ...     torch.allclose(action, actor(data)["action"], atol=1e-5)
        True
        >>> policy.input_shapes, policy.output_names
        ({'observation': (4,)}, ['action'])
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        example: TensorDictBase,
        *,
        action_key: NestedKey = "action",
        noise_input: bool = False,
    ) -> None:
        super().__init__()
        self.action_key = unravel_key(action_key)
        if self.action_key not in policy.out_keys:
            raise ValueError(f"The policy must write {self.action_key!r} to be exported; it writes {policy.out_keys}.")
        keys = [key for key in map(unravel_key, policy.in_keys) if key != IS_INIT]
        self.state_keys = [key for key in keys if unravel_key(("next", key)) in policy.out_keys]
        self.observation_keys = [key for key in keys if key not in self.state_keys]
        self.policy: nn.Module = copy.deepcopy(policy).cpu().eval().requires_grad_(False)
        for module in self.policy.modules():
            if isinstance(module, ReversibleFlowActor):
                # no gradient is taken, and the "reversible" one would hide the steps from a tracer
                module.solver.gradient = "stored"  # type: ignore[attr-defined]
        rows = [value.reshape(-1, *value.shape[example.ndim :]) for value in read(example, *keys)]
        self._example = {key: row[:1].cpu().clone() for key, row in zip(keys, rows, strict=True)}
        names = [self._name(key) for key in keys]
        if len(set(names)) < len(names) or (noise_input and NOISE in names):
            raise ValueError(f"The inputs of an exported policy need different names, got {names} and {NOISE!r}.")
        first, second = (self._run(self._example) for _ in range(2))
        if not torch.equal(first[self.action_key], second[self.action_key]):
            raise TypeError("The policy draws under ExplorationType.DETERMINISTIC: its action cannot be exported.")
        self.action_shape = tuple(first[self.action_key].shape[1:])
        if noise_input:
            self._take_noise()

    def _take_noise(self) -> None:
        """Replaces the module that draws the action by one that reads noise."""
        modules = steps(self.policy)
        drawing = [module for module in modules if isinstance(module, ProbabilisticTensorDictModule)]
        (actor,) = drawing if len(drawing) == 1 else (None,)
        head: FlowFromNoise | NormalFromNoise
        if isinstance(actor, ReversibleFlowActor):
            head = FlowFromNoise(actor)
        elif actor is not None and actor.distribution_class is IndependentNormal:
            head = NormalFromNoise(actor)
        else:
            names = ", ".join(type(module).__name__ for module in drawing) or "none"
            raise TypeError(
                "A policy takes noise whose action is drawn by one ReversibleFlowActor or by one IndependentNormal; "
                f"the modules of this one that draw: {names}."
            )
        action = self._run(self._example)[head.out_keys[0]]
        size = action.shape[-1] if head.noise_size is None else head.noise_size
        self._example[NOISE] = action.new_zeros(*action.shape[:-1], size, dtype=torch.float32)
        self.policy = TensorDictSequential(*(head if module is actor else module for module in modules))

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the inputs by name, without their batch dimension, in the order of :meth:`forward`."""
        return {self._name(key): tuple(value.shape[1:]) for key, value in self._example.items()}

    @property
    def output_names(self) -> list[str]:
        """What :meth:`forward` returns, in order: ``action``, and ``next.<name>`` for each state."""
        return ["action", *(f"next.{self._name(key)}" for key in self.state_keys)]

    @property
    def observations(self) -> dict[str, NestedKey]:
        """The keys of the observations by the names of their inputs."""
        return {self._name(key): key for key in self.observation_keys}

    @property
    def batch_size(self) -> int | None:
        """The only batch size that it takes, or ``None`` if it takes any."""
        return 1 if self.state_keys else None

    def _name(self, key: NestedKey) -> str:
        if len(self.observation_keys) == 1 and key == self.observation_keys[0]:
            return "observation"
        return key if isinstance(key, str) else ".".join(key)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Inputs to trace it with, of one row, or of two where the batch size is free."""
        rows = self.batch_size or 2
        return tuple(value.expand(rows, *value.shape[1:]).clone() for value in self._example.values())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The action ``[b, ..., d]`` and the new states.

        Args:
            *inputs (Tensor): ``[b, ...]`` each, in the order of :attr:`input_shapes`.
        """
        for (name, shape), value in zip(self.input_shapes.items(), inputs, strict=True):
            if value.shape[1:] != shape:
                raise ValueError(f"{name} must be [b, {', '.join(map(str, shape))}], got {list(value.shape)}.")
        tensordict = self._run(dict(zip(self._example, inputs, strict=True)))
        states = (tensordict.get(unravel_key(("next", key))) for key in self.state_keys)
        return (tensordict.get(self.action_key).float(), *states)

    def _run(self, inputs: dict[NestedKey, Tensor]) -> TensorDictBase:
        tensordict = TensorDict(inputs, [next(iter(inputs.values())).shape[0]])
        if self.state_keys:
            # of one row: a tracer knows the value of a single number, which the modules branch on
            tensordict.set(IS_INIT, torch.tensor([[False]]))
        with set_exploration_type(ExplorationType.DETERMINISTIC), set_recurrent_mode(False), torch.no_grad():
            return self.policy(tensordict)
