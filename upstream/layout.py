# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Lays the parts of this package out as a change of TorchRL's source tree, and tests it there.

    python upstream/layout.py FOLDER --test             # all of it
    python upstream/layout.py FOLDER --part 1 --test    # the smallest pull request; then --part 2, which adds to it

FOLDER is a clone of https://github.com/pytorch/rl, where ``git diff`` then shows the pull request, or a new folder,
into which the installed TorchRL is copied first. ``docs/upstream.md`` says what goes where and why, ``parts.py`` what
the parts are.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from parts import FIRST, FIRST_TEST, RENAMED, docstrings, without

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / "upstream" / "tree"  # files that only TorchRL needs, in its own names
OURS = "torchrl_genpo"

# Our modules, and TorchRL's place for each; of several that fit a name the longest counts.
MODULES = {
    f"{OURS}.flow": "torchrl.modules.flow",
    f"{OURS}.modules.action_scale": "torchrl.modules.tensordict_module.action_scale",
    f"{OURS}.modules.actor": "torchrl.modules.tensordict_module.reversible_flow",
    f"{OURS}.modules.inputs": "torchrl.modules.tensordict_module._inputs",
    f"{OURS}.modules.normalizer": "torchrl.modules.tensordict_module.running_normalizer",
    f"{OURS}.modules.sequence": "torchrl.modules.tensordict_module._policy_steps",
    f"{OURS}.modules.squash": "torchrl.modules.tensordict_module.squash",
    f"{OURS}.objectives": "torchrl.objectives",
    f"{OURS}.training.trainer": "torchrl.trainers.algorithms.genpo",
}
SOURCES = {
    **{f"{OURS}/flow/{path.name}": f"torchrl/modules/flow/{path.name}" for path in (ROOT / OURS / "flow").glob("*.py")},
    f"{OURS}/modules/action_scale.py": "torchrl/modules/tensordict_module/action_scale.py",
    f"{OURS}/modules/actor.py": "torchrl/modules/tensordict_module/reversible_flow.py",
    f"{OURS}/modules/inputs.py": "torchrl/modules/tensordict_module/_inputs.py",
    f"{OURS}/modules/normalizer.py": "torchrl/modules/tensordict_module/running_normalizer.py",
    f"{OURS}/modules/sequence.py": "torchrl/modules/tensordict_module/_policy_steps.py",
    f"{OURS}/modules/squash.py": "torchrl/modules/tensordict_module/squash.py",
    f"{OURS}/objectives/flow_matching.py": "torchrl/objectives/flow_matching.py",
    f"{OURS}/objectives/genpo.py": "torchrl/objectives/genpo.py",
    f"{OURS}/objectives/pair.py": "torchrl/objectives/pair.py",
    f"{OURS}/objectives/reference.py": "torchrl/objectives/reference.py",
    f"{OURS}/training/trainer.py": "torchrl/trainers/algorithms/genpo.py",
}
TESTS = {
    **{
        f"tests/flow/{path.name}": f"test/modules/test_flow_{path.name.removeprefix('test_')}"
        for path in (ROOT / "tests" / "flow").glob("test_*.py")
    },
    "tests/modules/test_actor.py": "test/modules/test_reversible_flow_actor.py",
    "tests/objectives/test_flow_matching.py": "test/objectives/test_flow_matching.py",
    "tests/objectives/test_genpo.py": "test/objectives/test_genpo.py",
    "tests/objectives/test_pair.py": "test/objectives/test_pair_loss.py",
    "tests/training/test_trainer.py": "test/test_genpo_trainer.py",
}
SUFFIXES = (".md", ".py", ".rst", ".sh", ".yaml")
REFERENCE = "docs/source/reference/genpo.rst"
LAST = 3  # the part after which everything is there
LOSS_TEST_BASE = "objectives/_objectives_common.py"  # TorchRL's own where there is one

# The names that TorchRL's packages offer in addition, by package and by the module that defines them.
FLOW_NAMES = (
    "ConsistentStart",
    "IndependentStart",
    "ReversibleFlow",
    "ReversibleSolver",
    "SteeredStart",
    "VelocityMLP",
    "VelocityTransformer",
)
EXPORTS = {
    "torchrl/modules/__init__.py": {
        "torchrl.modules.flow": FLOW_NAMES,
        "torchrl.modules.tensordict_module.action_scale": ("ActionScale",),
        "torchrl.modules.tensordict_module.reversible_flow": ("ReversibleFlowActor",),
        "torchrl.modules.tensordict_module.running_normalizer": ("RunningNormalizer",),
        "torchrl.modules.tensordict_module.squash": ("Squash",),
    },
    "torchrl/objectives/__init__.py": {
        "torchrl.objectives.flow_matching": ("FlowMatchingLoss",),
        "torchrl.objectives.genpo": ("GenPOLoss",),
        "torchrl.objectives.pair": ("PairLoss",),
    },
    "torchrl/trainers/algorithms/__init__.py": {"torchrl.trainers.algorithms.genpo": ("GenPOTrainer",)},
    "torchrl/trainers/algorithms/configs/__init__.py": {
        "torchrl.trainers.algorithms.configs.genpo": (
            "ConsistentStartConfig",
            "FlowMatchingLossConfig",
            "GenPOLossConfig",
            "GenPOTrainerConfig",
            "IndependentStartConfig",
            "ReversibleFlowActorConfig",
            "ReversibleSolverConfig",
            "SteeredStartConfig",
            "VelocityMLPConfig",
            "VelocityTransformerConfig",
        )
    },
}
HOMES = {
    name: package.removesuffix("/__init__.py").replace("/", ".")
    for package, modules in EXPORTS.items()
    for names in modules.values()
    for name in names
}

SMOKE_TEST = (
    "sota-implementations/genpo/genpo.py collector.total_frames=40 collector.frames_per_batch=20 "
    "replay_buffer.storage.max_size=20 replay_buffer.batch_size=10 trainer.total_frames=40 trainer.num_epochs=2"
)
# Files that a clone has and the wheel has not: a line of theirs, and what follows it from now on.
INSERTIONS = {
    "docs/source/reference/index.rst": ("    trainers\n", "    genpo\n"),
    ".github/unittest/linux_sota/scripts/test_sota.py": (
        "commands = {\n",
        f'    "genpo": """python {SMOKE_TEST}\n""",\n',
    ),
}

FOREIGN_HEADER = "# Copyright (c) Meta Platforms, Inc. and affiliates.\n#\n"
OUR_HEADER = "# This source code is licensed under the MIT license found in the\n"
MAIN = '\n\nif __name__ == "__main__":\n    pytest.main([__file__, "--capture", "no", "--exitfirst"])\n'


def rewrite(text: str) -> str:
    """Translates our code or prose into TorchRL's names.

    Raises:
        KeyError: for a public name that has no place in TorchRL.
    """

    def regroup(match: re.Match[str]) -> str:
        """Splits an import from our package into one for each package of TorchRL that its names live in."""
        prefix, names = match[1], [name.strip() for name in match[2].strip("()").split(",") if name.strip()]
        homes = dict.fromkeys(HOMES[name] for name in names)
        return "\n".join(
            f"{prefix}from {home} import {', '.join(name for name in names if HOMES[name] == home)}" for home in homes
        )

    packages = rf"{OURS}(?:\.(?:modules|training))?"  # whose names live in several packages of TorchRL
    text = re.sub(rf"^([ >]*)from {packages} import (\([^)]*\)|.*)$", regroup, text, flags=re.MULTILINE)
    for ours in sorted(MODULES, key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(ours)}\b", MODULES[ours], text)
    text = re.sub(rf"\b{packages}\.(\w+)", lambda match: f"{HOMES[match[1]]}.{match[1]}", text)
    text = text.replace("from ._objectives_common", "from _objectives_common")
    text = text.replace("from .test_pair", "from test_pair_loss")
    return text.replace("``benchmarks/results/", "torchrl-genpo's ``benchmarks/results/")


def source(path: Path) -> str:
    """Returns a file of the package as TorchRL would have it."""
    text = path.read_text()
    if not text.startswith(OUR_HEADER):
        raise ValueError(f"{path} does not begin with the licence header.")
    return FOREIGN_HEADER + rewrite(text)


def test(path: Path) -> str:
    """Returns a file of tests with TorchRL's header and last lines, and with the fixture that seeds each test."""
    text = path.read_text()
    fixture = (ROOT / "tests" / "conftest.py").read_text().partition("import torch\n")[2].rstrip()
    future = "from __future__ import annotations\n"
    docstring, _, code = text.partition(future)
    missing = [f"import {name}\n" for name in ("pytest", "torch") if f"import {name}\n" not in code]
    header = FOREIGN_HEADER + OUR_HEADER + "# LICENSE file in the root directory of this source tree.\n"
    return header + rewrite(docstring + future + "".join(missing) + code).rstrip() + "\n" + fixture + "\n" + MAIN


def export(text: str, modules: dict[str, tuple[str, ...]]) -> str:
    """Adds names to an ``__init__.py``: they are imported just before ``__all__`` and listed in it."""
    if all(f"from {module} import" in text for module in modules):
        return text
    imports = "".join(f"from {module} import {', '.join(names)}\n" for module, names in modules.items())
    names = "".join(f'    "{name}",\n' for names in modules.values() for name in names)
    before, opening, after = text.partition("\n__all__ = [\n")
    if not opening:
        raise ValueError("TorchRL's __init__.py has no __all__ any more: look where its names are offered now.")
    return before + imports + opening + names + after


def insert(text: str, after: str, new: str) -> str:
    """Adds an entry to a file after one of its lines, once."""
    if new in text:
        return text
    if after not in text:
        raise ValueError(f"There is no {after.strip()!r} any more: look where the entry {new.strip()!r} belongs now.")
    return text.replace(after, after + new, 1)


def copy_torchrl(folder: Path) -> None:
    """Copies the installed TorchRL into a folder."""
    installed = importlib.util.find_spec("torchrl")
    if installed is None or installed.origin is None:
        raise ModuleNotFoundError("TorchRL is not installed: pip install torchrl.")
    shutil.copytree(
        Path(installed.origin).parent, folder / "torchrl", ignore=shutil.ignore_patterns("__pycache__", "include")
    )


def first_part() -> dict[str, str]:
    """The files of the smallest pull request, cut down to the method."""
    modules = {f"{OURS}.{name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}" for name in FIRST}
    texts = {TESTS[FIRST_TEST]: test(ROOT / FIRST_TEST)}
    for name, left_out in FIRST.items():
        cut = without((ROOT / OURS / name).read_text(), left_out, OURS, modules)
        texts[SOURCES[f"{OURS}/{name}"]] = FOREIGN_HEADER + rewrite(cut)
    for ours, theirs in RENAMED:
        texts = {name.replace(ours, theirs): text.replace(ours, theirs) for name, text in texts.items()}
    return texts


def reference(text: str, defined: str, part: int) -> str:
    """The page of the reference, of the names that a part has."""
    if part < LAST:
        text = text.partition("Trainer and configurations\n")[0].rpartition("\n\n")[0] + "\n"
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if line.strip() not in HOMES or f"class {line.strip()}(" in defined)


def lay_out(folder: Path, part: int = LAST) -> list[Path]:
    """Writes the change into the folder and returns the paths relative to it. It may be repeated."""
    is_clone = (folder / "test" / LOSS_TEST_BASE).exists() and (folder / ".git").exists()
    if not (folder / "torchrl").exists():
        copy_torchrl(folder)
    if part == 1:
        texts = first_part()
    else:
        texts = {new: source(ROOT / old) for old, new in SOURCES.items()}
        texts |= {new: test(ROOT / old) for old, new in TESTS.items()}
    own = {str(path.relative_to(TREE)): path.read_text() for path in TREE.rglob("*.*") if path.suffix in SUFFIXES}
    if part == LAST:
        texts |= own
    else:
        texts = {name: text for name, text in texts.items() if "trainer" not in name}
    defined = "\n".join(texts.values())
    texts[REFERENCE] = reference(own[REFERENCE], defined, part)
    if not is_clone:
        texts[f"test/{LOSS_TEST_BASE}"] = (ROOT / "tests" / LOSS_TEST_BASE).read_text()
    for name, modules in EXPORTS.items():
        there = {module: tuple(n for n in names if f"class {n}(" in defined) for module, names in modules.items()}
        there = {module: names for module, names in there.items() if names}
        if there:
            texts[name] = export((folder / name).read_text(), there)
    for name, (after, new) in INSERTIONS.items():
        if (folder / name).exists() and (part == LAST or name.startswith("docs")):
            texts[name] = insert((folder / name).read_text(), after, new)
    for name, text in texts.items():
        if OURS in text:
            raise ValueError(f"{name} still speaks of {OURS}.")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return sorted(map(Path, texts))


def count(folder: Path, written: list[Path]) -> str:
    """Says how many lines the new files of Python have, and how many of them are code."""
    texts = [(folder / path).read_text() for path in written if path.suffix == ".py" and path.name != "__init__.py"]
    texts = [text for text in texts if OUR_HEADER in text]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    prose = [line.strip() for text in texts for doc in docstrings(text) for line in doc.splitlines()]
    code = sum(bool(line) and not line.startswith("#") for line in lines) - sum(map(bool, prose))
    return f"{len(texts)} new files of Python with {len(lines):,} lines, of which {code:,} are code."


def run_tests(folder: Path, written: list[Path]) -> str:
    """Runs the copied tests, doctests and the script's smoke test with the folder's TorchRL, and returns a report."""
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    tests = [str(path) for path in written if path.parts[0] == "test" and path.name.startswith("test_")]
    library = [str(path) for path in written if path.parts[0] == "torchrl" and path.name != "__init__.py"]
    check = "import torchrl, pathlib, sys; sys.exit(not pathlib.Path(torchrl.__file__).is_relative_to(sys.argv[1]))"
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    if importlib.util.find_spec("xdist"):
        pytest += ["-n", "auto", "--dist", "worksteal"]
    report = []
    commands = [
        ("TorchRL is the folder's", ["-c", check, str(folder)]),
        (f"{len(tests)} files of tests, doctests", [*pytest, "--doctest-modules", *tests, *library]),
    ]
    if any(path.name == "run_genpo.sh" for path in written):
        smoke = [str(folder / SMOKE_TEST.split()[0]), *SMOKE_TEST.split()[1:]]
        commands.append(("smoke test of sota-implementations/genpo", smoke))
    for name, command in commands:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:  # for what a run writes
            cwd = scratch if command[0].endswith(".py") else folder
            result = subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(f"{result.stdout}\n{result.stderr}\n{name} failed: {' '.join(command)}")
        counts = re.findall(r"\d+ passed", result.stdout)
        report.append(f"| {name} | {counts[-1] if counts else 'passed'} | {time.perf_counter() - begin:.0f} |")
    return "\n".join(["| run with the TorchRL of the folder | result | seconds |", "|---|---|---:|", *report])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", type=int, choices=(1, 2, LAST), default=LAST, help="of three, with those before it")
    parser.add_argument("--test", action="store_true", help="run the copied tests there")
    parser.add_argument("--record", action="store_true", help="and write the outcome to benchmarks/results")
    options = parser.parse_args()
    folder = options.folder.resolve()
    written = lay_out(folder, options.part)
    print("\n".join(map(str, written)))
    print(size := count(folder, written))
    if options.test or options.record:
        report = run_tests(folder, written)
        print(report)
        if options.record:
            sys.path.append(str(ROOT))
            from benchmarks._lib.origin import RESULTS, origin

            title = f"# The upstream tree's test run, part {options.part} of {LAST}"
            lines = [title, "", size, "", report, *origin()]
            name = "upstream" if options.part == LAST else f"upstream_part_{options.part}"
            (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
