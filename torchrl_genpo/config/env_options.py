# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The options of environments, by the family that the prefix of ``env.name`` names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationError
from pydantic_core import PydanticCustomError

from torchrl_genpo.config.fields import Options, Text, Texts

__all__ = [
    "FAMILIES",
    "EnvOptions",
    "GymnasiumOptions",
    "IsaacLabOptions",
    "RoboMimicOptions",
    "XHandOptions",
    "family",
]


# what the families declare alike, each with a default of its own
NumEnvs: TypeAlias = Annotated[int, Field(ge=1, le=2**17, description="The number of environments of each process.")]
NormalizeObservation: TypeAlias = Annotated[
    bool, Field(description="Whether the policy normalises observations by running statistics.")
]
ScaleReward: TypeAlias = Annotated[
    bool, Field(description="Whether rewards are divided by the running deviation of the discounted return.")
]


class _Env(Options):
    name: Text = Field(description="The task: a name of `env`, or an id that the simulator registers.")
    num_envs: NumEnvs = 16
    normalize_observation: NormalizeObservation = True
    scale_reward: ScaleReward = True


class GymnasiumOptions(_Env):
    """A task of Gymnasium, or of a module that registers one: ``<module>:<id>``."""

    options: ClassVar[None] = None
    max_episode_steps: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="The steps after which an episode is truncated; null for the task's own limit, if it has one.",
    )


class IsaacLabTaskOptions(Options):
    """Keyword arguments of :func:`~torchrl_genpo.envs.make_isaaclab_env`."""

    physics: Text | None = Field(default=None, description="Isaac Lab 3.x: the physics; null means newton_mjwarp.")
    asset_root: Text | None = Field(
        default=None, description="A folder of Isaac Lab's assets, where its server cannot be reached."
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="Changes to the task's configuration: +env.options.overrides.episode_length_s=5.",
    )


class IsaacLabOptions(_Env):
    """A manager-based task of Isaac Lab: ``isaaclab/<task>``."""

    num_envs: NumEnvs = 4096
    normalize_observation: NormalizeObservation = False
    scale_reward: ScaleReward = False
    options: IsaacLabTaskOptions = Field(
        default_factory=IsaacLabTaskOptions, description="The options of Isaac Lab's tasks."
    )


class RoboMimicTaskOptions(Options):
    """Keyword arguments of :func:`~torchrl_genpo.envs.make_robomimic_env`."""

    chunk_size: int = Field(default=4, ge=1, le=10**4, description="The control steps of one action.")
    end_at_success: bool = Field(default=True, description="Whether an episode ends when the task is solved.")
    reward_shaping: bool = Field(default=False, description="Whether robosuite's dense reward replaces the sparse one.")
    horizon: int | None = Field(
        default=None, ge=1, le=10**9, description="The control steps of an episode; null for the task's own."
    )
    dataset: Text | None = Field(
        default=None, description="A robomimic file, whose environment is used as it was recorded."
    )
    observation_keys: Texts | None = Field(
        default=None, description="The parts of the observation; null for the task's own."
    )
    simulation_timestep: float = Field(
        default=0.002, gt=0, le=1, description="The time step of the physics, s; 0.005 is twice as fast."
    )
    num_workers: int = Field(default=2, ge=0, le=4096, description="The largest number of simulating processes.")


class RoboMimicOptions(_Env):
    """A robosuite task for fine-tuning a policy that was pre-trained on demonstrations: ``robomimic/<task>``."""

    num_envs: NumEnvs = 20
    normalize_observation: bool = Field(
        default=False, description="Running statistics; pre-training sets the ranges of the data instead."
    )
    scale_reward: ScaleReward = False
    options: RoboMimicTaskOptions = Field(
        default_factory=RoboMimicTaskOptions, description="The options of robosuite's tasks."
    )


def _values_of(module: str, name: str, *without: str) -> AfterValidator:
    """Checks a mapping as some values of a task's settings, whose module is imported only then, because it is heavy."""

    def check(values: dict[str, Any]) -> dict[str, Any]:
        if not values:
            return values
        cls = getattr(importlib.import_module(f"torchrl_genpo.envs.xhand.{module}"), name)
        try:
            if refused := sorted(set(without) & set(values)):
                raise PydanticCustomError("refused", "{name} is set by an option of its own", {"name": refused[0]})
            return cls.model_validate(values).model_dump(exclude_unset=True)
        except ValidationError as error:
            raise PydanticCustomError("values", "some values are wrong", {"model": cls, "error": error}) from None

    return AfterValidator(check)


class XHandTaskOptions(Options):
    """Keyword arguments of :func:`~torchrl_genpo.envs.make_xhand_env`."""

    nuts: Annotated[
        tuple[Literal["hexagon", "square", "round", "triangle", "cross"], ...], Field(min_length=1, strict=False)
    ] = Field(
        default=("hexagon", "square", "round"), description="The nuts, by turns; triangle and cross are held out."
    )
    scene: Annotated[dict[str, Any], _values_of("scene", "Scene", "nut")] = Field(
        default_factory=dict, description="Values of the scene: +env.options.scene.side=left."
    )
    randomize: bool = Field(default=True, description="Whether episodes differ by more than the nut.")
    randomization: Annotated[dict[str, Any], _values_of("randomization", "Randomization")] = Field(
        default_factory=dict, description="Ranges to draw from: +env.options.randomization.friction=[0.5,1]."
    )
    rewards: Annotated[dict[str, Any], _values_of("rewards", "RewardWeights")] = Field(
        default_factory=dict, description="Weights of the terms of the reward: +env.options.rewards.turning=4."
    )
    history: int = Field(default=3, ge=1, le=1000, description="The control steps that an observation holds.")
    all_joints: bool = Field(
        default=False, description="Whether an action has twelve numbers; those of ring and little finger do nothing."
    )
    max_steps: int = Field(default=400, ge=1, le=10**9, description="The control steps of an episode, of 50 ms each.")
    num_threads: int | None = Field(
        default=None, ge=1, le=4096, description="The threads of the simulation; null for one on each processor."
    )


class XHandOptions(_Env):
    """The XHand that loosens nuts: ``xhand/nut_bolt``."""

    num_envs: int = Field(default=128, ge=1, le=2**17, description="The number of hands of each process.")
    options: XHandTaskOptions = Field(default_factory=XHandTaskOptions, description="The options of the hand's tasks.")


FAMILIES: dict[str, type[_Env]] = {
    "gymnasium": GymnasiumOptions,
    "isaaclab": IsaacLabOptions,
    "robomimic": RoboMimicOptions,
    "xhand": XHandOptions,
}
"""The families of environments by the prefix of their tasks' names; Gymnasium's have none."""


def family(env: Any) -> str:
    """The family of an environment by the prefix of its name.

    Examples:
        >>> family({"name": "isaaclab/ant"}), family({"name": "Hopper-v5"})
        ('isaaclab', 'gymnasium')
    """
    name = env.get("name") if isinstance(env, Mapping) else getattr(env, "name", None)
    prefix = name.partition("/")[0] if isinstance(name, str) and "/" in name else ""
    return prefix if prefix in FAMILIES else "gymnasium"


EnvOptions: TypeAlias = Annotated[
    Annotated[GymnasiumOptions, Tag("gymnasium")]
    | Annotated[IsaacLabOptions, Tag("isaaclab")]
    | Annotated[RoboMimicOptions, Tag("robomimic")]
    | Annotated[XHandOptions, Tag("xhand")],
    Discriminator(family),
]
