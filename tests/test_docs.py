"""The documentation: what it names exists, and what it explains is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from torchrl_genpo.config.compose import compose
from torchrl_genpo.training.metrics import METRICS
from torchrl_genpo.training.workers import COLUMNS

ROOT = Path(__file__).parents[1]
WRITTEN = {"generated", "results", "_build", "options.md"}  # by Sphinx, and by test_public_api.py
PAGES = [path for path in (ROOT / "docs").rglob("*.md") if WRITTEN.isdisjoint(path.parts)]
SCRIPT = re.compile(r"python ((?:sota-implementations|examples|upstream)/\w+\.py)")
MODULE = re.compile(r"python -m (benchmarks[.\w]+)")


def test_the_glossary_explains_every_column_once():
    glossary = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `([^`<]+)` \| (.+?) \|", glossary, re.MULTILINE)
    assert [name for name, _ in rows if name not in COLUMNS] == METRICS
    assert sorted(name for name, _ in rows if name in COLUMNS) == sorted(COLUMNS)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_row_of_numbers_is_included_from_the_results(page):
    lines = (re.sub(r"`[^`]*`", "", line) for line in page.read_text().splitlines() if line.startswith("|"))
    typed = [line for line in lines if re.search(r"\d{3}", line) and "arXiv" not in line]
    assert not typed, typed


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_script_and_picture_exists(page):
    text = page.read_text()
    modules = [f"{module.replace('.', '/')}.py" for module in MODULE.findall(text)]
    for script in SCRIPT.findall(text) + modules + re.findall(r"`((?:examples|benchmarks)/[/\w]+\.py)`", text):
        assert (ROOT / script).exists(), script
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (page.parent / picture).exists(), picture


def commands(script):
    """Options of every command of the pages that runs an entry script, without those for Hydra alone."""
    text = "\n".join(page.read_text() for page in PAGES)
    found = re.findall(rf"^(?:torchrun \S+|python) sota-implementations/{script}((?: [^#\n]+)?)", text, re.MULTILINE)
    for line in found:
        options = [option for option in line.split() if "=" in option and not option.startswith("hydra.")]
        yield [option for option in options if "<" not in option and "..." not in option]


@pytest.mark.parametrize("script", [pytest.param("genpo", marks=pytest.mark.extras("sweeps")), "pretrain"])
def test_every_command_is_accepted_by_the_schema(script):
    checked = list(commands(rf"{script}\.py"))
    assert checked
    for options in checked:
        compose([option if "[" in option else option.partition(",")[0] for option in options], script)  # of a sweep
