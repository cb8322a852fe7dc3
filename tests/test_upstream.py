"""The layout as TorchRL's source tree: names follow, files of a clone are edited once, and the result imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "upstream"))
import layout
import parts

ROOT = Path(__file__).parents[1]
IMPORTS = """
import pathlib, sys
import torchrl
from torchrl.modules import IndependentStart, ReversibleFlowActor, VelocityMLP
from torchrl.objectives import FlowMatchingLoss, GenPOLoss
from torchrl.trainers.algorithms import GenPOTrainer
from torchrl.trainers.algorithms.configs import GenPOLossConfig, GenPOTrainerConfig
assert pathlib.Path(torchrl.__file__).is_relative_to(sys.argv[1])
assert GenPOLoss.__module__ == "torchrl.objectives.genpo"
assert not any(name.startswith("torchrl_genpo") for name in sys.modules)
"""


def test_names_follow_into_code_doctests_and_prose():
    assert layout.rewrite("from torchrl_genpo import (\n    GenPOLoss,\n    VelocityMLP,\n)\n") == (
        "from torchrl.objectives import GenPOLoss\nfrom torchrl.modules import VelocityMLP\n"
    )
    assert layout.rewrite("    >>> from torchrl_genpo import VelocityMLP") == (
        "    >>> from torchrl.modules import VelocityMLP"
    )
    assert layout.rewrite("from torchrl_genpo.flow.solver import PairSolver") == (
        "from torchrl.modules.flow.solver import PairSolver"
    )
    assert layout.rewrite("    >>> from torchrl_genpo.training import GenPOTrainer") == (
        "    >>> from torchrl.trainers.algorithms import GenPOTrainer"
    )
    assert layout.rewrite(":class:`~torchrl_genpo.modules.RunningNormalizer`") == (
        ":class:`~torchrl.modules.RunningNormalizer`"
    )
    assert layout.rewrite(":class:`~torchrl_genpo.GenPOLoss`") == ":class:`~torchrl.objectives.GenPOLoss`"


WHOLE = '''"""A file."""

from __future__ import annotations

import math

from ours.far import far
from ours.near import near

__all__ = ["A", "b"]


class A:
    """First.

    Then see :meth:`gone`.

    Last.
    """

    def kept(self):
        return near()

    @property
    def gone(self):
        return far(math.pi)


def b():
    return 2


register(A)(b)
'''
CUT = '''"""A file."""

from __future__ import annotations

from ours.near import near

__all__ = ["A"]


class A:
    """First.

    Last.
    """

    def kept(self):
        return near()
'''


def test_a_file_is_cut_down_with_all_that_only_the_rest_needed():
    cut = parts.without(WHOLE, ["A.gone", "b", "register"], "ours", ["ours.near"])
    assert [line for line in cut.splitlines() if line] == [line for line in CUT.splitlines() if line]
    with pytest.raises(ValueError, match=r"no A\.lost any more"):
        parts.without(WHOLE, ["A.lost"], "ours", [])


def test_a_name_without_a_place_upstream_is_an_error():
    with pytest.raises(KeyError, match="EulerActor"):
        layout.rewrite("from torchrl_genpo.modules import EulerActor")


def test_a_line_that_is_not_where_it_was_is_an_error():
    with pytest.raises(ValueError, match="trainers"):
        layout.insert("index", "    trainers\n", "    genpo\n")
    with pytest.raises(ValueError, match="no __all__"):
        layout.export("x = 1\n", {"torchrl.objectives.genpo": ("GenPOLoss",)})


def test_the_tree_imports_as_torchrl_and_a_clone_is_edited_once(tmp_path):
    for name, (line, _) in layout.INSERTIONS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"before\n{line}after\n")
    (tmp_path / ".git").mkdir()
    base = tmp_path / "test" / layout.LOSS_TEST_BASE
    base.parent.mkdir(parents=True)
    base.write_text("TorchRL's own")
    written = layout.lay_out(tmp_path)
    texts = {path: (tmp_path / path).read_text() for path in written}
    assert layout.lay_out(tmp_path) == written
    assert {path: (tmp_path / path).read_text() for path in written} == texts
    assert base.read_text() == "TorchRL's own"
    for name, (line, new) in layout.INSERTIONS.items():
        assert texts[Path(name)] == f"before\n{line}{new}after\n"
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
