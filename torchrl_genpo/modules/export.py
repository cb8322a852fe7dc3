# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A policy as a plain module, observation to action, for exporters that know neither TensorDict nor randomness."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from tensordict import NestedKey
from tensordict.nn import ProbabilisticTensorDictSequential
from torch import Tensor, nn
from torchrl.envs import (
    ActionScaling,
    CatFrames,
    CatTensors,
    ClipTransform,
    DoubleToFloat,
    ObservationNorm,
    RenameTransform,
    Transform,
    VecNormV2,
)
from torchrl.modules import IndependentNormal

from torchrl_genpo.flow import ConditionedVelocity, ReversibleSolver
from torchrl_genpo.modules.actor import ReversibleFlowActor

__all__ = ["ExportablePolicy", "FlowHead", "GaussianHead", "Normalizer", "ObservationPipeline"]


class Normalizer(nn.Module):
    """What a normalising transform does to observations, its statistics frozen: shift, scale, clip.

    Computes in the dtype of its statistics, as the transform does, and returns float32.

    Args:
        loc (Tensor): ``[n]``, or one for all numbers.
        scale (Tensor): likewise.

    Keyword Args:
        low (float, optional): lower clip of the result.
        high (float, optional): upper clip of the result.

    Raises:
        ValueError: if a statistic is not finite or a scale not positive.

    Examples:
        >>> Normalizer(torch.ones(2), torch.full((2,), 0.5), low=-1.0, high=1.0)(torch.tensor([1.25, 9.0]))
        tensor([0.5000, 1.0000])
    """

    def __init__(self, loc: Tensor, scale: Tensor, *, low: float | None = None, high: float | None = None) -> None:
        super().__init__()
        if not (torch.isfinite(loc).all() and torch.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError(
                "The statistics of the observation's normalisation are not finite, or a scale is not positive: was the "
                "environment ever stepped? Export from a checkpoint of a run."
            )
        self.loc: Tensor
        self.scale: Tensor
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("scale", scale.detach().clone())
        self.low, self.high = low, high

    def forward(self, observation: Tensor) -> Tensor:
        value = (observation.to(self.loc.dtype) - self.loc) / self.scale
        if self.low is not None or self.high is not None:
            value = value.clamp(self.low, self.high)
        return value.float()

    def clip(self, low: float | Tensor | None, high: float | Tensor | None) -> None:
        """Clips the result, or what is clipped already once more."""

        def clipped(value: float) -> float:
            value = value if low is None else max(value, float(low))
            return value if high is None else min(value, float(high))

        lowest, highest = (None if bound is None else float(bound) for bound in (low, high))
        self.low = lowest if self.low is None else clipped(self.low)
        self.high = highest if self.high is None else clipped(self.high)

    def extra_repr(self) -> str:
        return f"{self.loc.numel()}, low={self.low}, high={self.high}"


class ObservationPipeline(nn.Module):
    """From raw observations to what the actor reads: the deterministic part of an environment's transforms.

    Args:
        obs_dim (int): ``n``, size of one raw observation.

    Keyword Args:
        num_frames (int, optional): observations that are stacked, the oldest first. Defaults to ``1``.
        each_frame (Normalizer, optional): applied before they are stacked.
        stacked (Normalizer, optional): applied after.
        parts (sequence of NestedKey, optional): what a raw observation is put together from, by name and in order.
            Defaults to ``["observation"]``.
    """

    def __init__(
        self,
        obs_dim: int,
        *,
        num_frames: int = 1,
        each_frame: Normalizer | None = None,
        stacked: Normalizer | None = None,
        parts: Sequence[NestedKey] = ("observation",),
    ) -> None:
        super().__init__()
        self.obs_dim, self.num_frames, self.parts = obs_dim, num_frames, list(parts)
        self.each_frame, self.stacked = each_frame, stacked

    @classmethod
    def from_transforms(
        cls, transforms: Sequence[Transform], size: int, key: NestedKey = "observation"
    ) -> ObservationPipeline:
        """Reads the transforms that an observation went through, back to where it was put together.

        Known are ``VecNormV2``, ``ObservationNorm`` and ``ClipTransform`` behind one of them; one that stacks frames,
        which is ``CatFrames`` or says so by an attribute ``num_frames``; and those that leave values alone or are of
        the training only, as an attribute ``training_only`` says. ``CatTensors`` ends the search: what it makes is the
        raw observation. The result copies the statistics.

        Args:
            transforms (sequence of Transform): such as ``env.transform``.
            size (int): of the observation after them all, which the actor reads.
            key (NestedKey, optional): of that observation. Defaults to ``"observation"``.

        Raises:
            ValueError: for a transform that it cannot export.

        Examples:
            >>> from torchrl_genpo.envs import make_env
            >>> env = make_env("pendulum", num_envs=2, seed=0)
            >>> rollout = env.rollout(20)
            >>> ObservationPipeline.from_transforms(env.transform, 4)
            ObservationPipeline(
              obs_dim=4, num_frames=1
              (stacked): Normalizer(4, low=-10.0, high=10.0)
            )
        """
        chain, parts = _trace(transforms, key)
        normalizers: list[Normalizer | None] = [None]  # of each frame, and then of what is stacked
        num_frames = 1
        for transform, in_key in chain:
            frames = getattr(transform, "N" if isinstance(transform, CatFrames) else "num_frames", None)
            if frames is not None and len(normalizers) == 1 and getattr(transform, "padding", "same") == "same":
                num_frames = frames
                normalizers.append(None)
            elif isinstance(transform, (VecNormV2, ObservationNorm)) and normalizers[-1] is None:
                normalizers[-1] = Normalizer(*_statistics(transform, in_key))
            elif isinstance(transform, ClipTransform) and (normalizer := normalizers[-1]) is not None:
                normalizer.clip(transform.low, transform.high)
            else:
                raise _cannot_export(transform, key)
        each_frame = normalizers[0] if len(normalizers) > 1 else None
        return cls(
            size // num_frames, num_frames=num_frames, each_frame=each_frame, stacked=normalizers[-1], parts=parts
        )

    @property
    def out_features(self) -> int:
        """Size of what the actor reads."""
        return self.obs_dim * self.num_frames

    def draw_frames(self, batch_size: int) -> Tensor:
        """Random raw observations ``[b, num_frames, n]`` with the mean and scale of the statistics."""
        frames = torch.randn(batch_size, self.num_frames, self.obs_dim)
        normalizer = self.stacked or self.each_frame
        if normalizer is None:
            return frames
        size = self.obs_dim if self.stacked is None else self.out_features
        loc, scale = (value.expand(size).view(-1, self.obs_dim) for value in (normalizer.loc, normalizer.scale))
        return (loc + scale * frames).float()

    def forward(self, observation: Tensor, history: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What the actor reads and the next history.

        Args:
            observation (Tensor): ``[b, n]``, raw.
            history (Tensor, optional): ``[b, num_frames - 1, n]``, the raw observations before, the oldest first; at
                the start of an episode the first observation, repeated.
        """
        frames = observation.unsqueeze(-2) if history is None else torch.cat([history, observation.unsqueeze(-2)], -2)
        value = (frames if self.each_frame is None else self.each_frame(frames)).flatten(-2)
        return (
            value if self.stacked is None else self.stacked(value),
            None if history is None else frames[..., 1:, :],
        )

    def extra_repr(self) -> str:
        return f"obs_dim={self.obs_dim}, num_frames={self.num_frames}"


def _trace(
    transforms: Sequence[Transform], key: NestedKey
) -> tuple[list[tuple[Transform, NestedKey]], list[NestedKey]]:
    """The transforms that shape ``key``, first to last, each with what it reads; and what it was put together from."""
    chain: list[tuple[Transform, NestedKey]] = []
    parts, is_whole = [key], True
    for transform in reversed(list(transforms)):
        if not any(part in transform.out_keys for part in parts):
            continue
        if isinstance(transform, CatTensors) and len(transform.in_keys) > 1 and is_whole:
            parts, is_whole = list(transform.in_keys), False
            continue
        keeps = isinstance(transform, (DoubleToFloat, RenameTransform)) or getattr(transform, "training_only", False)
        keeps |= isinstance(transform, CatTensors) and len(transform.in_keys) == 1
        if not keeps and not is_whole:
            raise _cannot_export(transform, key)
        sources = dict(zip(transform.out_keys, transform.in_keys, strict=True))
        parts = [sources.get(part, part) for part in parts]
        if not keeps:
            chain.insert(0, (transform, parts[0]))
    return chain, parts


def _cannot_export(transform: Transform, key: NestedKey) -> ValueError:
    return ValueError(
        f"{type(transform).__name__} before {key!r} cannot be exported. Known are VecNormV2, ObservationNorm, "
        "ClipTransform after them, CatFrames with padding='same', and CatTensors before them all."
    )


def _statistics(transform: VecNormV2 | ObservationNorm, key: NestedKey) -> tuple[Tensor, Tensor]:
    """Location and scale ``[n]`` of a normalising transform, of every environment the same."""
    if isinstance(transform, VecNormV2):
        # of what never changes the variance may round to less than nothing, as the environment's transform knows
        return transform.loc[key], transform.scale[key].nan_to_num(nan=transform.eps)
    if transform.standard_normal:
        return transform.loc, transform.scale
    return -transform.loc / transform.scale, 1 / transform.scale  # x scale + loc


class FlowHead(nn.Module):
    """The action of a :class:`~torchrl_genpo.ReversibleFlowActor`: its start and its solver's M steps, without a draw.

    Args:
        actor (ReversibleFlowActor): copied, so that the export outlives further training.
    """

    def __init__(self, actor: ReversibleFlowActor) -> None:
        super().__init__()
        actor = copy.deepcopy(actor).cpu().float().eval()
        self.velocity, self.start, self.solver = actor.velocity, actor.start, actor.solver
        if isinstance(self.solver, ReversibleSolver):
            self.solver.gradient = "stored"  # no gradient is taken, and "reversible" would hide the steps from a tracer
        self.noise_dim = actor.velocity.action_dim * (1 + self.solver.num_memories)

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Action ``[b, d]``, from zero noise or from the given standard normal: of the state, then of its memory."""
        if noise is None:
            noise = observation.new_zeros(*observation.shape[:-1], self.noise_dim)
        velocity = ConditionedVelocity(self.velocity, self.velocity.condition(observation), observation.dtype)
        noise = noise.to(self.solver.state_dtype(observation.dtype))
        x, memory = noise.tensor_split([self.velocity.action_dim], -1)
        x, memory = self.start.from_noise(velocity, x, memory, solver=self.solver)
        return self.solver.integrate(velocity, x, memory)[0].to(observation.dtype)


class GaussianHead(nn.Module):
    """The action of a stock Gaussian actor (``torchrl_genpo.models.gaussian_actor``): mean plus scaled noise.

    Args:
        actor (ProbabilisticActor): one network from the observation to ``loc`` and ``scale``, then an
            ``IndependentNormal``; copied.
    """

    def __init__(self, actor: ProbabilisticTensorDictSequential) -> None:
        super().__init__()
        self.net = copy.deepcopy(actor[0].module).cpu().float().eval()
        self.noise_dim = self.net[-1].state_independent_scale.shape[-1]

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Action ``[b, d]``, from the given standard normal noise ``[b, d]`` or the mean."""
        loc, scale = self.net(observation)
        return loc if noise is None else loc + scale * noise


class ExportablePolicy(nn.Module):
    """A policy as a plain module, from raw observations to actions: normaliser, history, start and solver inside.

    Everything that an exporter asks for comes with it (``torch.export``, ONNX): :meth:`dummy_inputs`,
    :attr:`input_names` and :attr:`output_names`, in the order of :meth:`forward`. Inputs and outputs are float32. State
    is passed from call to call, not hidden: ``history`` in, ``next_history`` out.

    The action is what the environment is given, of any size; bounds belong to whoever executes it, as in training.

    Args:
        actor (TensorDictModule): a :class:`~torchrl_genpo.ReversibleFlowActor` or a stock Gaussian actor.
        pipeline (ObservationPipeline): what comes before it.

    Keyword Args:
        noise_input (bool, optional): take standard normal ``noise`` as an input, for a policy that samples. Defaults
            to ``False``: zero noise, the deterministic policy.
        action_scaling (ActionScaling, optional): what the environment does to actions before it executes them.

    Raises:
        TypeError: for another kind of actor.
        ValueError: if the actor reads several observations.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.envs import ExplorationType, set_exploration_type
        >>> from torchrl_genpo import ReversibleFlowActor, VelocityMLP
        >>> from torchrl_genpo.modules.export import ExportablePolicy, ObservationPipeline
        >>> actor = ReversibleFlowActor(VelocityMLP(obs_dim=4, action_dim=2, hidden_sizes=(32, 32)))
        >>> policy = ExportablePolicy(actor, ObservationPipeline(obs_dim=4))
        >>> observation = torch.randn(8, 4)
        >>> (action,) = policy(observation)
        >>> with set_exploration_type(ExplorationType.DETERMINISTIC):
        ...     td = actor(TensorDict(observation=observation, batch_size=[8]))
        >>> torch.allclose(action, td["action"], atol=1e-5)
        True
        >>> policy.input_names, policy.output_names
        (['observation'], ['action'])
    """

    def __init__(
        self,
        actor: nn.Module,
        pipeline: ObservationPipeline,
        *,
        noise_input: bool = False,
        action_scaling: ActionScaling | None = None,
    ) -> None:
        super().__init__()
        self.head: FlowHead | GaussianHead
        if isinstance(actor, ReversibleFlowActor):
            self.head = FlowHead(actor)
        elif isinstance(actor, ProbabilisticTensorDictSequential) and (
            len(actor) == 2 and actor[-1].distribution_class is IndependentNormal
        ):
            self.head = GaussianHead(actor)
        else:
            raise TypeError(f"Can export a ReversibleFlowActor or models.gaussian_actor, not {type(actor).__name__}.")
        if len(actor.in_keys) != 1:
            raise ValueError(f"The actor reads {actor.in_keys}; only policies of one observation can be exported.")
        self.pipeline = copy.deepcopy(pipeline).cpu()
        self.noise_input = noise_input
        self.has_scaled_actions = action_scaling is not None
        if action_scaling is not None:
            # scale and location of the affine map, whatever its convention
            location = action_scaling.denormalize(torch.zeros_like(action_scaling.loc))
            scale = action_scaling.denormalize(torch.ones_like(action_scaling.loc)) - location
            self.register_buffer("action_location", location.detach().cpu().clone())
            self.register_buffer("action_scale", scale.detach().cpu().clone())
        self.requires_grad_(False)

    @property
    def input_names(self) -> list[str]:
        """Of :meth:`forward`, in order: ``observation``, and ``history`` and ``noise`` where there are any."""
        names = {"history": self.pipeline.num_frames > 1, "noise": self.noise_input}
        return ["observation", *(name for name, is_used in names.items() if is_used)]

    @property
    def output_names(self) -> list[str]:
        """``action``, and ``next_history`` where there is a history."""
        return ["action", "next_history"] if self.pipeline.num_frames > 1 else ["action"]

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Sizes of the inputs, without their batch dimension."""
        shapes = {
            "observation": (self.pipeline.obs_dim,),
            "history": (self.pipeline.num_frames - 1, self.pipeline.obs_dim),
            "noise": (self.head.noise_dim,),
        }
        return {name: shapes[name] for name in self.input_names}

    def dummy_inputs(self, batch_size: int = 2) -> dict[str, Tensor]:
        """Random inputs by name: observations as the statistics expect them, standard normal noise."""
        frames = self.pipeline.draw_frames(batch_size)
        inputs = {"observation": frames[:, -1], "history": frames[:, :-1]}
        inputs["noise"] = torch.randn(batch_size, self.head.noise_dim)
        # contiguous, as those of a user: torch.export makes a guard of other strides
        return {name: inputs[name].contiguous() for name in self.input_names}

    def forward(self, observation: Tensor, history: Tensor | None = None, noise: Tensor | None = None) -> tuple:
        """Action and, where there is a history, the next one.

        Args:
            observation (Tensor): ``[b, n]``, raw.
            history (Tensor, optional): ``[b, num_frames - 1, n]``, see :class:`ObservationPipeline`.
            noise (Tensor, optional): ``[b, noise_dim]``.
        """
        if observation.ndim != 2:
            raise ValueError(f"observation must be [b, {self.pipeline.obs_dim}], got {list(observation.shape)}.")
        value, next_history = self.pipeline(observation, history)
        action = self.head(value, noise)
        if self.has_scaled_actions:
            action = action * self.action_scale + self.action_location
        return (action,) if next_history is None else (action, next_history)
