"""Settings of the stage ``table``, and wording that tables, figures and claims share."""

from __future__ import annotations

from collections.abc import Iterable

from deop.settings.base import Settings

MIOU = {
    "occurring": "classes that occur in the ground truth or in the prediction",
    "ground_truth": "classes that occur in the ground truth",
}
COUNTS = {
    "FPS": "images a second, one at a time, from the median latency of systems that take turns in one run",
    "passes": "how many pictures of an image CLIP is shown (mean over the images)",
}
"""Columns that are no fractions, and what they count."""


class TableDataset(Settings):
    """A group of columns: the dataset measured on, and the paper's, in whose place it stands if it is another.

    ``images`` says what its images are, ``place`` which of the paper's datasets it is or stands for, if any.
    ``trained_on`` is the dataset that systems were trained on, if that is another.
    """

    name: str
    images: str
    paper: str | None = None
    paper_title: str | None = None
    place: str
    stand_in: bool = False
    miou: str
    trained_on: str | None = None


class SystemRow(Settings):
    """A row. ``reported`` maps the paper's columns (``coco_stuff.pAcc``) to percentages.

    Without an experiment it is a system that is not implemented here, of which nothing is measured.
    """

    label: str
    experiment: str | None = None
    decoupled: bool | None = None
    reported: dict[str, float]


class TableSettings(Settings):
    """What a table shows. ``artifacts`` are all outputs behind it, of which it sums the wall time."""

    caption: str
    profile: str
    seeds: tuple[int, ...]
    datasets: tuple[TableDataset, ...]
    metrics: tuple[str, ...]
    rows: tuple[SystemRow, ...]
    artifacts: tuple[str, ...] = ()


def deviates(table: TableSettings, metric: str) -> bool:
    """Whether a metric has a deviation over seeds. Speed is measured once, on the networks of the first."""
    return len(table.seeds) > 1 and metric != "FPS"


def listed(words: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def distinct(words: Iterable[str]) -> str:
    """The same of words each of which is named once."""
    return listed(list(dict.fromkeys(words)))


def described(datasets: tuple[TableDataset, ...]) -> str:
    """What kinds of images these are."""
    return distinct(dataset.images for dataset in datasets)
