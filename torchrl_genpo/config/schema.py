# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Every option of training and pre-training, once: its type, bounds, default and what it is for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from torchrl_genpo.config.derive import with_policy_of_task
from torchrl_genpo.config.env_options import EnvOptions, GymnasiumOptions, RoboMimicOptions
from torchrl_genpo.config.fields import (
    Options,
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
from torchrl_genpo.config.sections import (
    AnchorOptions,
    CheckpointOptions,
    CompileOptions,
    CriticOptions,
    DiagnosticsOptions,
    EvalOptions,
    LossOptions,
    OptimOptions,
    PretrainEvalOptions,
    PretrainSection,
    ToleranceOptions,
)

__all__ = ["PretrainOptions", "TrainOptions"]


def _known_device(device: str) -> str:
    if re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", device) is None:
        why = ". Apple's MPS has no float64, which a flow needs" if device.startswith("mps") else ""
        raise ValueError(f"use cpu, cuda or cuda:<number>{why}")
    return device


Device: TypeAlias = Annotated[str, AfterValidator(_known_device)]


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
    """The options of ``genpo-train``; what follows from the task is filled in, and parts that do not fit are refused.

    Examples:
        >>> options = TrainOptions.model_validate({"collector": {"frames_per_batch": 512}})
        >>> options.env.num_envs, options.collector.frames_per_batch, options.policy.head_sizes
        (16, 512, (64,))
    """

    video: bool = Field(default=False, description="Whether an mp4 of the final zero-noise policy is written.")
    env: EnvOptions = Field(
        default_factory=lambda: GymnasiumOptions(name="half_cheetah"), description="The task and its simulator."
    )
    start: StartOptions = Field(default_factory=IndependentStartOptions, description="Where a flow begins.")
    collector: CollectorOptions = Field(default_factory=SyncOptions, description="How data is collected.")
    critic: CriticOptions = Field(default_factory=CriticOptions, description="The value network.")
    loss: LossOptions = Field(default_factory=LossOptions, description="The objective.")
    optim: OptimOptions = Field(default_factory=OptimOptions, description="The optimizer.")
    anchor: AnchorOptions = Field(
        default_factory=AnchorOptions, description="Demonstrations that fine-tuning holds on to."
    )
    diagnostics: DiagnosticsOptions = Field(default_factory=DiagnosticsOptions, description="Measurements of flows.")
    eval: EvalOptions = Field(default_factory=EvalOptions, description="Evaluations during training.")
    checkpoint: CheckpointOptions = Field(default_factory=CheckpointOptions, description="What a run keeps.")
    tolerance: ToleranceOptions = Field(default_factory=ToleranceOptions, description="How many failures it survives.")
    compile: CompileOptions = Field(default_factory=CompileOptions, description="Compilation of the update.")
    logger: LoggerOptions = Field(default_factory=CSVOptions, description="Where metrics are shown.")

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, values: Any) -> Any:
        return with_policy_of_task(values) if isinstance(values, Mapping) else values

    @property
    def steps_per_env(self) -> int:
        """The steps of each environment between two updates."""
        return self.collector.frames_per_batch // self.env.num_envs

    @model_validator(mode="after")
    def _fits_together(self) -> TrainOptions:
        self._check_batches()
        self._check_policy()
        self._check_rates()
        return self

    def _check_rates(self) -> None:
        optim = self.optim
        if optim.head_lr is not None and not (self.policy.has_pair and self.policy.head_sizes):
            raise ValueError(
                f"optim.head_lr={optim.head_lr:g} is of the head of a flow with a memory; this is "
                f"policy={self.policy.name}, policy.head_sizes={list(getattr(self.policy, 'head_sizes', ()))}."
            )
        if optim.min_lr > optim.max_lr:
            raise ValueError(f"optim.min_lr={optim.min_lr:g} is above optim.max_lr={optim.max_lr:g}.")
        for name, rate in (("lr", optim.lr), ("noise_lr", optim.noise_lr), ("head_lr", optim.head_lr)):
            if optim.schedule == "kl_adaptive" and rate is not None and not optim.min_lr <= rate <= optim.max_lr:
                raise ValueError(
                    f"optim.{name}={rate:g} is not between optim.min_lr={optim.min_lr:g} and "
                    f"optim.max_lr={optim.max_lr:g}, where optim.schedule=kl_adaptive would move it at once."
                )

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
        mini_batch, unit = self.loss.mini_batch_size, self.steps_per_env if self.policy.is_recurrent else 1
        if mini_batch < frames and (frames % mini_batch or mini_batch % unit):
            equal = next((n for n in range(mini_batch, 0, -1) if not (frames % n or n % unit)), frames)
            whole = f" of whole sequences of {unit} steps" if unit > 1 else ""
            raise ValueError(
                f"loss.mini_batch_size={mini_batch} does not divide collector.frames_per_batch={frames} into equal "
                f"mini-batches{whole}: use {equal}."
            )

    def _check_sequences(self) -> None:
        """What training on sequences, one of each environment, does not allow."""
        encoder = f"policy.encoder={self.policy.encoder}"
        if not self.policy.has_density:
            raise ValueError(f"{encoder} needs a policy with a density; policy={self.policy.name} has none.")
        for name, value in (
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
        is_fixed = getattr(policy, "scale", "") == "unit" and not (self.start.learn_tau or self.start.steering_sizes)
        if loss.entropy_coeff and is_fixed:
            raise ValueError(
                f"loss.entropy_coeff={loss.entropy_coeff:g} has no effect with policy.scale=unit, for which "
                "the entropy of the pair is a constant: use policy.scale=learned."
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
        self._check_trainable()
        self._check_anchor()
        _check_policy_and_solver(self)

    def _check_anchor(self) -> None:
        anchor, policy = self.anchor, self.policy
        if anchor.coeff is None:
            if anchor != AnchorOptions():
                raise ValueError("Options of anchor have no effect while anchor.coeff is null: set that weight.")
            return
        if not policy.has_pair or policy.head_sizes or policy.is_recurrent or policy.trainable == "start":
            raise ValueError(
                f"anchor.coeff={anchor.coeff:g} is for a flow with a memory, whose velocity flow matching trains. This "
                f"is policy={policy.name}, policy.head_sizes={list(policy.head_sizes)}, "
                f"policy.encoder={policy.encoder or 'null'}, policy.trainable={policy.trainable}."
            )
        if anchor.dataset is None:
            raise ValueError(f"anchor.coeff={anchor.coeff:g} needs demonstrations: anchor.dataset=<file.hdf5>.")

    def _check_trainable(self) -> None:
        """What is left to train has to be there."""
        policy, start, trainable = self.policy, self.start, f"policy.trainable={self.policy.trainable}"
        if policy.trainable != "all" and policy.init is None:
            raise ValueError(f"{trainable} keeps what policy.init holds, which is null: name a checkpoint.")
        if policy.trainable == "head" and not (policy.head_sizes or policy.encoder):
            raise ValueError(f"{trainable} needs a network before the head: policy.head_sizes, or policy.encoder.")
        if policy.trainable == "start" and not (start.learn_tau or start.steering_sizes):
            raise ValueError(f"{trainable} needs a start that learns: start.steering_sizes=[64].")


FIRST_DEMONSTRATED = "robomimic/can"
"""The task that pre-training has unless another is named."""


class PretrainOptions(_Root):
    """The options of ``genpo-pretrain``.

    The file of a task sets options of the fine-tuning too. They are left out here.
    """

    euler: bool = Field(default=False, description="Whether evaluate= samples by Euler's rule.")
    env: EnvOptions = Field(
        default_factory=lambda: RoboMimicOptions(name=FIRST_DEMONSTRATED), description="The task and its simulator."
    )
    start: StartOptions = Field(
        default_factory=lambda: ConsistentStartOptions(tau=0.1, learn_tau=True),
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
        values.setdefault("env", {"name": FIRST_DEMONSTRATED})
        if isinstance(values.get("eval"), Mapping):
            values["eval"] = {key: value for key, value in values["eval"].items() if key != "interval"}
        return with_policy_of_task(values)

    @model_validator(mode="after")
    def _fits_together(self) -> PretrainOptions:
        _check_policy_and_solver(self)
        if self.policy.init is not None or self.policy.trainable != "all":
            raise ValueError("policy.init and policy.trainable are for the training that follows: leave them out.")
        if self.policy.has_pair and getattr(self.policy, "scale", "unit") != "unit":
            raise ValueError("policy.scale=learned: flow matching trains a flow of unit noise.")
        if self.policy.encoder not in (None, "mlp"):
            raise ValueError(
                f"policy.encoder={self.policy.encoder}: demonstrations are single steps of vectors, for "
                "policy.encoder=mlp or null."
            )
        return self


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
