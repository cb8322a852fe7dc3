# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The options of policies, one section for each kind; those that a kind does not have are unknown to it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from torchrl_genpo.config.fields import (
    FOLLOWS,
    Activation,
    AnySizes,
    NonNegative,
    Options,
    Positive,
    Sizes,
    Text,
    chosen_by,
)

__all__ = [
    "CompressionOptions",
    "FPOActorOptions",
    "FPOLossOptions",
    "FPOOptions",
    "GaussianOptions",
    "GenPOOptions",
    "PolicyFlowActorOptions",
    "PolicyFlowLossOptions",
    "PolicyFlowOptions",
    "PolicyOptions",
    "ReversibleFlowOptions",
    "TransformerOptions",
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


class _OneNetwork:
    """Of policies whose network is an MLP without a head of its own, all of which is trained."""

    trainable: ClassVar[str] = "all"
    transformer: ClassVar[None] = None
    head_sizes: ClassVar[tuple[int, ...]] = ()


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
    activation: Activation = Field(default="silu", description="The activation between the layers.")
    encoder: Literal["mlp", "cnn", "gru", "lstm"] | None = Field(
        default=None,
        description="A network before the policy's own, which the critic shares: cnn reads pixels, gru and lstm "
        "remember; null for none.",
    )
    encoder_sizes: Sizes = Field(
        default=(128,),
        description="The widths of the encoder's layers; the last is that of its features.",
    )
    squash: bool = Field(
        default=False,
        description="Whether a tanh bounds the action to the task's bounds; without one the environment clips it.",
    )
    init: Text | None = Field(
        default=None, description="A checkpoint of genpo-pretrain or genpo-train that the policy begins with."
    )

    @property
    def is_recurrent(self) -> bool:
        """Whether the policy remembers, so that it is trained on sequences."""
        return self.encoder in ("gru", "lstm")


class _LearnedNoise(Options):
    initial_std: Positive = Field(
        default=FOLLOWS,
        description="The standard deviation of the first actions, whose range is 2 where the task bounds them; null "
        "for 0.5 of Gymnasium's tasks and 1 of others. A flow of unit scale has its own.",
    )
    min_std: NonNegative = Field(
        default=0.0, description="What every learned scale of the noise stays above; 0 for no floor."
    )

    @model_validator(mode="after")
    def _begins_above_its_floor(self) -> Any:
        if self.initial_std is not FOLLOWS and self.min_std >= self.initial_std:
            raise ValueError(f"policy.min_std={self.min_std:g} is not below policy.initial_std={self.initial_std:g}.")
        return self


GaussianScale: TypeAlias = Literal["learned", "covariance", "state_dependent"]


class GaussianOptions(_LearnedNoise, _OneNetwork, _NoActorOptions, _NoLossOptions, _Policy):
    """TorchRL's stock normal policy."""

    has_density: ClassVar[bool] = True
    time_embedding_dim: ClassVar[None] = None

    name: Literal["gaussian"] = Field(default="gaussian", description="TorchRL's stock normal policy.")
    scale: GaussianScale = Field(
        default="learned",
        description="The deviation of an action: a parameter for each of its numbers, a covariance of all of them, or "
        "a function of the state.",
    )


class _LearnedScale(_LearnedNoise):
    scale: Literal["learned", "unit"] = Field(
        default=FOLLOWS,
        description="The scale of a flow's actions: a deviation that is learned for each of their numbers, or that "
        "which unit noise gives them, as in the paper; null for learned, or unit for start=pretrained and "
        "the tasks of RoboMimic and Isaac Lab.",
    )


class _Flow(_Policy):
    time_embedding_dim: int = Field(
        default=32, ge=4, le=10**4, multiple_of=2, description="The number of sines and cosines that encode the time."
    )


class ReversibleFlowOptions(_LearnedScale, _NoActorOptions, _NoLossOptions, _Flow):
    """The flow of GenPO++ with the exact density of an action and its memory."""

    has_pair: ClassVar[bool] = True
    has_density: ClassVar[bool] = True
    solver: ClassVar[str | None] = "two_step"

    name: Literal["reversible_flow"] = Field(default="reversible_flow", description="The flow of GenPO++.")
    head_sizes: AnySizes = Field(
        default=FOLLOWS,
        description="The widths of a head that moves the noise about a mean, behind the network of hidden_sizes, which "
        "an observation then passes once; [] for a network that it passes in every step; null for [64], or [] of "
        "RoboMimic's tasks and of transformers.",
    )
    transformer: TransformerOptions | None = Field(
        default=None,
        description="A transformer in place of the MLP, whose hidden_sizes and activation are then not used.",
    )

    trainable: Literal["all", "head", "start"] = Field(
        default="all",
        description="What of policy.init is trained: all of it, all but the networks before the head of head_sizes, or "
        "the start alone, whose steering_sizes then move the noise.",
    )

    @model_validator(mode="after")
    def _has_one_head(self) -> Any:
        if self.transformer is not None and self.head_sizes:
            raise ValueError(f"policy.head_sizes={list(self.head_sizes)} has no effect on a transformer: leave it out.")
        return self


class CompressionOptions(Options):
    """What GenPO's objective adds to PPO's."""

    compression_coeff: NonNegative = Field(
        default=0.01, description="The weight of the pull of action and dummy towards each other; 0 for none."
    )


class GenPOOptions(_LearnedScale, _OneNetwork, _NoActorOptions, _Flow):
    """GenPO (arXiv 2505.18763): the exact density of an action and its dummy."""

    has_pair: ClassVar[bool] = True
    has_density: ClassVar[bool] = True
    solver: ClassVar[str | None] = "alternating_coupling"

    name: Literal["genpo"] = Field(default="genpo", description="GenPO's flow of an action and its dummy.")
    loss: CompressionOptions = Field(
        default_factory=CompressionOptions, description="The options of GenPO's objective."
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


class FPOOptions(_OneNetwork, _Flow):
    """FPO++ (arXiv 2602.02481): a ratio of flow-matching losses."""

    name: Literal["fpo"] = Field(
        default="fpo", description="FPO++'s ratio of flow-matching losses, whose own clip is loss.clip_epsilon=0.05."
    )
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


class PolicyFlowOptions(_OneNetwork, _Flow):
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
    | Annotated[FPOOptions, Tag("fpo")]
    | Annotated[PolicyFlowOptions, Tag("policyflow")],
    Discriminator(chosen_by("name", "reversible_flow")),
]
