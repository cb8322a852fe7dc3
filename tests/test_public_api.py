"""Public names and options: listed in ``public_api.txt`` and in the docs, so that none changes by accident.

``python tests/test_public_api.py`` writes both again.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchrl_genpo
from torchrl_genpo.config.describe import options_table
from torchrl_genpo.config.schema import PretrainOptions, TrainOptions

LIST = Path(__file__).with_name("public_api.txt")
OPTIONS = Path(__file__).parents[1] / "docs" / "reference" / "options.md"
HEAD = """\
# Options

Every option of the two training commands: what it may be, its default and what it is for. The files of tasks and
policies in `torchrl_genpo/config` choose other values for some; the `config.yaml` of a run has what it ran with.

"""
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


def config_files() -> Iterator[str]:
    """Lists every file that chooses values."""
    yield from (f"[config] {path.relative_to(CONFIG).with_suffix('')}" for path in sorted(CONFIG.rglob("*.yaml")))


def listing() -> str:
    return "\n".join([*sorted(set(public_names())), *config_files()]) + "\n"


def options_page() -> str:
    """Every option of the training commands."""
    commands = {"genpo-train": TrainOptions, "genpo-pretrain": PretrainOptions}
    return HEAD + "\n".join(f"## `{name}`\n\n{options_table(schema)}" for name, schema in commands.items())


@pytest.mark.parametrize(("make", "path"), [(listing, LIST), (options_page, OPTIONS)], ids=["names", "options"])
def test_public_names_and_options_are_those_of_the_list(make, path):
    assert make().splitlines() == path.read_text().splitlines(), "decided? then: python tests/test_public_api.py"


if __name__ == "__main__":
    LIST.write_text(listing())
    OPTIONS.write_text(options_page())
