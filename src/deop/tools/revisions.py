"""Reminds of stages whose code changed while their revision (:mod:`deop.jobs.revisions`) did not.

``python -m deop.tools.revisions`` compares the code that each stage runs with the code that was recorded for its
revision. The code of a stage is its module and all modules of this package that it imports, directly or not.
Docstrings, comments and layout do not count, nor do data files. Only the source is read, so the outcome depends
neither on the machine nor on its version of Python.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from deop.errors import DeopError
from deop.jobs.artifacts import write_json
from deop.jobs.revisions import REVISIONS

LOADED_BY_NAME = {"method_class": "deop.methods"}
"""Functions that import a module of a package by its name: who uses the function counts as using the whole package."""
COMMAND = "python -m deop.tools.revisions"
SHOWN = 5
"""How many changed modules of a stage a message lists."""


class Change(NamedTuple):
    """A stage that differs from its record.

    stage: its name.
    now, recorded: its revisions; None if it has none.
    modules: the modules of its code that changed, or are new in it.
    """

    stage: str
    now: int | None
    recorded: int | None
    modules: list[str]

    @property
    def needs_decision(self) -> bool:
        """Whether the code changed under the same revision."""
        return bool(self.modules) and self.now == self.recorded

    def __str__(self) -> str:
        names = ", ".join(self.modules[:SHOWN])
        more = f" and {len(self.modules) - SHOWN} more" if len(self.modules) > SHOWN else ""
        if self.now == self.recorded:
            return f"{self.stage}: revision still {self.now}, but the code changed: {names}{more}"
        if self.recorded is None:
            return f"{self.stage}: not recorded yet"
        if self.now is None:
            return f"{self.stage}: recorded, but no longer a stage"
        return f"{self.stage}: recorded with revision {self.recorded}, now {self.now}"


class StageCode:
    """The code of the stages, and the record of it.

    Args:
        package: the folder of the package ``deop``.
        revisions: the revision of each stage.
    """

    def __init__(self, package: Path, revisions: dict[str, int]) -> None:
        self.record = package / "jobs" / "stage_code.json"
        self._package, self._revisions = package, revisions
        self._paths = dict(_modules(package))
        self._trees = {name: _tree(path) for name, path in self._paths.items()}

    def modules_of(self, stage: str) -> list[str]:
        """The modules that a stage runs, its own among them, sorted."""
        found: set[str] = set()
        waiting = [f"{self._package.name}.stages.{stage}"]
        while waiting:
            module = waiting.pop()
            if module not in found:
                found.add(module)
                waiting += self._imports(module)
        return sorted(found)

    def changes(self) -> list[Change]:
        """The stages that differ from the record.

        Raises:
            DeopError: the record cannot be read.
        """
        recorded = self._read()
        found = []
        for stage in sorted({*self._revisions, *recorded["stages"]}):
            now, before = self._revisions.get(stage), recorded["stages"].get(stage)
            modules = self.modules_of(stage) if now is not None else []
            changed = [name for name in modules if recorded["modules"].get(name) != self._fingerprint(name)]
            if changed or now != before:
                found.append(Change(stage, now, before, changed))
        return found

    def check(self) -> None:
        """Does nothing if the record is up to date.

        Raises:
            DeopError: what changed, and what to do.
        """
        changes = self.changes()
        if not changes:
            return
        lines = ["stages differ from the record of their code:", *(f"  {change}" for change in changes)]
        if any(change.needs_decision for change in changes):
            lines += [
                "If a stage now gives other results for the same settings and inputs, raise its number in "
                f"{self._package.name}/jobs/revisions.py and run `{COMMAND} --record`.",
                f"If its results stay the same, run `{COMMAND} --record --same-results`.",
            ]
        else:
            lines.append(f"Run `{COMMAND} --record`.")
        raise DeopError("\n".join(lines))

    def write(self, *, same_results: bool) -> None:
        """Records the code and the revisions as they are.

        Args:
            same_results: stages whose code changed under the same revision still give the same results.

        Raises:
            DeopError: there are such stages and ``same_results`` is false, or a revision is lower than before.
        """
        try:
            changes = self.changes()
        except DeopError:
            if not same_results:
                raise
            changes = []
        for change in changes:
            if None not in (change.now, change.recorded) and change.now < change.recorded:
                raise DeopError(f"not recorded: {change}; numbers only go up")
        if not same_results and any(change.needs_decision for change in changes):
            self.check()
        modules = {name for stage in self._revisions for name in self.modules_of(stage)}
        write_json(
            self.record,
            {
                "stages": dict(sorted(self._revisions.items())),
                "modules": {name: self._fingerprint(name) for name in sorted(modules)},
            },
        )

    def _read(self) -> dict[str, Any]:
        if not self.record.exists():
            return {"stages": {}, "modules": {}}
        try:
            return json.loads(self.record.read_text(encoding="utf-8"))
        except ValueError:
            raise DeopError(
                f"{self.record} is not JSON, perhaps after a merge. Check what changed in the stages, then run "
                f"`{COMMAND} --record --same-results`"
            ) from None

    def _fingerprint(self, module: str) -> str:
        return hashlib.sha256(_canonical(self._trees[module]).encode()).hexdigest()[:12]

    def _imports(self, module: str) -> Iterator[str]:
        """The modules of the package that a module imports, anywhere in its code."""
        is_package = self._paths[module].name == "__init__.py"
        package = module if is_package else module.rpartition(".")[0]
        named = {package}  # which is imported before it
        for node in ast.walk(self._trees[module]):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                named |= {f"{origin}.{alias.name}" for alias in node.names}
                for alias in node.names:
                    if alias.name in LOADED_BY_NAME:
                        prefix = f"{LOADED_BY_NAME[alias.name]}."
                        named |= {name for name in self._paths if name.startswith(prefix)}
        for name in named:
            while name:  # the packages that it lies in are imported too
                if name in self._paths:
                    yield name
                name = name.rpartition(".")[0]


def _modules(package: Path) -> Iterator[tuple[str, Path]]:
    """Names and files of all modules of a package."""
    for path in package.rglob("*.py"):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _tree(path: Path) -> ast.Module:
    """The syntax of a module without docstrings, and without what only type checkers read."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list):
                setattr(node, name, [each for each in statements if not _is_prose(each)])
    return tree


def _is_prose(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _canonical(node: Any) -> str:
    """Syntax as text. Unlike that of :func:`ast.dump`, it is the same in all versions of Python."""
    if isinstance(node, ast.Constant):
        return repr(node.value)
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
    inside = ",".join(f"{name}={_canonical(value)}" for name, value in fields if name != "ctx")
    return f"{type(node).__name__}({inside})"


def main() -> None:
    """Checks the record, or makes it."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="record the code and the revisions as they are")
    parser.add_argument(
        "--same-results", action="store_true", help="with --record: changed code gives the same results"
    )
    arguments = parser.parse_args()
    if arguments.same_results and not arguments.record:
        parser.error("--same-results needs --record")
    code = StageCode(Path(__file__).parents[1], REVISIONS)
    try:
        if arguments.record:
            code.write(same_results=arguments.same_results)
        else:
            code.check()
    except DeopError as error:
        sys.exit(f"deop: {error}")


if __name__ == "__main__":
    main()
