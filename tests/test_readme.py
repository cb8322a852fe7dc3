"""README: its code runs, and its numbers are the committed ones."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
from forks import run_script

ROOT = Path(__file__).parents[1]
PYTHON_VERSIONS = ("3.10", "3.11", "3.12")
README = (ROOT / "README.md").read_text()


def test_the_code_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "block.py").write_text(block)
        code, _ = run_script(tmp_path / "block.py", [], tmp_path / "output.txt")
        assert code == 0, (tmp_path / "output.txt").read_text()


def test_every_row_of_numbers_is_in_the_results():
    results = "\n".join(path.read_text() for path in (ROOT / "benchmarks" / "results").glob("*.md"))
    rows = [line for line in README.splitlines() if line.startswith("|") and re.search(r"\d{3}|\d\.\d", line)]
    assert rows
    for row in rows:
        assert row in results, row


def test_every_decimal_of_a_paragraph_is_in_a_result_that_it_links_to():
    prose = re.sub(r"```.*?```|`[^`]*`|\(https?:[^)]*\)|arXiv [\d.]+", "", README, flags=re.DOTALL)
    found = 0
    for paragraph in prose.split("\n\n"):
        text = re.sub(r"\]\([^)]*\)", "]", paragraph)
        numbers = [] if text.startswith("|") else re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)", text)
        linked = re.findall(r"\((benchmarks/results/\w+\.md)\)", paragraph)
        known = {*re.findall(r"\d+\.\d+", "\n".join((ROOT / path).read_text() for path in linked)), *PYTHON_VERSIONS}
        for number in numbers:
            assert number in known, (number, linked)
            found += 1
    assert found >= 15


def test_every_link_into_the_repository_leads_somewhere():
    targets = re.findall(r"\]\(((?!http)[^)]+)\)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_the_gate_runs_the_test_command_of_the_readme():
    (command,) = re.findall(r"^python -m venv.*pytest$", README, re.MULTILINE)
    gate = (ROOT / ".ci" / "run").read_text()
    for step in ('pip install "torch==2.13.0"', 'pip install -c constraints.txt -e ".[test]"', "pytest"):
        assert step in command and step.replace("install", "install -q") in gate
