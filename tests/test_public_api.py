"""Public names and options: listed in ``public_api.txt``, so that none changes by accident.

``python tests/test_public_api.py`` writes the list again.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

import torchrl_genpo

LIST = Path(__file__).with_name("public_api.txt")
CONFIG = Path(torchrl_genpo.__file__).parent / "config"


def public_names() -> Iterator[str]:
    """What the packages and modules offer, each name where it is listed."""
    for found in pkgutil.walk_packages(torchrl_genpo.__path__, "torchrl_genpo."):
        parts = found.name.split(".")
        if any(part.startswith("_") for part in parts) or not found.ispkg:
            continue
        module = importlib.import_module(found.name)
        yield from (f"{found.name}.{name}" for name in getattr(module, "__all__", []))
    yield from (f"torchrl_genpo.{name}" for name in torchrl_genpo.__all__)


def options() -> Iterator[str]:
    """Every option of the commands, by its dotted name, and every choice of a group."""

    def keys(node, prefix):
        for key, value in node.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{key}.")

    for path in sorted(CONFIG.rglob("*.yaml")):
        name = path.relative_to(CONFIG).with_suffix("").as_posix()
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False) or {}
        skipped = {key: value for key, value in content.items() if key not in ("defaults", "hydra")}
        yield f"[{name}]"
        yield from (f"[{name}] {key}" for key in keys(skipped, ""))


def listing() -> str:
    return "\n".join([*sorted(set(public_names())), *options()]) + "\n"


def test_public_names_and_options_are_those_of_the_list():
    assert listing().splitlines() == LIST.read_text().splitlines(), "decided? then: python tests/test_public_api.py"


if __name__ == "__main__":
    LIST.write_text(listing())
