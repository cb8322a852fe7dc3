# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The options of the parts that are chosen by name: solver, start, collector and logger."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, field_validator

from torchrl_genpo.config.fields import (
    AnySizes,
    Options,
    Positive,
    Text,
    chosen_by,
)

__all__ = [
    "AlternatingCouplingOptions",
    "CSVOptions",
    "CollectorOptions",
    "ConsistentStartOptions",
    "IndependentStartOptions",
    "LoggerOptions",
    "MultiAsyncOptions",
    "MultiSyncOptions",
    "SolverOptions",
    "StartOptions",
    "SyncOptions",
    "TensorBoardOptions",
    "TwoStepOptions",
    "WandbOptions",
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


SolverOptions: TypeAlias = Annotated[
    Annotated[TwoStepOptions, Tag("two_step")] | Annotated[AlternatingCouplingOptions, Tag("alternating_coupling")],
    Discriminator(chosen_by("name", "two_step")),
]


class _Start(Options):
    name: str
    steering_sizes: AnySizes = Field(
        default=(),
        description="The widths of a network that moves and scales the noise by the observation, for "
        "policy.trainable=start; [] for none.",
    )


class IndependentStartOptions(_Start):
    """Independent normal noise and memory."""

    tau: ClassVar[None] = None
    learn_tau: ClassVar[bool] = False

    name: Literal["independent"] = Field(default="independent", description="Independent normal noise and memory.")


class ConsistentStartOptions(_Start):
    """A memory where the flow would have been one step earlier, up to noise."""

    name: Literal["consistent"] = Field(
        default="consistent", description="A memory where the flow would have been one step earlier, up to noise."
    )
    tau: Positive = Field(
        default=0.3, description="The size of the memory's own noise, without which it has no density."
    )
    learn_tau: bool = Field(
        default=False, description="Whether tau is learned, one for each number of an action; it begins at start.tau."
    )


StartOptions: TypeAlias = Annotated[
    Annotated[IndependentStartOptions, Tag("independent")] | Annotated[ConsistentStartOptions, Tag("consistent")],
    Discriminator(chosen_by("name", "independent")),
]


class _Collector(Options):
    kind: str
    total_frames: int = Field(
        default=500_000,
        ge=1,
        le=10**12,
        description="The frames of the whole run, rounded up to whole batches.",
    )
    frames_per_batch: int = Field(
        default=2048, ge=1, le=10**8, description="The frames between two updates, a multiple of env.num_envs."
    )


class SyncOptions(_Collector):
    """Collection in this process."""

    num_workers: ClassVar[int] = 1

    kind: Literal["sync"] = Field(
        default="sync", description="Collection in this process, which resumes to the last bit where the simulator can."
    )


class _Workers(_Collector):
    num_workers: int = Field(
        default=2, ge=1, le=4096, description="The number of workers, each with a part of env.num_envs."
    )


class MultiSyncOptions(_Workers):
    """Processes of this machine that wait for the update."""

    kind: Literal["multi_sync"] = Field(
        default="multi_sync", description="Processes of this machine that wait for the update."
    )


class MultiAsyncOptions(_Workers):
    """Processes of this machine that do not wait for the update."""

    kind: Literal["multi_async"] = Field(
        default="multi_async", description="Processes of this machine that do not wait for the update."
    )
    max_staleness: int = Field(
        default=2, ge=0, le=10**6, description="Rollouts with a step that is older than so many updates are dropped."
    )


CollectorOptions: TypeAlias = Annotated[
    Annotated[SyncOptions, Tag("sync")]
    | Annotated[MultiSyncOptions, Tag("multi_sync")]
    | Annotated[MultiAsyncOptions, Tag("multi_async")],
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
