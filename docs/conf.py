# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The documentation site: ``sphinx-build -W --keep-going -b html docs docs/_build/html``.

The reference is made from what the package exports: every module's ``__all__``, each name on one page. The pages of
measurements are the reports in ``benchmarks/results``.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import sphinx.util.inspect
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
warnings.filterwarnings("ignore")  # of the packages that are imported; Sphinx's own are logged

import torchrl_genpo  # noqa: E402

project = "torchrl_genpo"
author = "the torchrl_genpo authors"
copyright = f"{author}, MIT licence"
version = release = torchrl_genpo.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "sphinx-mathjax-offline",  # formulas without a network
    "sphinx_copybutton",
    "sphinx_design",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]

html_theme = "pydata_sphinx_theme"
html_title = f"torchrl_genpo {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "logo": {"text": "torchrl_genpo"},
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}
# pages of the top level have nothing beside them
html_sidebars = {path.stem: [] for path in Path(__file__).parent.glob("*.md") if path.stem != "measurements"}
html_context = {"default_mode": "auto"}
html_show_sourcelink = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autosummary_generate = True
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
doctest_test_doctest_blocks = ""  # the pages' own; those of docstrings are pytest's
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!torchrl_genpo\.).*"),  # other projects' names resolve only with a network
    (r"py:.*", r"torchrl_genpo\.(.*\._|deploy\.|modules\.export\.|training\.ranks\.).*"),  # not in the reference
    (r"py:.*", r"torchrl_genpo\.envs\.xhand\.(nuts\.check_nut|settings\.S)"),  # in the types of settings
    (r"py:class", r"torchrl_genpo\.config\.fields\.Options"),  # what settings are made of
]

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "tensordict": ("https://docs.pytorch.org/tensordict/stable", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
    "torchrl": ("https://docs.pytorch.org/rl/stable", None),
}
intersphinx_timeout = 5
# without a network there are no links to other projects, and that is no error
logging.getLogger("sphinx.sphinx.ext.intersphinx").addFilter(
    lambda record: "failed to reach any of the inventories" not in record.getMessage()
)


def _modules(parent: ModuleType) -> list[ModuleType]:
    """Lists a package, its public modules and the packages in them, as far as they export names."""
    found = [parent]
    for info in pkgutil.iter_modules(parent.__path__, f"{parent.__name__}."):
        is_public = not info.name.rpartition(".")[2].startswith("_")
        if is_public and (info.ispkg or parent is torchrl_genpo):
            module = importlib.import_module(info.name)
            found += _modules(module) if info.ispkg else [module]
    return [module for module in found if getattr(module, "__all__", None)]


def _documented_constant(package: str, name: str) -> str | None:
    """Returns the full name of a constant where it is defined and described, if it is."""
    for module in sorted(sys.modules):
        if module == package or module.startswith(f"{package}."):
            analyzer = ModuleAnalyzer.for_module(module)
            if ("", name) in analyzer.find_attr_docs():
                return f"{module}.{name}"
    return None


def _inventory() -> tuple[dict[str, dict[str, list[str]]], dict[str, str]]:
    """Lists what is on the page of each module, and maps every way to say a name to the documented one."""
    pages: dict[str, dict[str, list[str]]] = {}
    owners: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for module in _modules(torchrl_genpo):
        page: dict[str, list[str]] = {"classes": [], "functions": [], "constants": [], "modules": []}
        for name in module.__all__:
            value, full = getattr(module, name), f"{module.__name__}.{name}"
            is_class, is_function = inspect.isclass(value), inspect.isroutine(value)
            if is_class or is_function:
                owner = owners.setdefault(id(value), full)
                canonical = f"{value.__module__}.{value.__qualname__}"
                aliases |= {name: owner, full: owner, canonical: owner}
                if owner == full:
                    page["classes" if is_class else "functions"].append(full)
            elif (constant := _documented_constant(module.__name__, name)) and constant not in aliases.values():
                aliases |= {name: constant, full: constant}
                page["constants"].append(constant)
        pages[module.__name__] = page
    for name in pages:
        parent = name.rpartition(".")[0]
        if parent in pages:
            pages[parent]["modules"].append(name)
    return pages, aliases


def _write_result_pages() -> None:
    """Writes a page for every report of ``benchmarks/results``, with the picture of the same name."""
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    reports = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    for page in folder.glob("*.md"):
        page.unlink()
    titles = [report.read_text().splitlines()[0] for report in reports]
    for report, title in zip(reports, titles, strict=True):
        if titles.count(title) > 1:
            title += f" ({report.stem})"
        source = f"../../benchmarks/results/{report.name}"
        text = f"{title}\n\n```{{include}} {source}\n:start-line: 1\n:relative-images:\n```\n"
        picture = report.with_suffix(".png")
        if picture.exists() and picture.name not in report.read_text():
            text += f"\n![{report.stem}]({source.removesuffix('md')}png)\n"
        (folder / report.name).write_text(text)


_write_result_pages()
PAGES, ALIASES = _inventory()
autosummary_context = {"pages": PAGES}


def _resolve(app: Sphinx, env: Any, node: Any, contnode: Any) -> Any:
    """Links a name that is said in another way than on its page, by its file, its package or alone."""
    if node.get("refdomain") != "py":
        return None
    owner, _, member = node["reftarget"], "", ""
    while owner not in ALIASES and "." in owner:
        owner, _, last = owner.rpartition(".")
        member = f".{last}{member}"
    target = ALIASES.get(owner, "") + member
    entry = env.domains["py"].objects.get(target)
    if entry is None:
        return None
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, target)


def _signature(app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str, returns: str) -> Any:
    """Returns the signature of a class whose metaclass hides it, as TensorDict's modules and TorchRL's losses do."""
    if what != "class" or signature != "(*args, **kwargs)":
        return None
    found = sphinx.util.inspect.signature(value.__init__, bound_method=True)
    return sphinx.util.inspect.stringify_signature(found, unqualified_typehints=True, short_literals=True), returns


def _link_result_pages(app: Sphinx, name: str, source: list[str]) -> None:
    """Lets links to reports, which a reader of the sources can follow, lead to their pages on the site."""
    source[0] = re.sub(r"\]\(((?:\.\./)*)\.\./benchmarks/results/(\w+\.md)", r"](\1results/\2", source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _link_result_pages)
    app.connect("autodoc-process-signature", _signature)
    app.connect("missing-reference", _resolve)
