# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The sections of options that every task and policy has: objective, optimizer, evaluation, checkpoints and others."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from torchrl_genpo.config.fields import (
    Activation,
    Fraction,
    Large,
    NonNegative,
    Options,
    Positive,
    Sizes,
    Text,
)

__all__ = [
    "AnchorOptions",
    "CheckpointOptions",
    "CompileOptions",
    "CriticOptions",
    "DiagnosticsOptions",
    "EvalOptions",
    "LossOptions",
    "OptimOptions",
    "PretrainEvalOptions",
    "PretrainSection",
    "ToleranceOptions",
]


class CriticOptions(Options):
    """The value network."""

    hidden_sizes: Sizes = Field(default=(64, 64), description="The widths of the layers of the value network.")
    activation: Activation = Field(default="tanh", description="The activation between the layers.")


class LossOptions(Options):
    """The objective of PPO."""

    gamma: Fraction = Field(default=0.99, description="The discount of a step.")
    gae_lambda: Fraction = Field(default=0.95, description="How far generalised advantage estimation looks ahead.")
    clip_epsilon: float = Field(
        default=0.2, gt=0, le=1e3, description="By how much the likelihood ratio may differ from 1."
    )
    clip_value: bool | None = Field(default=None, description="Whether the value is clipped by clip_epsilon, too.")
    critic_coeff: NonNegative = Field(default=0.5, description="The weight of the value network's loss.")
    entropy_coeff: NonNegative = Field(
        default=0.0, description="The weight of the entropy, which needs noise whose width is learned."
    )
    reference_coeff: NonNegative = Field(
        default=0.0, description="The weight of the KL divergence from the flow that policy.init holds; 0 for none."
    )
    reference_target: Positive | None = Field(
        default=None, description="The divergence that reference_coeff is adapted to after each update; null for none."
    )
    normalize_advantage: bool = Field(
        default=True, description="Whether the advantages of a mini-batch are standardised."
    )
    proximal_decay: Fraction | None = Field(
        default=None,
        description="The decay of an average of past policies that PPO-EWMA clips about, where data is older than the "
        "policy (0.9); null for none.",
    )
    epochs: int = Field(default=10, ge=1, le=10**6, description="The passes over a batch.")
    mini_batch_size: int = Field(default=512, ge=1, le=10**9, description="The frames of an optimizer step.")


class OptimOptions(Options):
    """The optimizer and its learning rate."""

    lr: Positive = Field(default=3e-4, description="The learning rate at first.")
    schedule: Literal["kl_adaptive", "linear", "constant"] = Field(
        default="kl_adaptive", description="What the rate follows: the KL divergence, a line to 0, or nothing."
    )
    target_kl: Positive = Field(
        default=0.03, description="The KL divergence after an update; of the pair, which overstates that of the action."
    )
    min_lr: Positive = Field(default=1e-5, description="The lowest rate of schedule=kl_adaptive.")
    max_lr: Positive = Field(default=3e-3, description="The highest rate of schedule=kl_adaptive.")
    max_grad_norm: Positive = Field(default=0.5, description="The norm that gradients are clipped to.")
    noise_lr: Positive | None = Field(
        default=None,
        description="The rate at first of the noise's parameters (the deviation of actions, a start's tau); "
        "null for lr.",
    )
    head_lr: Positive | None = Field(
        default=None,
        description="The rate at first of the head that bends a flow's noise. It reads that noise, and by the rate of "
        "the rest would fit what its batch has of it; null for a third of lr.",
    )
    critic_lr: Positive | None = Field(default=None, description="A constant rate of the critic's own; null for lr.")
    critic_warmup: int = Field(default=0, ge=0, le=10**12, description="The frames in which the critic alone learns.")

    @property
    def head_rate(self) -> float:
        """The rate at first of the head that bends a flow's noise."""
        return self.lr / 3 if self.head_lr is None else self.head_lr


class DiagnosticsOptions(Options):
    """Measurements of flows beside the training: KL and clip fraction of pair and of action, effective sample size."""

    samples: int = Field(default=0, ge=0, le=10**9, description="The samples of every batch to measure; 0 for none.")
    num_memories: int = Field(default=64, ge=1, le=10**5, description="The memories that an action's density takes.")


class PretrainEvalOptions(Options):
    """The evaluation after pre-training."""

    num_envs: int = Field(default=20, ge=1, le=2**17, description="The episodes at a time.")
    rounds: int = Field(
        default=5, ge=0, le=10**6, description="How often, with zero noise and with random noise; 0 to skip."
    )


class EvalOptions(Options):
    """Evaluations during training."""

    interval: Large | None = Field(
        default=100_000, description="The frames between evaluations; null for one, at the end."
    )
    num_envs: int = Field(default=10, ge=1, le=2**17, description="The episodes at a time.")
    rounds: int = Field(default=1, ge=0, le=10**6, description="How often, with zero noise and with random noise.")


class CheckpointOptions(Options):
    """What a run keeps."""

    interval: Large = Field(
        default=100_000, description="The frames between checkpoints. Each evaluation saves one, too."
    )
    keep_last: int = Field(default=2, ge=1, le=10**6, description="The number of newest checkpoints that are kept.")
    keep_best: Text | None = Field(
        default="eval/zero_noise/return",
        description="The column of metrics.csv whose best checkpoint is kept as well; null for none.",
    )
    preempted_exit_code: int = Field(
        default=0, ge=0, le=255, description="The exit code after SIGTERM, by which a scheduler starts the run again."
    )


class ToleranceOptions(Options):
    """How many failures a run survives."""

    undone_updates: int = Field(
        default=5, ge=1, le=10**6, description="Updates in a row that are undone for numbers that are not finite."
    )
    restarts: int = Field(
        default=3, ge=0, le=10**6, description="Restarts of the environment's processes, from the last good state."
    )


class CompileOptions(Options):
    """Compilation of the update."""

    enabled: bool = Field(default=False, description="Whether torch.compile compiles the update.")
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = Field(
        default="default", description="The mode of torch.compile."
    )
    cudagraphs: bool = Field(default=False, description="Whether the update is captured as a CUDA graph.")


class _DemonstrationOptions(Options):
    dataset: Text | None = Field(default=None, description="The demonstrations: a robomimic HDF5 file.")
    filter_key: Text | None = Field(default=None, description="A filter of the demonstrations, such as train.")
    num_demonstrations: Large | None = Field(default=None, description="How many are used; null for all.")


class AnchorOptions(_DemonstrationOptions):
    """Demonstrations that fine-tuning holds on to, and with them the policy's own successes."""

    coeff: Positive | None = Field(
        default=None, description="The weight of flow matching on them; null for no such term."
    )
    own_chunks: int = Field(
        default=0,
        ge=0,
        le=10**8,
        description="The newest chunks of the policy's own successful episodes that are half of a sample; 0 for none.",
    )


class PretrainSection(_DemonstrationOptions):
    """Pre-training on demonstrations."""

    iterations: Large = Field(default=6000, description="The number of updates.")
    batch_size: int = Field(default=256, ge=1, le=10**9, description="The chunks of actions of an update.")
    action_noise: NonNegative = Field(
        default=0.0,
        description="The deviation of noise that is added to actions of range [-1, 1]: how wide a policy stays.",
    )
    lr: Positive = Field(default=3e-4, description="The learning rate.")
    noise_lr: Positive = Field(
        default=1e-2, description="The rate of a Gaussian's deviation, a logarithm, which would hardly move at lr."
    )
    weight_decay: NonNegative = Field(default=1e-6, description="The weight decay of AdamW.")
    ema: Fraction = Field(
        default=0.995, description="The decay of the average that is evaluated and saved; 0 for none."
    )
    log_interval: Large = Field(default=100, description="The iterations between two rows of metrics.csv.")
    checkpoint_interval: Large = Field(default=1000, description="The iterations between two checkpoints.")
