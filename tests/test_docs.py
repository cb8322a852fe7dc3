"""The documentation: what it names exists, and what it explains is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import torchrl_genpo.configuration  # noqa: F401  registers the resolvers
from torchrl_genpo.runs import METRICS
from torchrl_genpo.training.workers import COLUMNS

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "torchrl_genpo" / "config"
PAGES = [path for path in (ROOT / "docs").rglob("*.md") if {"generated", "results", "_build"}.isdisjoint(path.parts)]
SCRIPT = re.compile(r"python ((?:sota-implementations|examples|benchmarks)/\w+\.py)")


def test_the_glossary_explains_every_column_once():
    glossary = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `([^`<]+)` \| (.+?) \|", glossary, re.MULTILINE)
    assert [name for name, _ in rows if name not in COLUMNS] == METRICS
    assert sorted(name for name, _ in rows if name in COLUMNS) == sorted(COLUMNS)
    assert all(len(text) > 20 for _, text in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_row_of_numbers_is_included_from_the_results(page):
    lines = (re.sub(r"`[^`]*`", "", line) for line in page.read_text().splitlines() if line.startswith("|"))
    typed = [line for line in lines if re.search(r"\d{3}", line) and "arXiv" not in line]
    assert not typed, typed


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_script_and_picture_exists(page):
    text = page.read_text()
    for script in SCRIPT.findall(text) + re.findall(r"`((?:examples|benchmarks)/\w+\.py)`", text):
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


@pytest.mark.parametrize("script", ["genpo", "pretrain"])
def test_every_command_has_a_configuration(script):
    checked = list(commands(rf"{script}\.py"))
    assert len(checked) >= 4
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        for options in checked:
            choices = [option if "[" in option else option.partition(",")[0] for option in options]  # of a sweep
            compose(script, choices)


def test_troubleshooting_quotes_messages_that_exist():
    sources = "\n".join(path.read_text() for path in (ROOT / "torchrl_genpo").rglob("*.py"))
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    pairs = zip(text.splitlines(), text.splitlines()[1:], strict=False)
    symptoms = [line for line, after in pairs if after.startswith(": ") and "(Isaac Lab)" not in line]
    assert len(symptoms) >= 20
    joined = re.sub(r'"\s*f?"', "", sources)  # messages over several lines
    for quoted in re.findall(r"`([^`]+)`", "\n".join(symptoms)):
        parts = [part.strip() for part in re.split(r"\.\.\.|\d|'", quoted)] if " " in quoted else []
        assert all(part in joined for part in parts), quoted
