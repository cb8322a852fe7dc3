# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""From a command line to checked options: Hydra composes the files, the schema checks what comes out."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar, overload

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from torchrl_genpo.config.describe import alternatives, default_values
from torchrl_genpo.config.env_options import FAMILIES
from torchrl_genpo.config.explain import explain
from torchrl_genpo.config.policy_options import TransformerOptions
from torchrl_genpo.config.schema import PretrainOptions, TrainOptions

__all__ = ["GROUPS", "SCHEMAS", "ConfigName", "compose", "compose_config", "known_to_hydra", "validate"]

T = TypeVar("T", TrainOptions, PretrainOptions)

ConfigName: TypeAlias = Literal["genpo", "pretrain"]

SCHEMAS: dict[str, Any] = {"genpo": TrainOptions, "pretrain": PretrainOptions}
"""What the options of a file of groups are checked by."""

GROUPS = ("collector", "solver", "start", "policy", "logger", "env")
"""The sections of which one of several alternatives is chosen by its name."""


def _of_integers(rule: Callable[..., int]) -> Callable[..., Any]:
    """A rule for files of options, ``${mul:${env.num_envs},32}``; of wrong numbers comes the first."""

    def apply(*numbers: Any) -> Any:
        wrong = [number for number in numbers if not isinstance(number, int)]
        return wrong[0] if wrong else rule(*numbers)

    return apply


OmegaConf.register_new_resolver("mul", _of_integers(operator.mul), replace=True)
OmegaConf.register_new_resolver("div", _of_integers(operator.floordiv), replace=True)


@overload
def compose(overrides: Sequence[str] = (), config_name: Literal["genpo"] = "genpo") -> TrainOptions: ...


@overload
def compose(overrides: Sequence[str] = (), *, config_name: Literal["pretrain"]) -> PretrainOptions: ...


def compose(overrides: Sequence[str] = (), config_name: ConfigName = "genpo") -> TrainOptions | PretrainOptions:
    """Composes and checks options, as a command does with its command line.

    Args:
        overrides (sequence of str): as on a command line.
        config_name (str): ``genpo`` for :class:`TrainOptions`, ``pretrain`` for :class:`PretrainOptions`.

    Raises:
        ValueError: for a value that the schema refuses.
        hydra.errors.HydraException: for a group or an option that does not exist.

    Examples:
        >>> options = compose(["env=hopper", "env.num_envs=4"])
        >>> options.env.name, options.env.num_envs
        ('hopper', 4)
    """
    return validate(compose_config(overrides, config_name), SCHEMAS[config_name])


def compose_config(overrides: Sequence[str] = (), config_name: ConfigName = "genpo") -> DictConfig:
    """Composes options without checking them."""
    state = GlobalHydra.instance()
    running, state.hydra = state.hydra, None  # a command that composes again is in the midst of Hydra's own run
    try:
        with known_to_hydra(), hydra.initialize_config_module("torchrl_genpo.config", version_base="1.3"):
            return hydra.compose(config_name, list(overrides))
    finally:
        state.hydra = running


@contextlib.contextmanager
def known_to_hydra() -> Iterator[None]:
    """Makes the schema's defaults known to Hydra, so that it knows each option that a command line may set.

    TorchRL registers configurations of its trainers in the one store of a process, some under the names of our groups
    (``collector/sync``, ``logger/csv``). Within this context the store has ours alone, afterwards what it had before.
    """
    store = ConfigStore.instance()
    others = store.repo
    store.repo = {name: node for name, node in others.items() if name.startswith(("hydra", "_"))}
    try:
        _register(store)
        yield
    finally:
        store.repo = others


def _register(store: ConfigStore) -> None:
    for name, schema in (("options", TrainOptions), ("pretrain_options", PretrainOptions)):
        values = default_values(schema)
        store.store(name=name, node={key: value for key, value in values.items() if key not in GROUPS})
    for group in set(GROUPS) - {"env"}:
        for name, section in alternatives(TrainOptions.model_fields[group].annotation).items():
            node = default_values(section)
            if name == "genpo":  # its file chooses a solver, too, so its defaults have another name
                store.store(name="policy_genpo", node=node)
            else:
                store.store(group=group, name=name, node=node)
    store.store(name="policy_transformer", node=default_values(TransformerOptions))
    for name, section in FAMILIES.items():
        if name == "gymnasium":
            store.store(group="env", name=name, node=default_values(section))
        else:
            store.store(name=f"env_{name}", node=default_values(section))


def validate(cfg: DictConfig | Mapping[str, Any], kind: type[T] = TrainOptions) -> T:  # type: ignore[assignment]
    """Checks options against their schema.

    Args:
        cfg (DictConfig or mapping): as Hydra composed them, or as a run saved them.
        kind (type): :class:`TrainOptions` or :class:`PretrainOptions`.

    Raises:
        ValueError: names each option that is wrong as on the command line, its value and what it may be.

    Examples:
        >>> validate({"seed": -1})
        Traceback (most recent call last):
        ValueError: seed=-1: Input should be greater than or equal to 0.
    """
    values: Any = cfg
    if OmegaConf.is_config(cfg):
        try:
            values = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[arg-type]
        except (OmegaConfBaseException, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"The options cannot be resolved: {str(error).splitlines()[0]}") from error
        if missing := OmegaConf.missing_keys(cfg):
            raise ValueError(f"{', '.join(sorted(missing))} is missing: give it a value.")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(explain(error, kind, values)) from None
