"""The catalogue of the archives that the paper's datasets come from, and whether their files are all there.

The planner reads it too, so it imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from deop.errors import unknown, validated
from deop.settings.downloads import CatalogueEntry

CATALOGUE = Path(__file__).with_name("sources.yaml")


def find_entry(
    name: str,
    changes: Mapping[str, Any] | None = None,
    source: str = "config",
    at: tuple[str, ...] = ("data", "sources"),
) -> CatalogueEntry:
    """The entry ``name`` of the catalogue with ``changes`` of some of its fields.

    Args:
        changes: found in ``source`` under the keys ``at`` and ``name``.

    Raises:
        ConfigError: no such entry, or a change that is not valid.
    """
    entries = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    if name not in entries:
        raise unknown(f"{source}: {'.'.join(at)}", "source", name, entries)
    return validated(CatalogueEntry, entries[name] | dict(changes or {}), source, (*at, name))


def matches(root: Path, pattern: str) -> Iterator[Path]:
    """The files under ``root`` that match a pattern of ``holds``; links count as their targets."""
    return _matches(root, PurePosixPath(pattern).parts)


def _matches(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    first, *rest = parts
    if "*" not in first:
        path = folder / first
        if rest:
            yield from _matches(path, tuple(rest))
        elif path.is_file():
            yield path
        return
    try:
        found = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with found:
        for entry in found:
            # names that begin with a dot are those of systems and tools: .DS_Store, ._x.jpg, .nfs0001
            if entry.name.startswith(".") or not fnmatchcase(entry.name, first):
                continue
            if not rest and entry.is_file():
                yield Path(entry.path)
            elif rest and entry.is_dir():
                yield from _matches(Path(entry.path), tuple(rest))


def count(holds: Mapping[str, int], root: Path) -> dict[str, int]:
    """How many files there are of each pattern."""
    return {pattern: sum(1 for _ in matches(root, pattern)) for pattern in holds}


def differences(holds: Mapping[str, int], counts: Mapping[str, int]) -> str:
    """Wrong counts in words; empty if all are right."""
    return "; ".join(
        f"{pattern}: {counts[pattern]:,} of {expected:,} files"
        for pattern, expected in holds.items()
        if counts[pattern] != expected
    )
