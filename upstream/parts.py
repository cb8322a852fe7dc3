# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The three pull requests that the layout can be proposed as, and how a file is cut down to the first.

1. The method and nothing else: the two-step solver, the independent start, the flow, a network, the actor, the loss.
2. What else a flow can do: starts for pre-trained flows, densities of the action, divergences, flow matching.
3. The trainer, the Hydra configurations, the script and its checks.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable

# The files of the first, by the definitions of each that it leaves out.
FIRST = {
    "flow/__init__.py": (),
    "flow/distribution.py": (
        "ReversibleFlow.action_log_prob",
        "ReversibleFlow.estimate_action_log_prob",
        "ReversibleFlow.kl_divergence",
        "ReversibleFlow.moves_noise_as",
        "ReversibleFlow.propose_memory",
        "ReversibleFlow.with_start",
        "register_kl",
    ),
    "flow/reversible.py": (),
    "flow/solver.py": (),
    "flow/start.py": (),
    "flow/velocity.py": (),
    "modules/actor.py": (
        "ReversibleFlowActor.action_log_prob",
        "ReversibleFlowActor.find_in",
        "ReversibleFlowActor.log_ratio",
    ),
    "modules/inputs.py": ("condition",),
    "modules/sequence.py": (),
    "objectives/pair.py": (),
}
FIRST_TEST = "tests/objectives/test_pair.py"
# In the first the loss has the name that the second gives to what is built on it.
RENAMED = (
    ("objectives.pair", "objectives.genpo"),
    ("objectives/pair", "objectives/genpo"),
    ("PairLoss", "GenPOLoss"),
    ("test_pair_loss", "test_genpo"),
)


def _definitions(tree: ast.Module) -> Iterable[tuple[str, ast.stmt]]:
    """The top level of a file and the members of its classes, by name; a bare call is named by its function."""
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield ast.unparse(node.value).partition("(")[0], node
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node
            members = node.body if isinstance(node, ast.ClassDef) else []
            yield from ((f"{node.name}.{each.name}", each) for each in members if isinstance(each, ast.FunctionDef))


def _cut(text: str, nodes: Iterable[ast.stmt]) -> str:
    """The text without these statements, their decorators and the blank lines before them."""
    lines = text.splitlines(keepends=True)
    for node in nodes:
        begin = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))]) - 1
        while begin and not lines[begin - 1].strip():
            begin -= 1
        lines[begin : node.end_lineno] = [""] * ((node.end_lineno or begin) - begin)
    return "".join(lines)


def without(text: str, names: Collection[str], package: str, modules: Collection[str]) -> str:
    """Removes definitions, and what only they needed.

    Imports that nothing uses any more go too, entries of ``__all__`` that nothing defines, and paragraphs of docstrings
    that speak of what is gone.

    Args:
        text (str): a file of the package.
        names (collection of str): functions, classes, methods (``Class.method``) and bare calls at the top level.
        package (str): the name of the package.
        modules (collection of str): those of its modules that stay, such as ``torchrl_genpo.flow.start``.

    Raises:
        ValueError: if a name is not there.
    """
    found = dict(_definitions(ast.parse(text)))
    if missing := set(names) - found.keys():
        raise ValueError(f"There is no {', '.join(sorted(missing))} any more: look what the first part leaves out now.")
    text = _cut(text, (found[name] for name in names))
    gone = {name.rpartition(".")[2] for name in names}
    roles = re.compile(rf":\w+:`[\w.~]*\b({'|'.join(gone)})`") if gone else re.compile("(?!)")
    text = "\n\n".join(each for each in text.split("\n\n") if '"""' in each or not roles.search(each))
    tree = ast.parse(text)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    rest = _cut(text, imports)
    for node in reversed(imports):
        is_left_out = (
            isinstance(node, ast.ImportFrom) and str(node.module).startswith(package) and node.module not in modules
        )
        kept = [each for each in node.names if re.search(rf"\b{(each.asname or each.name).partition('.')[0]}\b", rest)]
        kept = [] if is_left_out else kept
        if len(kept) < len(node.names) and getattr(node, "module", "") != "__future__":
            node.names = kept
            text = _replace(text, node, ast.unparse(node) + "\n" if kept else "")
    bound = {each.asname or each.name for node in imports for each in node.names} | {
        target.id for node in ast.parse(text).body if isinstance(node, ast.Assign) for target in node.targets
    }
    bound |= {name for name, _ in _definitions(ast.parse(text))}
    exported = re.search(r"^__all__ = \[[^\]]*\]", text, re.MULTILINE)
    if exported:
        names = [name for name in ast.literal_eval(exported[0].partition("= ")[2]) if name in bound]
        text = text.replace(exported[0], f"__all__ = {names!r}".replace("'", '"'))
    return text


def docstrings(text: str) -> list[str]:
    """The docstrings of a file, as they stand there."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    return [ast.get_docstring(node, clean=False) or "" for node in nodes]


def _replace(text: str, node: ast.stmt, new: str) -> str:
    lines = text.splitlines(keepends=True)
    lines[node.lineno - 1 : node.end_lineno] = [new]
    return "".join(lines)
