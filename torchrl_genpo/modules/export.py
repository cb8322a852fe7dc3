# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A policy as a plain module from observation to action, for exporters that know neither TensorDict nor randomness."""

from __future__ import annotations

import copy

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModuleBase
from torch import Tensor, nn
from torchrl.modules import IndependentNormal

from torchrl_genpo.flow import ConditionedVelocity
from torchrl_genpo.modules.actor import ReversibleFlowActor
from torchrl_genpo.modules.inputs import read
from torchrl_genpo.modules.normalizer import RunningNormalizer
from torchrl_genpo.modules.sequence import steps

__all__ = ["ExportablePolicy", "FlowHead", "GaussianHead"]


class FlowHead(nn.Module):
    """The action of a :class:`~torchrl_genpo.ReversibleFlowActor` from given noise: the start and the solver's M steps.

    Args:
        actor (ReversibleFlowActor): the actor, whose modules are used and not copied.
    """

    def __init__(self, actor: ReversibleFlowActor) -> None:
        super().__init__()
        self.velocity, self.start, self.solver = actor.velocity, actor.start, actor.solver
        # no gradient is taken, and the "reversible" one would hide the steps from a tracer
        self.solver.gradient = "stored"  # type: ignore[attr-defined]
        self.in_keys, self.action_key = actor.in_keys, actor.action_key

    def forward(self, tensordict: TensorDictBase, noise: Tensor | None) -> TensorDictBase:
        """Writes the action ``[b, d]`` for standard normal noise ``[b, 2 d]``, or for zero noise."""
        observations = read(tensordict, *self.in_keys)
        if noise is None:
            size = (*observations[0].shape[:-1], 2 * self.velocity.action_dim)
            noise = observations[0].new_zeros(size, dtype=torch.float32)
        velocity = ConditionedVelocity(self.velocity, self.velocity.condition(*observations), torch.float32)
        x, memory = noise.to(self.solver.state_dtype(torch.float32)).chunk(2, -1)
        x, memory = self.start.from_noise(velocity, x, memory, solver=self.solver)
        return tensordict.set(self.action_key, self.solver.integrate(velocity, x, memory)[0].float())


class GaussianHead(nn.Module):
    """The action of TorchRL's stock normal policy from given noise: the mean plus the scaled noise.

    Args:
        sampler (ProbabilisticTensorDictModule): the module that draws from an ``IndependentNormal``.
    """

    def __init__(self, sampler: ProbabilisticTensorDictModule) -> None:
        super().__init__()
        self.in_keys, self.action_key = sampler.in_keys, sampler.out_keys[0]

    def forward(self, tensordict: TensorDictBase, noise: Tensor | None) -> TensorDictBase:
        """Writes the action ``[b, d]`` for standard normal noise ``[b, d]``, or the mean."""
        loc, scale = read(tensordict, *self.in_keys)
        return tensordict.set(self.action_key, loc if noise is None else loc + scale * noise)


class ExportablePolicy(nn.Module):
    """A policy as a plain module from raw observations to actions, ready for ``torch.export`` and ONNX.

    It holds a copy of every module of the policy, on the CPU: the normaliser, encoders, the actor and whatever is
    behind it. The actor draws nothing; its noise is zero, which is the deterministic policy, or an input. Inputs and
    outputs are float32, and :meth:`dummy_inputs`, :attr:`input_names` and :attr:`output_names` are in the order of
    :meth:`forward`.

    Args:
        policy (TensorDictModuleBase): a :class:`~torchrl_genpo.ReversibleFlowActor`, or a sequence of modules that
            holds one or TorchRL's stock normal policy. It reads one observation ``[b, n]`` and writes ``action``.

    Keyword Args:
        obs_dim (int, optional): the size ``n`` of the observation. Defaults to that of the policy's normaliser or, of a
            bare actor, of its velocity.
        noise_input (bool, optional): whether standard normal noise is an input, for a policy that samples: ``[b, 2 d]``
            of a flow, ``[b, d]`` of a normal policy. Defaults to ``False``.

    Raises:
        TypeError: if the policy draws its action in another way.
        ValueError: if it reads several observations, writes no ``action``, or does not tell its ``obs_dim``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.envs import ExplorationType, set_exploration_type
        >>> from torchrl_genpo import ReversibleFlowActor, VelocityMLP
        >>> from torchrl_genpo.modules import ExportablePolicy
        >>> actor = ReversibleFlowActor(VelocityMLP(in_features=4, action_dim=2, num_cells=(32, 32)))
        >>> policy = ExportablePolicy(actor)
        >>> observation = torch.randn(8, 4)
        >>> (action,) = policy(observation)
        >>> with set_exploration_type(ExplorationType.DETERMINISTIC):
        ...     td = actor(TensorDict(observation=observation, batch_size=[8]))
        >>> torch.allclose(action, td["action"], atol=1e-5)
        True
        >>> policy.input_names, policy.output_names
        (['observation'], ['action'])
    """

    def __init__(self, policy: TensorDictModuleBase, *, obs_dim: int | None = None, noise_input: bool = False) -> None:
        super().__init__()
        self.steps = nn.ModuleList(_without_draws(steps(copy.deepcopy(policy).cpu().float().eval())))
        self.requires_grad_(False)
        if len(policy.in_keys) != 1:
            raise ValueError(f"The policy reads {policy.in_keys}; only a policy of one observation can be exported.")
        if "action" not in policy.out_keys:
            raise ValueError(f"The policy must write 'action' to be exported; it writes {policy.out_keys}.")
        (self.observation_key,) = policy.in_keys
        self.noise_input = noise_input
        if obs_dim is None and self._normalizer is not None:
            obs_dim = len(self._normalizer.mean)
        elif obs_dim is None:
            obs_dim = getattr(getattr(policy, "velocity", None), "in_features", None)
        if obs_dim is None:
            raise ValueError("The policy has no normaliser that tells the size of its observation: give obs_dim.")
        self.obs_dim = obs_dim
        drawn = self._run(torch.zeros(1, obs_dim), None).get(self.head.action_key).shape[-1]
        self.noise_dim = 2 * drawn if isinstance(self.head, FlowHead) else drawn

    @property
    def _normalizer(self) -> RunningNormalizer | None:
        """The normaliser of the raw observation."""
        found = (step for step in self.steps if isinstance(step, RunningNormalizer))
        return next((step for step in found if step.in_keys == [self.observation_key]), None)

    @property
    def head(self) -> FlowHead | GaussianHead:
        """The module that makes the action of the noise."""
        return next(step for step in self.steps if isinstance(step, (FlowHead, GaussianHead)))

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The sizes of the inputs, without their batch dimension."""
        noise = {"noise": (self.noise_dim,)} if self.noise_input else {}
        return {"observation": (self.obs_dim,), **noise}

    @property
    def input_names(self) -> list[str]:
        """The arguments of :meth:`forward` that are used, in order."""
        return list(self.input_shapes)

    @property
    def output_names(self) -> list[str]:
        """What :meth:`forward` returns, in order."""
        return ["action"]

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:
        """Random inputs by name: observations that the normaliser expects, and standard normal noise."""
        inputs = {name: torch.randn(batch_size, *shape) for name, shape in self.input_shapes.items()}
        if (norm := self._normalizer) is not None:
            inputs["observation"] = (norm.mean + norm.deviation * inputs["observation"]).float()
        return inputs

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> tuple[Tensor]:
        """The action ``[b, d]``.

        Args:
            observation (Tensor): ``[b, n]``, raw.
            noise (Tensor, optional): ``[b, noise_dim]``. Defaults to zero noise.
        """
        if observation.ndim != 2 or observation.shape[-1] != self.obs_dim:
            raise ValueError(f"observation must be [b, {self.obs_dim}], got {list(observation.shape)}.")
        return (self._run(observation, noise).get("action"),)

    def _run(self, observation: Tensor, noise: Tensor | None) -> TensorDictBase:
        tensordict = TensorDict({self.observation_key: observation}, [])
        for step in self.steps:
            has_noise = isinstance(step, (FlowHead, GaussianHead))
            tensordict = step(tensordict, noise) if has_noise else step(tensordict)
        return tensordict


def _without_draws(modules: list[nn.Module]) -> list[nn.Module]:
    """The modules of a policy, with the one that draws the action replaced by its head."""
    drawing = [
        module for module in modules if isinstance(module, ProbabilisticTensorDictModule) or hasattr(module, "velocity")
    ]
    (actor,) = drawing if len(drawing) == 1 else (None,)
    head: nn.Module
    if isinstance(actor, ReversibleFlowActor):
        head = FlowHead(actor)
    elif isinstance(actor, ProbabilisticTensorDictModule) and actor.distribution_class is IndependentNormal:
        head = GaussianHead(actor)
    else:
        names = ", ".join(type(module).__name__ for module in drawing) or "none"
        raise TypeError(
            "A policy can be exported whose action is drawn by one ReversibleFlowActor or by one IndependentNormal; "
            f"the modules of this one that draw: {names}."
        )
    return [head if module is actor else module for module in modules]
