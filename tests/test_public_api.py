"""Public names and options: listed in ``public_api.txt``, so that none changes by accident.

``python tests/test_public_api.py`` writes the list again.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import torchrl_genpo
from torchrl_genpo.config.describe import options_of
from torchrl_genpo.config.schema import PretrainOptions, TrainOptions

LIST = Path(__file__).with_name("public_api.txt")
CONFIG = Path(torchrl_genpo.__file__).parent / "config"


def public_names() -> Iterator[str]:
    """Lists what the packages offer, each name where it is listed."""
    for found in pkgutil.walk_packages(torchrl_genpo.__path__, "torchrl_genpo."):
        parts = found.name.split(".")
        if any(part.startswith("_") for part in parts) or not found.ispkg:
            continue
        module = importlib.import_module(found.name)
        yield from (f"{found.name}.{name}" for name in getattr(module, "__all__", []))
    yield from (f"torchrl_genpo.{name}" for name in torchrl_genpo.__all__)


def options() -> Iterator[str]:
    """Lists every option of the training commands with its values and default, and every file that chooses values."""
    for command, schema in (("genpo-train", TrainOptions), ("genpo-pretrain", PretrainOptions)):
        for option in options_of(schema):
            choice = f" ({option.choice})" if option.choice else ""
            yield f"[{command}] {option.name}{choice}: {option.type} = {option.default}"
    yield from (f"[config] {path.relative_to(CONFIG).with_suffix('')}" for path in sorted(CONFIG.rglob("*.yaml")))


def listing() -> str:
    return "\n".join([*sorted(set(public_names())), *options()]) + "\n"


def test_public_names_and_options_are_those_of_the_list():
    assert listing().splitlines() == LIST.read_text().splitlines(), "decided? then: python tests/test_public_api.py"


if __name__ == "__main__":
    LIST.write_text(listing())
