# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Every option of training and pre-training, once: its type, bounds, default and what it is for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from torchrl_genpo.config.checks import check_memory
from torchrl_genpo.config.derive import with_policy_of_task, with_sizes_of_batches
from torchrl_genpo.config.env_options import EnvOptions, GymnasiumOptions, RoboMimicOptions
from torchrl_genpo.config.fields import (
    FOLLOWS,
    Activation,
    Fraction,
    Large,
    NonNegative,
    Options,
    Positive,
    Sizes,
    Text,
)
from torchrl_genpo.config.parts import (
    CollectorOptions,
    ConsistentStartOptions,
    CSVOptions,
    IndependentStartOptions,
    LoggerOptions,
    SolverOptions,
    StartOptions,
    SyncOptions,
    TwoStepOptions,
)
from torchrl_genpo.config.policy_options import PolicyOptions, ReversibleFlowOptions

__all__ = [
    "CheckpointOptions",
    "CompileOptions",
    "CriticOptions",
    "DiagnosticsOptions",
    "EvalOptions",
    "LossOptions",
    "OptimOptions",
    "PretrainEvalOptions",
    "PretrainOptions",
    "PretrainSection",
    "ToleranceOptions",
    "TrainOptions",
]

BYTES = 4  # of a number


def _known_device(device: str) -> str:
    if re.fullmatch(r"cpu|(cuda|xpu|mps)(:[0-9]{1,3})?", device) is None:
        raise ValueError("use cpu, cuda, cuda:<number>, xpu or xpu:<number>")
    return device


Device: TypeAlias = Annotated[str, AfterValidator(_known_device)]


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
        default=0.0, description="The weight of the entropy, which needs a start with a learned scale, or a Gaussian."
    )
    action_entropy_coeff: NonNegative = Field(
        default=0.0, description="The weight of a lower bound on the entropy of a flow's action, its memory left out."
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
    ratio: Literal["pair", "action"] = Field(
        default="pair",
        description="The likelihood ratio of a flow: the pair's, which is exact, or the executed action's, estimated.",
    )
    num_memories: int = Field(
        default=8, ge=1, le=10**4, description="The memories that loss.ratio=action averages over, each an inversion."
    )
    proximal_decay: Fraction | None = Field(
        default=None,
        description="The decay of an average of past policies that PPO-EWMA clips about, where data is older than the "
        "policy (0.9); null for none.",
    )
    epochs: int = Field(default=10, ge=1, le=10**6, description="The passes over a batch.")
    mini_batch_size: int = Field(
        default=512, ge=1, le=10**9, description="The frames of an update; null for frames_per_batch // mini_batches."
    )
    mini_batches: int = Field(
        default=FOLLOWS, ge=1, le=10**6, description="The parts of a batch, where mini_batch_size is null."
    )


class OptimOptions(Options):
    """The optimizer and its learning rate."""

    lr: Positive = Field(default=3e-4, description="The learning rate at first.")
    schedule: Literal["kl_adaptive", "linear", "constant"] = Field(
        default="kl_adaptive", description="What the rate follows: the KL divergence, a line to 0, or nothing."
    )
    target_kl: Positive = Field(
        default=0.03, description="The KL divergence after an update; of the pair, which overstates that of the action."
    )
    min_lr: NonNegative = Field(default=1e-5, description="The lowest rate of schedule=kl_adaptive.")
    max_lr: Positive = Field(default=3e-3, description="The highest rate of schedule=kl_adaptive.")
    max_grad_norm: Positive = Field(default=0.5, description="The norm that gradients are clipped to.")
    noise_lr: Positive | None = Field(
        default=None,
        description="The rate at first of the noise's parameters (a start's scale and tau, a Gaussian's deviation); "
        "null for lr.",
    )
    critic_lr: Positive | None = Field(default=None, description="A constant rate of the critic's own; null for lr.")
    critic_warmup: int = Field(default=0, ge=0, le=10**12, description="The frames in which the critic alone learns.")


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

    interval: Large = Field(default=100_000, description="The frames between evaluations; null for one, at the end.")
    num_envs: int = Field(default=10, ge=1, le=2**17, description="The episodes at a time.")
    rounds: int = Field(default=1, ge=0, le=10**6, description="How often, with zero noise and with random noise.")


class CheckpointOptions(Options):
    """What a run keeps."""

    interval: Large = Field(
        default=100_000,
        description="The frames between checkpoints; null for 50 batches. Each evaluation saves one, too.",
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


class PretrainSection(Options):
    """Pre-training on demonstrations."""

    dataset: Text | None = Field(default=None, description="The demonstrations: a robomimic HDF5 file.")
    filter_key: Text | None = Field(default=None, description="A filter of the demonstrations, such as train.")
    num_demonstrations: Large | None = Field(default=None, description="How many are used; null for all.")
    iterations: Large = Field(default=6000, description="The number of updates.")
    batch_size: int = Field(default=256, ge=1, le=10**9, description="The chunks of actions of an update.")
    action_noise: NonNegative = Field(
        default=0.0,
        description="The deviation of noise that is added to actions of range [-1, 1]: how wide a policy stays.",
    )
    lr: Positive = Field(default=3e-4, description="The learning rate.")
    weight_decay: NonNegative = Field(default=1e-6, description="The weight decay of AdamW.")
    ema: Fraction = Field(
        default=0.995, description="The decay of the average that is evaluated and saved; 0 for none."
    )
    log_interval: Large = Field(default=100, description="The iterations between two rows of metrics.csv.")
    checkpoint_interval: Large = Field(default=1000, description="The iterations between two checkpoints.")


class _Root(Options):
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="The seed of everything that is drawn.")
    device: Device = Field(default="cpu", description="Where PyTorch computes: cpu, cuda, cuda:1, ...")
    num_threads: int = Field(
        default=1, ge=1, le=4096, description="The threads of PyTorch; small networks are no faster with more."
    )
    resume: Text | None = Field(default=None, description="A run folder to continue.")
    evaluate: Text | None = Field(default=None, description="A checkpoint or a run to evaluate instead of training.")
    solver: SolverOptions = Field(default_factory=TwoStepOptions, description="How a flow is integrated.")
    policy: PolicyOptions = Field(default_factory=ReversibleFlowOptions, description="The policy.")


class TrainOptions(_Root):
    """The options of ``genpo-train``; derived numbers are filled in, and parts that do not fit are refused.

    Examples:
        >>> options = TrainOptions.model_validate({"collector": {"frames_per_batch": None, "steps_per_env": 32}})
        >>> options.env.num_envs, options.collector.frames_per_batch
        (16, 512)
    """

    video: bool = Field(default=False, description="Whether an mp4 of the final zero-noise policy is written.")
    env: EnvOptions = Field(
        default_factory=lambda: GymnasiumOptions(name="half_cheetah"), description="The task and its simulator."
    )
    start: StartOptions = Field(
        default_factory=lambda: IndependentStartOptions(scale="learned"), description="Where a flow begins."
    )
    collector: CollectorOptions = Field(default_factory=SyncOptions, description="How data is collected.")
    critic: CriticOptions = Field(default_factory=CriticOptions, description="The value network.")
    loss: LossOptions = Field(default_factory=LossOptions, description="The objective.")
    optim: OptimOptions = Field(default_factory=OptimOptions, description="The optimizer.")
    diagnostics: DiagnosticsOptions = Field(default_factory=DiagnosticsOptions, description="Measurements of flows.")
    eval: EvalOptions = Field(default_factory=EvalOptions, description="Evaluations during training.")
    checkpoint: CheckpointOptions = Field(default_factory=CheckpointOptions, description="What a run keeps.")
    tolerance: ToleranceOptions = Field(default_factory=ToleranceOptions, description="How many failures it survives.")
    compile: CompileOptions = Field(default_factory=CompileOptions, description="Compilation of the update.")
    logger: LoggerOptions = Field(default_factory=CSVOptions, description="Where metrics are shown.")

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, values: Any) -> Any:
        """Fills in what follows from other options; a number that is given wins over what it would follow from."""
        if not isinstance(values, Mapping):
            return values
        sections: dict[str, type[Options]] = {
            "collector": SyncOptions,
            "loss": LossOptions,
            "eval": EvalOptions,
            "checkpoint": CheckpointOptions,
        }
        defaults = {
            f"{section}.{name}": field.default
            for section, options in sections.items()
            for name, field in options.model_fields.items()
        }
        return with_policy_of_task(with_sizes_of_batches(values, defaults))

    @model_validator(mode="after")
    def _fits_together(self) -> TrainOptions:
        self._check_batches()
        self._check_policy()
        _check_networks(self)
        _check_network("critic.hidden_sizes", self.critic.hidden_sizes)
        if self.compile.cudagraphs and not self.device.startswith("cuda"):
            raise ValueError(f"compile.cudagraphs=true needs a CUDA device, not device={self.device}.")
        if self.optim.min_lr > self.optim.max_lr:
            raise ValueError(f"optim.min_lr={self.optim.min_lr:g} is above optim.max_lr={self.optim.max_lr:g}.")
        return self

    def _check_batches(self) -> None:
        frames, num_envs = self.collector.frames_per_batch, self.env.num_envs
        if frames % num_envs:
            below = frames // num_envs * num_envs
            nearest = " or ".join(str(n) for n in (below, below + num_envs) if n)
            raise ValueError(
                f"collector.frames_per_batch={frames} is no multiple of env.num_envs={num_envs}, which take a step "
                f"together: use {nearest}."
            )
        workers = self.collector.num_workers
        if num_envs % workers:
            raise ValueError(f"env.num_envs={num_envs} must be a multiple of collector.num_workers={workers}.")
        # a batch of a small task, in the three places that hold one
        check_memory(64 * BYTES * frames, f"collector.frames_per_batch={frames}")

    def _check_sequences(self) -> None:
        """What training on sequences, one of each environment, does not allow."""
        encoder, steps = f"policy.encoder={self.policy.encoder}", self.collector.steps_per_env
        if not self.policy.has_density:
            raise ValueError(f"{encoder} needs a policy with a density; policy={self.policy.name} has none.")
        if self.loss.mini_batch_size < steps:
            raise ValueError(
                f"{encoder} is trained on the whole sequences of environments, of {steps} steps: "
                f"loss.mini_batch_size={self.loss.mini_batch_size} must not be less."
            )
        for name, value in (
            ("env.symmetry", self.env.symmetry),
            ("compile.enabled", self.compile.enabled),
            ("compile.cudagraphs", self.compile.cudagraphs),
        ):
            if value:
                raise ValueError(f"{encoder} cannot be used with {name}=true.")

    def _check_policy(self) -> None:
        policy, loss = self.policy, self.loss
        if loss.proximal_decay is not None and not policy.has_density:
            raise ValueError(
                f"loss.proximal_decay={loss.proximal_decay:g} needs a policy with a density; "
                f"policy={policy.name} has none."
            )
        if policy.is_recurrent:
            self._check_sequences()
        if loss.action_entropy_coeff and not policy.has_pair:
            raise ValueError(
                f"loss.action_entropy_coeff={loss.action_entropy_coeff:g} needs a flow with a memory; "
                f"policy={policy.name} has none, and loss.entropy_coeff is that of its action."
            )
        if loss.reference_target is not None and not loss.reference_coeff:
            raise ValueError(
                f"loss.reference_target={loss.reference_target:g} adapts a weight that is 0: set loss.reference_coeff."
            )
        if loss.reference_coeff and not (policy.has_pair and policy.init):
            raise ValueError(
                f"loss.reference_coeff={loss.reference_coeff:g} needs a flow with a memory, and policy.init, which it "
                f"stays near; this is policy={policy.name}, policy.init={policy.init or 'null'}."
            )
        if loss.ratio != "pair" and not policy.has_pair:
            raise ValueError(f"loss.ratio={loss.ratio} needs a flow with a memory; policy={policy.name} has none.")
        _check_policy_and_solver(self)


class PretrainOptions(_Root):
    """The options of ``genpo-pretrain``.

    The file of a task sets options of the fine-tuning too. They are left out here.
    """

    euler: bool = Field(default=False, description="Whether evaluate= samples by Euler's rule.")
    env: EnvOptions = Field(
        default_factory=lambda: RoboMimicOptions(name="robomimic/can"), description="The task and its simulator."
    )
    start: StartOptions = Field(
        default_factory=lambda: ConsistentStartOptions(tau=0.1, learn_tau="per_dimension", scale="unit"),
        description="Where a flow begins.",
    )
    pretrain: PretrainSection = Field(default_factory=PretrainSection, description="Pre-training on demonstrations.")
    eval: PretrainEvalOptions = Field(default_factory=PretrainEvalOptions, description="The evaluation at the end.")

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        others = TrainOptions.model_fields.keys() - PretrainOptions.model_fields.keys() - {"video"}
        values = {key: value for key, value in values.items() if key not in others}
        if isinstance(values.get("eval"), Mapping):
            values["eval"] = {key: value for key, value in values["eval"].items() if key != "interval"}
        return with_policy_of_task(values)

    @model_validator(mode="after")
    def _fits_together(self) -> PretrainOptions:
        _check_networks(self)
        _check_policy_and_solver(self)
        if self.policy.encoder not in (None, "mlp"):
            raise ValueError(
                f"policy.encoder={self.policy.encoder}: demonstrations are single steps of vectors, for "
                "policy.encoder=mlp or null."
            )
        return self


def _check_networks(options: TrainOptions | PretrainOptions) -> None:
    for name in ("hidden_sizes", "head_sizes", "encoder_sizes"):
        _check_network(f"policy.{name}", getattr(options.policy, name))


def _check_network(name: str, widths: tuple[int, ...]) -> None:
    # parameters, gradients and two moments of the optimizer
    size = 4 * BYTES * sum(a * b for a, b in pairwise(widths))
    check_memory(size, f"{name}={list(widths)}")


def _check_policy_and_solver(options: TrainOptions | PretrainOptions) -> None:
    policy, solver = options.policy, options.solver
    if policy.squash and options.env.name.startswith("robomimic/"):
        raise ValueError(
            f"policy.squash=true: actions of {options.env.name} are scaled to the range of the demonstrations, which "
            "lie on its bounds, where a tanh cannot be inverted. Leave it out."
        )
    if policy.solver is not None and solver.name != policy.solver:
        raise ValueError(
            f"policy={policy.name} needs solver={policy.solver}, not solver={solver.name}: leave solver= out."
        )
