"""Settings of the stage ``table``, and wording shared by tables, figures and claims."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from deop.settings.base import Settings

MIOU = {
    "occurring": "classes that occur in the ground truth or in the prediction",
    "ground_truth": "classes that occur in the ground truth",
}
COUNTS = {
    "FPS": "images a second, one at a time, from the median latency of systems that take turns in one run",
    "passes": "how many pictures of an image CLIP is shown (mean over the images)",
}
"""Columns that are not fractions, and what they count."""


class TableDataset(Settings):
    """A group of columns: the dataset measured on, and the paper's dataset that it is or stands for.

    ``images`` describes its images, ``place`` names the paper's dataset that it is or stands for, if any.
    ``trained_on`` is the dataset that systems were trained on, if it is a different one. ``more_metrics`` are columns
    that other datasets of the table do not have.
    """

    name: str
    images: str
    paper: str | None = None
    paper_title: str | None = None
    place: str
    stand_in: bool = False
    miou: str
    trained_on: str | None = None
    more_metrics: tuple[str, ...] = ()


class SystemRow(Settings):
    """A row. ``reported`` maps the paper's columns (``coco_stuff.pAcc``) to percentages.

    A row without an experiment is a system that is not implemented here.
    """

    label: str
    experiment: str | None = None
    decoupled: bool | None = None
    reported: dict[str, float]


class TableSettings(Settings):
    """What a table shows. ``artifacts`` are all outputs that went into it; the table notes their total wall time.

    ``notes`` are sentences of its own below it.
    """

    caption: str
    profile: str
    seeds: tuple[int, ...]
    datasets: tuple[TableDataset, ...]
    metrics: tuple[str, ...]
    rows: tuple[SystemRow, ...]
    artifacts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def columns(self) -> list[tuple[TableDataset, str]]:
        """Dataset and metric of every column, in order."""
        return [
            (dataset, metric)
            for dataset in self.datasets
            for metric in (*self.metrics, *dataset.more_metrics)
        ]


def scores_of(evaluation: dict[str, Any], images_per_s: float | None = None) -> dict[str, float | None]:
    """Percentages and counts of an evaluation by metric, with the speed of its system if that was measured."""
    percent = {name: None if value is None else 100 * value for name, value in evaluation["metrics"].items()}
    counts = {"passes": evaluation.get("passes"), "FPS": images_per_s}
    return percent | {name: value for name, value in counts.items() if value is not None}


def deviates(table: TableSettings, metric: str) -> bool:
    """Whether a metric has a deviation over seeds. Speed is measured once, with the first seed's systems."""
    return len(table.seeds) > 1 and metric != "FPS"


def listed(words: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def distinct(words: Iterable[str]) -> str:
    """Like :func:`listed`, without repeated words."""
    return listed(list(dict.fromkeys(words)))


def described(datasets: tuple[TableDataset, ...]) -> str:
    """The kinds of images of some datasets, in words."""
    return distinct(dataset.images for dataset in datasets)
