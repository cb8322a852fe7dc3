# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The options of the parts that are chosen by name: solver, start, policy, collector and logger."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from torchrl_genpo.config.fields import (
    FOLLOWS,
    Activation,
    NonNegative,
    Options,
    Positive,
    Sizes,
    Text,
    chosen_by,
)

__all__ = [
    "AlternatingCouplingOptions",
    "CollectorOptions",
    "ConsistentStartOptions",
    "FPOLossOptions",
    "FPOOptions",
    "GaussianOptions",
    "GenPOJacobianOptions",
    "GenPOOptions",
    "IndependentStartOptions",
    "LoggerOptions",
    "MultiAsyncOptions",
    "MultiSyncOptions",
    "PolicyFlowLossOptions",
    "PolicyFlowOptions",
    "PolicyOptions",
    "RPCOptions",
    "RayOptions",
    "ReversibleFlowOptions",
    "SelfAdjointCouplingOptions",
    "SelfAdjointFlowOptions",
    "SolverOptions",
    "StartOptions",
    "SyncOptions",
    "TransformerOptions",
    "TwoStepOptions",
]


class _Solver(Options):
    name: str
    num_steps: int = Field(default=5, ge=1, le=10**6, description="The number of steps from noise to action.")


class TwoStepOptions(_Solver):
    """The paper's rule."""

    name: Literal["two_step"] = Field(default="two_step", description="The paper's two-step rule.")
    sigma: float = Field(
        default=0.75, gt=-1, le=1, description="The weight of the memory in a step; 0 could not be inverted."
    )
    gradient: Literal["stored", "reversible"] = Field(
        default="stored", description="`reversible` recomputes the states, so that memory does not grow with num_steps."
    )

    @field_validator("sigma")
    @classmethod
    def _can_be_inverted(cls, sigma: float) -> float:
        if sigma == 0:
            raise ValueError("sigma must not be 0, or a step cannot be inverted; the paper uses 0.75")
        return sigma


class AlternatingCouplingOptions(_Solver):
    """GenPO's rule: an action and its dummy move each other, then mix; two evaluations a step."""

    name: Literal["alternating_coupling"] = Field(
        default="alternating_coupling", description="GenPO's rule, with two velocity evaluations a step."
    )
    mixing: float = Field(default=0.95, gt=0, le=1, description="How much of itself a register keeps; 1 mixes nothing.")


class SelfAdjointCouplingOptions(_Solver):
    """The palindromic relative of GenPO's rule, of second order, with ``2 num_steps + 1`` evaluations."""

    name: Literal["self_adjoint_coupling"] = Field(
        default="self_adjoint_coupling", description="A palindromic rule of second order."
    )


SolverOptions: TypeAlias = Annotated[
    Annotated[TwoStepOptions, Tag("two_step")]
    | Annotated[AlternatingCouplingOptions, Tag("alternating_coupling")]
    | Annotated[SelfAdjointCouplingOptions, Tag("self_adjoint_coupling")],
    Discriminator(chosen_by("name", "two_step")),
]

Scale: TypeAlias = Literal["unit", "learned", "state_dependent"]


class _Start(Options):
    name: str
    scale: Scale = Field(default="unit", description="The scale of the noise: 1, learned, or a function of the state.")
    initial_scale: Positive = Field(default=1.0, description="What a scale that is learned is at first.")

    @model_validator(mode="after")
    def _uses_its_initial_scale(self) -> Any:
        if self.scale == "unit" and self.initial_scale != 1:
            raise ValueError(
                f"start.initial_scale={self.initial_scale:g} has no effect with start.scale=unit: leave it out, or use "
                "start=learned_scale."
            )
        return self


class IndependentStartOptions(_Start):
    """Independent normal noise and memory."""

    tau: ClassVar[None] = None
    learn_tau: ClassVar[None] = None

    name: Literal["independent"] = Field(default="independent", description="Independent normal noise and memory.")


class ConsistentStartOptions(_Start):
    """A memory where the flow would have been one step earlier, up to noise."""

    name: Literal["consistent"] = Field(
        default="consistent", description="A memory where the flow would have been one step earlier, up to noise."
    )
    tau: Positive = Field(
        default=0.3, description="The size of the memory's own noise, without which it has no density."
    )
    learn_tau: Literal["shared", "per_dimension"] | None = Field(
        default=None,
        description="Whether tau is learned: one for all numbers of an action, one for each, or not at all.",
    )
    scale: Scale = Field(default="learned", description="The scale of x_0: 1, learned, or a function of the state.")


StartOptions: TypeAlias = Annotated[
    Annotated[IndependentStartOptions, Tag("independent")] | Annotated[ConsistentStartOptions, Tag("consistent")],
    Discriminator(chosen_by("name", "independent")),
]


class TransformerOptions(Options):
    """A transformer as the velocity of a flow, with one token an action of a chunk."""

    chunk_size: int = Field(
        default=FOLLOWS,
        ge=1,
        le=10**4,
        description="The number of actions in a chunk; null takes env.options.chunk_size, or 1.",
    )
    width: int = Field(default=128, ge=1, le=10**5, description="The size of a token; a multiple of num_heads.")
    num_layers: int = Field(default=3, ge=1, le=1000, description="The number of encoder layers.")
    num_heads: int = Field(default=4, ge=1, le=10**4, description="The number of attention heads.")

    @model_validator(mode="after")
    def _divides_its_width(self) -> Any:
        if self.width % self.num_heads:
            raise ValueError(
                f"policy.transformer.width={self.width} must be a multiple of "
                f"policy.transformer.num_heads={self.num_heads}."
            )
        return self


class _NoTransformer:
    transformer: ClassVar[None] = None


class _NoActorOptions:
    options: ClassVar[None] = None


class _NoLossOptions:
    loss: ClassVar[None] = None


class _Policy(Options):
    has_pair: ClassVar[bool] = False
    has_density: ClassVar[bool] = False
    solver: ClassVar[str | None] = None
    """The name of the one solver that the policy takes."""

    name: str
    hidden_sizes: Sizes = Field(default=(64, 64), description="The widths of the layers of the network.")
    activation: Activation = Field(default="mish", description="The activation between the layers.")
    init: Text | None = Field(default=None, description="A checkpoint of genpo-pretrain that the policy begins with.")


class GaussianOptions(_NoTransformer, _NoActorOptions, _NoLossOptions, _Policy):
    """TorchRL's stock normal policy with a scale that does not depend on the state."""

    has_density: ClassVar[bool] = True
    time_embedding_dim: ClassVar[None] = None

    name: Literal["gaussian"] = Field(default="gaussian", description="TorchRL's stock normal policy.")
    activation: Activation = Field(default="tanh", description="The activation between the layers.")


class _Flow(_Policy):
    time_embedding_dim: int = Field(
        default=32, ge=4, le=10**4, multiple_of=2, description="The number of sines and cosines that encode the time."
    )


class ReversibleFlowOptions(_NoActorOptions, _NoLossOptions, _Flow):
    """The flow of GenPO++ with the exact density of an action and its memory."""

    has_pair: ClassVar[bool] = True
    has_density: ClassVar[bool] = True
    solver: ClassVar[str | None] = "two_step"

    name: Literal["reversible_flow"] = Field(default="reversible_flow", description="The flow of GenPO++.")
    transformer: TransformerOptions | None = Field(
        default=None,
        description="A transformer in place of the MLP, whose hidden_sizes and activation are then not used.",
    )


class CompressionOptions(Options):
    """What GenPO's objective adds to PPO's."""

    compression_coeff: NonNegative = Field(
        default=0.01, description="The weight of the pull of action and dummy towards each other; 0 for none."
    )


class _DummyFlow(_NoTransformer, _NoActorOptions, _Flow):
    has_pair: ClassVar[bool] = True
    has_density: ClassVar[bool] = True
    solver: ClassVar[str | None] = "alternating_coupling"

    loss: CompressionOptions = Field(
        default_factory=CompressionOptions, description="The options of GenPO's objective."
    )


class GenPOOptions(_DummyFlow):
    """GenPO (arXiv 2505.18763): the exact density of an action and its dummy."""

    name: Literal["genpo"] = Field(default="genpo", description="GenPO's flow of an action and its dummy.")


class GenPOJacobianOptions(_DummyFlow):
    """GenPO with its determinant by automatic differentiation, as its published code computes it."""

    name: Literal["genpo_jacobian"] = Field(
        default="genpo_jacobian", description="GenPO with an autograd determinant, for timing."
    )


class SelfAdjointLossOptions(CompressionOptions):
    """What the self-adjoint flow's objective adds to PPO's."""

    compression_coeff: NonNegative = Field(
        default=0.0, description="The weight of the pull of action and dummy towards each other; 0 for none."
    )


class SelfAdjointFlowOptions(_NoTransformer, _NoActorOptions, _Flow):
    """The doubled action of GenPO, moved by a palindromic rule of second order."""

    has_pair: ClassVar[bool] = True
    has_density: ClassVar[bool] = True
    solver: ClassVar[str | None] = "self_adjoint_coupling"

    name: Literal["self_adjoint_flow"] = Field(
        default="self_adjoint_flow", description="GenPO's doubled action with a palindromic rule."
    )
    loss: SelfAdjointLossOptions = Field(
        default_factory=SelfAdjointLossOptions, description="The options of its objective."
    )


class FPOActorOptions(Options):
    """How FPO++ samples."""

    num_steps: int = Field(
        default=10, ge=1, le=10**4, description="The number of steps of Euler's rule; FPO++ uses up to 64."
    )
    perturbation: NonNegative = Field(
        default=0.02, description="The standard deviation of the noise that is added to an action that explores."
    )


class FPOLossOptions(Options):
    """The objective of FPO++."""

    num_samples: int = Field(
        default=8, ge=1, le=10**5, description="Samples of noise and time for each action; FPO++ uses 16 to 32."
    )
    error_scale: Literal["sqrt", "mean", "sum"] = Field(
        default="sqrt",
        description="What the squared errors of an action become: their sum (as published), their mean, or their sum "
        "over the root of their number (as released).",
    )
    max_error: Positive = Field(default=20.0, description="The bound on each flow-matching loss, against outliers.")
    max_log_ratio: Positive = Field(default=10.0, description="The bound on each log ratio.")


class FPOOptions(_NoTransformer, _Flow):
    """FPO++ (arXiv 2602.02481): a ratio of flow-matching losses."""

    name: Literal["fpo"] = Field(default="fpo", description="FPO++'s ratio of flow-matching losses.")
    options: FPOActorOptions = Field(default_factory=FPOActorOptions, description="How FPO++ samples.")
    loss: FPOLossOptions = Field(default_factory=FPOLossOptions, description="FPO++'s objective.")


class PolicyFlowActorOptions(Options):
    """How PolicyFlow samples."""

    num_steps: int = Field(
        default=10, ge=1, le=10**4, description="The number of steps of the midpoint rule, of two evaluations each."
    )
    initial_scale: Positive = Field(default=1.0, description="The scale of the normal residual at first.")


class PolicyFlowLossOptions(Options):
    """The objective of PolicyFlow."""

    brownian_coeff: NonNegative = Field(default=0.0025, description="The weight of the Brownian regulariser.")


class PolicyFlowOptions(_NoTransformer, _Flow):
    """PolicyFlow (arXiv 2602.01156): a ratio from the change of the velocity along a straight path."""

    name: Literal["policyflow"] = Field(default="policyflow", description="PolicyFlow's ratio along a straight path.")
    options: PolicyFlowActorOptions = Field(
        default_factory=PolicyFlowActorOptions, description="How PolicyFlow samples."
    )
    loss: PolicyFlowLossOptions = Field(default_factory=PolicyFlowLossOptions, description="PolicyFlow's objective.")


PolicyOptions: TypeAlias = Annotated[
    Annotated[ReversibleFlowOptions, Tag("reversible_flow")]
    | Annotated[GaussianOptions, Tag("gaussian")]
    | Annotated[GenPOOptions, Tag("genpo")]
    | Annotated[GenPOJacobianOptions, Tag("genpo_jacobian")]
    | Annotated[SelfAdjointFlowOptions, Tag("self_adjoint_flow")]
    | Annotated[FPOOptions, Tag("fpo")]
    | Annotated[PolicyFlowOptions, Tag("policyflow")],
    Discriminator(chosen_by("name", "reversible_flow")),
]


class _Waits:
    """Of collectors whose workers wait for the update, so that data is never older than the policy."""

    synchronous: ClassVar[bool] = True
    max_staleness: ClassVar[int] = 0


class _Collector(Options):
    kind: str
    total_frames: int = Field(
        default=500_000,
        ge=1,
        le=10**12,
        description="The frames of the whole run, rounded up to whole batches; null for frames_per_batch * iterations.",
    )
    iterations: int = Field(
        default=FOLLOWS, ge=1, le=10**9, description="The number of batches of the run, where total_frames is null."
    )
    frames_per_batch: int = Field(
        default=2048,
        ge=1,
        le=10**9,
        description="The frames of an update, a multiple of env.num_envs; null for env.num_envs * steps_per_env.",
    )
    steps_per_env: int = Field(
        default=FOLLOWS,
        ge=1,
        le=10**6,
        description="The steps of each environment between two updates, where frames_per_batch is null.",
    )


class SyncOptions(_Waits, _Collector):
    """Collection in this process."""

    num_workers: ClassVar[int] = 1

    kind: Literal["sync"] = Field(
        default="sync", description="Collection in this process, which resumes to the last bit where the simulator can."
    )


class _Workers(_Collector):
    num_workers: int = Field(
        default=2, ge=1, le=4096, description="The number of workers, each with a part of env.num_envs."
    )


class MultiSyncOptions(_Waits, _Workers):
    """Processes of this machine that wait for the update."""

    kind: Literal["multi_sync"] = Field(
        default="multi_sync", description="Processes of this machine that wait for the update."
    )


class MultiAsyncOptions(_Workers):
    """Processes of this machine that do not wait for the update."""

    synchronous: ClassVar[bool] = False

    kind: Literal["multi_async"] = Field(
        default="multi_async", description="Processes of this machine that do not wait for the update."
    )
    max_staleness: int = Field(
        default=2, ge=0, le=10**6, description="Rollouts with a step that is older than so many updates are dropped."
    )


class RayOptions(_Workers):
    """Actors of a Ray cluster."""

    kind: Literal["ray"] = Field(default="ray", description="Actors of a Ray cluster.")
    address: Text | None = Field(
        default=None, description="The address of the cluster, or auto; null starts one on this machine."
    )
    cpus_per_worker: float = Field(default=1.0, ge=0, le=4096, description="The processors that a worker asks for.")
    synchronous: bool = Field(
        default=True, description="Whether workers wait for the update; false collects as multi_async does."
    )
    max_staleness: int = Field(default=2, ge=0, le=10**6, description="As of multi_async, where synchronous is false.")


class RPCOptions(_Waits, _Workers):
    """``torch.distributed.rpc``: processes of this machine or Slurm jobs, which wait for the update."""

    kind: Literal["rpc"] = Field(
        default="rpc", description="Processes of this machine or Slurm jobs, by PyTorch's RPC."
    )
    launcher: Literal["mp", "submitit"] = Field(
        default="mp", description="Who starts the workers: this machine, or Slurm through submitit."
    )
    slurm: dict[str, Any] = Field(
        default_factory=dict, description="The options of submitit, such as slurm_partition and timeout_min."
    )
    port: int | None = Field(default=None, ge=1, le=65535, description="The port of the first worker; null for any.")


CollectorOptions: TypeAlias = Annotated[
    Annotated[SyncOptions, Tag("sync")]
    | Annotated[MultiSyncOptions, Tag("multi_sync")]
    | Annotated[MultiAsyncOptions, Tag("multi_async")]
    | Annotated[RayOptions, Tag("ray")]
    | Annotated[RPCOptions, Tag("rpc")],
    Discriminator(chosen_by("kind", "sync")),
]


class _NoProject:
    project: ClassVar[None] = None
    mode: ClassVar[None] = None


class CSVOptions(_NoProject, Options):
    """The ``metrics.csv`` alone, which every run writes."""

    backend: Literal["csv"] = Field(default="csv", description="The metrics.csv alone, which every run writes.")


class TensorBoardOptions(_NoProject, Options):
    """Files for TensorBoard, beside the ``metrics.csv``."""

    backend: Literal["tensorboard"] = Field(default="tensorboard", description="Files for TensorBoard as well.")


class WandbOptions(Options):
    """A run of Weights & Biases, beside the ``metrics.csv``."""

    backend: Literal["wandb"] = Field(default="wandb", description="A run of Weights & Biases as well.")
    project: Text = Field(default="torchrl_genpo", description="The project of the run.")
    mode: Literal["offline", "online", "disabled"] = Field(
        default="offline", description="Whether the run is sent at once, kept on this machine, or not written."
    )


LoggerOptions: TypeAlias = Annotated[
    Annotated[CSVOptions, Tag("csv")]
    | Annotated[TensorBoardOptions, Tag("tensorboard")]
    | Annotated[WandbOptions, Tag("wandb")],
    Discriminator(chosen_by("backend", "csv")),
]
