"""The class lists of public datasets: CSV files in ``classes/``, whose README names where each comes from."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from deop.data.segmentation import LabelledClass
from deop.dataset_settings import Names

FOLDER = Path(__file__).parent / "classes"


class TableRow(NamedTuple):
    """One class: its id in the owners' label maps, the owners' name, the name as prompts have it."""

    raw_id: int
    original: str
    cleaned: str
    kind: str
    unseen: bool


def read_table(name: str) -> list[TableRow]:
    """The rows of ``classes/<name>.csv`` in label order."""
    with open(FOLDER / f"{name}.csv", encoding="utf-8", newline="") as file:
        return [
            TableRow(
                int(row["raw_id"]), row["original"], row["cleaned"], row["kind"], bool(int(row["unseen"]))
            )
            for row in csv.DictReader(file)
        ]


def labelled_classes(name: str, names: Names) -> tuple[LabelledClass, ...]:
    """The classes of a table under their ``original`` or ``cleaned`` names."""
    return tuple(
        LabelledClass(name=getattr(row, names), kind=row.kind, unseen=row.unseen, raw_id=row.raw_id)
        for row in read_table(name)
    )
