"""The class lists of public datasets: CSV files in ``classes/``, whose README names where each comes from."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deop.data.card import LabelledClass
from deop.settings.datasets import Spelling

FOLDER = Path(__file__).parent / "classes"


class ListedClass(NamedTuple):
    """One class: its id in the owners' label maps, the owners' name, the name as prompts have it.

    ``detectron2`` is that library's name, in lists that have such a column.
    """

    raw_id: int
    original: str
    cleaned: str
    kind: str
    unseen: bool
    detectron2: str | None = None


def read_class_list(name: str) -> list[ListedClass]:
    """The rows of ``classes/<name>.csv`` in label order."""
    with open(FOLDER / f"{name}.csv", encoding="utf-8", newline="") as file:
        return [
            ListedClass(
                int(row["raw_id"]),
                row["original"],
                row["cleaned"],
                row["kind"],
                bool(int(row["unseen"])),
                row.get("detectron2"),
            )
            for row in csv.DictReader(file)
        ]


def labelled_classes(name: str, names: Spelling) -> tuple[LabelledClass, ...]:
    """The classes of a list under the names of one of its columns: ``original``, ``cleaned`` or ``detectron2``."""
    return tuple(
        LabelledClass(name=getattr(row, names), kind=row.kind, unseen=row.unseen, raw_id=row.raw_id)
        for row in read_class_list(name)
    )


def find_class_list(classes: Sequence[LabelledClass]) -> str | None:
    """The list that has these classes: in this order, with these ids, each under a name of any column; or None."""
    for path in sorted(FOLDER.glob("*.csv")):
        rows = read_class_list(path.stem)
        if [row.raw_id for row in rows] == [entry.raw_id for entry in classes] and all(
            entry.name in (row.original, row.cleaned, row.detectron2)
            for row, entry in zip(rows, classes, strict=True)
        ):
            return path.stem
    return None
