"""Figures of evaluations and benchmarks: chooses the values and notes of each figure and calls its plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field, model_validator

from deop.errors import DeopError
from deop.reporting import plots
from deop.reporting.confusion import TOP, confusion_matrix, confusion_shares
from deop.reporting.origin import made_by
from deop.reporting.parts_plot import parts
from deop.reporting.results_table import NOT_RUN, by_seed
from deop.reporting.table_settings import TableDataset, TableSettings, described, listed
from deop.settings.base import Settings


class FigureRow(Settings):
    """An experiment and its label in the figure."""

    label: str
    experiment: str


class FigureSettings(Settings):
    """What a figure shows.

    ``bars`` shows ``metrics`` of the single table in ``tables``. ``scatter`` plots the second of two ``metrics``
    against the first, for all ``tables``. ``tables`` maps names to the settings of the tables' own jobs. ``parts``
    shows a benchmark. ``per_class_iou`` and ``confusion`` show ``rows`` on ``dataset``.
    """

    kind: Literal["bars", "scatter", "parts", "per_class_iou", "confusion"]
    title: str
    profile: str
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    tables: Annotated[dict[str, TableSettings], Field(default_factory=dict)]
    metrics: tuple[str, ...] = ()
    rows: tuple[FigureRow, ...] = ()
    dataset: TableDataset | None = None

    @model_validator(mode="after")
    def _enough(self) -> FigureSettings:
        if self.kind in ("per_class_iou", "confusion"):
            if not self.rows or self.dataset is None:
                raise ValueError(f"a figure of kind {self.kind!r} needs rows and a dataset")
            return self
        if self.kind == "parts":
            return self
        if self.kind == "bars" and (len(self.tables) != 1 or not self.metrics):
            raise ValueError("a figure of kind 'bars' needs one table, and metrics")
        if self.kind == "scatter" and (not self.tables or len(self.metrics) != 2):
            raise ValueError("a figure of kind 'scatter' needs tables, and two metrics")
        for name, table in self.tables.items():
            if missing := set(self.metrics) - set(table.metrics):
                raise ValueError(f"{name} has no metric {min(missing)!r}; it has: {', '.join(table.metrics)}")
        return self


def draw_figure(settings: FigureSettings, evaluations: dict[str, dict], paths: dict[str, str]) -> Figure:
    """Draws a figure.

    Args:
        evaluations: the contents of the job's inputs, by role.
        paths: the files of the inputs, by role; confusion CSVs lie beside them.

    Raises:
        DeopError: an evaluation that lacks what the figure shows.
    """
    kinds = {
        "bars": _bars,
        "scatter": _scatter,
        "parts": _parts,
        "per_class_iou": _per_class_iou,
        "confusion": _confusion,
    }
    return kinds[settings.kind](settings, evaluations, paths)


def _bars(settings: FigureSettings, evaluations: dict[str, dict], paths: dict[str, str]) -> Figure:
    [(name, table)] = settings.tables.items()
    marks = "Bars: mean over the seeds; error bars: standard deviation; dots: single seeds."
    return plots.bars(
        table,
        settings.metrics,
        _table_values(settings, name, evaluations, paths),
        title=settings.title,
        notes=_notes(settings, table.datasets, marks),
    )


def _scatter(settings: FigureSettings, evaluations: dict[str, dict], paths: dict[str, str]) -> Figure:
    datasets = {dataset.name: dataset for table in settings.tables.values() for dataset in table.datasets}
    marks = "Marks: mean over the seeds; error bars: standard deviation; dots: single seeds."
    notes = _notes(settings, tuple(datasets.values()), marks)
    if machines := made_by(settings.profile, settings.seeds, evaluations).get("speed_measured_on"):
        notes.append(f"Speed was measured once, on {machines}.")
    return plots.scatter(
        settings.tables,
        (settings.metrics[0], settings.metrics[1]),
        {name: _table_values(settings, name, evaluations, paths) for name in settings.tables},
        title=settings.title,
        notes=notes,
    )


def _parts(settings: FigureSettings, evaluations: dict[str, dict], paths: dict[str, str]) -> Figure:
    frame = pd.DataFrame(evaluations["benchmark"]["rows"])
    machines = listed(list(dict.fromkeys(frame["machine"])))
    notes = [
        f"Measured here, on {machines}; profile {settings.profile}. Random weights and drawn masks.",
        "Systems took turns; class names were embedded beforehand.",
    ]
    return parts(frame, title=settings.title, notes=notes)


def _per_class_iou(settings: FigureSettings, evaluations: dict[str, dict], paths: dict[str, str]) -> Figure:
    iou = {row.label: class_iou(settings, row, evaluations) for row in settings.rows}
    notes = _notes(
        settings,
        (settings.dataset,),
        "Marks: mean over the seeds; shaded areas and lines: from the least to the largest.",
    )
    absent = sorted(set.intersection(*(set(frame.index[frame.isna().all(axis=1)]) for frame in iou.values())))
    if absent:
        notes.append(f"Without an IoU, as they do not occur: {listed(absent)}.")
    return plots.per_class_iou(iou, _unseen(settings, evaluations, paths), title=settings.title, notes=notes)


def _confusion(settings: FigureSettings, evaluations: dict[str, dict], paths: dict[str, str]) -> Figure:
    names = list(evaluations[_role(settings, settings.rows[0], settings.seeds[0])]["per_class_iou"])
    matrices = {
        row.label: sum(
            confusion_matrix(Path(paths[_role(settings, row, seed)]).with_suffix(".csv"), len(names))
            for seed in settings.seeds
        )
        for row in settings.rows
    }
    notes = _notes(settings, (settings.dataset,), "Pixels are summed over the seeds.", "")
    notes.append(
        f"Up to {TOP} classes that these pixels are most often wrongly taken for, over all rows"
        f"{' and systems' if len(matrices) > 1 else ''}, have columns of their own. Empty: no pixel."
    )
    shares = confusion_shares(matrices, names, _unseen(settings, evaluations, paths))
    return plots.confusion(shares, title=settings.title, notes=notes)


def _table_values(
    settings: FigureSettings, name: str, evaluations: dict[str, dict], paths: dict[str, str]
) -> pd.DataFrame:
    """The values by seed of one of the figure's tables, as in the table's own job."""
    roles = {role: role.removeprefix(f"{name}/") for role in evaluations if role.startswith(f"{name}/")}
    return by_seed(
        settings.tables[name],
        {short: evaluations[role] for role, short in roles.items()},
        {short: paths[role] for role, short in roles.items()},
    )


def class_iou(settings: FigureSettings, row: FigureRow, evaluations: dict[str, dict]) -> pd.DataFrame:
    """IoU in percent: one row per class (by name, in label order) and one column per seed; NaN where undefined."""
    columns = {seed: evaluations[_role(settings, row, seed)]["per_class_iou"] for seed in settings.seeds}
    return 100 * pd.DataFrame(columns, dtype=float)


def _unseen(settings: FigureSettings, evaluations: dict[str, dict], paths: dict[str, str]) -> list[str]:
    role = _role(settings, settings.rows[0], settings.seeds[0])
    if not evaluations[role].get("unseen"):
        raise DeopError(f"{paths[role]} names no unseen classes")
    return evaluations[role]["unseen"]


def _role(settings: FigureSettings, row: FigureRow, seed: int) -> str:
    return f"{row.experiment}/{settings.dataset.name}/{seed}"


def _notes(
    settings: FigureSettings,
    datasets: tuple[TableDataset, ...],
    marks: str,
    of_one_seed: str = "One seed: no spread is shown.",
) -> list[str]:
    """Sentences below the figure: what it was measured on, what the marks mean, what is left out."""
    several = len(settings.seeds) > 1
    seeds = f"{'seeds' if several else 'seed'} {listed([str(seed) for seed in settings.seeds])}"
    places = listed([dataset.name for dataset in datasets])
    notes = [
        f"Measured here: profile {settings.profile}, {seeds}, on {places} ({described(datasets)}).",
        marks if several else of_one_seed,
    ]
    missing = list(
        dict.fromkeys(
            row.label for table in settings.tables.values() for row in table.rows if row.experiment is None
        )
    )
    if missing:
        notes.append(f"Left out, {NOT_RUN}: {listed(missing)}.")
    return [note for note in notes if note]
