"""The shape of the code: imports point one way, packages and files stay small, stages are the workflow's commands."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from deop.cli import STAGES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "deop"
ORDER = (
    "errors",
    "utils",
    "settings",
    "data",
    "jobs",
    "models",
    "methods",
    "training",
    "evaluation",
    "reporting",
    "api",
    "demo",
    "stages",
    "tools",
    "cli",
)
"""Parts of ``deop``. Each may import from itself and from those before it."""
MOST_LINES = 400
LARGEST_SHARE = 0.2
LIGHT = ("settings", "jobs")
"""Packages that load without torch: the Snakefile builds a plan each time it is read."""


class Import(NamedTuple):
    """One import of a module of ``deop`` by another."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.imported}"


def module_name(path: Path) -> str:
    """``deop.models.clip`` of ``deop/models/clip.py``, ``deop.models`` of ``deop/models/__init__.py``."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def part_of(module: str) -> str:
    """``models`` of ``deop.models.clip``; ``cli`` of ``deop.cli``; nothing of ``deop`` itself."""
    return ".".join(module.split(".")[1:2])


def nodes_at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, those of functions as well, but not what is under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield other
                yield from nodes_at_run_time(other)
        else:
            yield node
            yield from nodes_at_run_time(node)


def imports_of(module: str, source: str) -> Iterator[Import]:
    """The modules of ``deop`` that ``module`` imports, and where."""
    for node in nodes_at_run_time(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: a relative import; write it out"
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else str(node.module) for name in within]
        for name in dict.fromkeys(names):
            if name.split(".")[0] == PACKAGE.name:
                yield Import(module, name, node.lineno)


IMPORTS = [found for module, path in FILES.items() for found in imports_of(module, path.read_text())]


def backward(imports: list[Import]) -> list[str]:
    """The imports that go against :data:`ORDER`."""
    wrong = []
    for found in imports:
        importer, imported = part_of(found.importer), part_of(found.imported)
        if imported and ORDER.index(imported) > ORDER.index(importer):
            wrong.append(f"{found}, but {importer} comes before {imported}")
    return wrong


def test_every_part_has_a_place_in_the_order() -> None:
    # deop itself and `python -m deop` are entrances.
    parts = {part_of(module) for module in FILES} - {"", "__main__"}
    assert parts == set(ORDER)


def test_imports_point_one_way() -> None:
    entrances = {"deop", "deop.__main__"}
    wrong = backward([found for found in IMPORTS if found.importer not in entrances])
    assert not wrong, "\n" + "\n".join(wrong)


def cycle_of(imports: list[Import]) -> list[str]:
    """The imports by which a module imports itself in the end; none if there is no such module."""
    graph: dict[str, set[str]] = {}
    for found in imports:
        graph.setdefault(found.importer, set()).add(found.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        edges = {(found.importer, found.imported): found for found in imports}
        # graphlib goes from what is imported to what imports it.
        return [str(edges[importer, imported]) for imported, importer in pairwise(error.args[1])]
    return []


def test_there_is_no_import_cycle() -> None:
    cycle = cycle_of(IMPORTS)
    assert not cycle, "\n" + "\n".join(cycle)


def test_imports_in_functions_count_and_those_for_types_do_not() -> None:
    """The checks above see what they are meant to see."""
    source = """
from typing import TYPE_CHECKING
from deop.errors import DeopError
if TYPE_CHECKING:
    from deop.stages.evaluate import run
def late():
    from deop.stages import table
    import deop.tools.doctor
"""
    found = list(imports_of("deop.models.clip", source))
    assert [(one.imported, one.line) for one in found] == [
        ("deop.errors", 3),
        ("deop.stages.table", 7),
        ("deop.tools.doctor", 8),
    ]
    assert backward(found) == [
        "deop.models.clip, line 7, imports deop.stages.table, but models comes before stages",
        "deop.models.clip, line 8, imports deop.tools.doctor, but models comes before tools",
    ]


def test_a_cycle_is_named() -> None:
    there, back = Import("deop.jobs.plan", "deop.jobs.job", 3), Import("deop.jobs.job", "deop.jobs.plan", 5)
    assert set(cycle_of([there, back, Import("deop.jobs.plan", "deop.errors", 1)])) == {str(there), str(back)}


def test_settings_and_jobs_load_without_torch() -> None:
    light = [module for module in FILES if part_of(module) in LIGHT]
    code = (
        f"import importlib, sys\nfor module in {light}:\n    importlib.import_module(module)\n"
        "    if 'torch' in sys.modules: sys.exit(f'{module} loads torch')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_no_package_has_more_than_a_fifth_of_the_code() -> None:
    sizes = Counter()
    for module, path in FILES.items():
        sizes[part_of(module)] += lines(path)
    most = LARGEST_SHARE * sizes.total()
    large = [f"deop.{part}: {size} of {sizes.total()} lines" for part, size in sizes.items() if size > most]
    assert not large, "\n" + "\n".join(large)


def test_no_file_is_too_long() -> None:
    files = [path for folder in ("src", "tests", "workflow") for path in (ROOT / folder).rglob("*.py")]
    long = [f"{path.relative_to(ROOT)}: {lines(path)} lines" for path in files if lines(path) > MOST_LINES]
    assert not long, f"split what is longer than {MOST_LINES} lines:\n" + "\n".join(sorted(long))


def test_stages_are_the_commands_of_the_workflow() -> None:
    modules = {
        path.stem for path in (PACKAGE / "stages").iterdir() if path.stem not in ("__init__", "__pycache__")
    }
    assert modules == set(STAGES)
