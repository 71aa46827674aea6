"""Stage ``figure``: what evaluations show, drawn for print, as PNG and SVG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field, model_validator

from deop.errors import DeopError, validated
from deop.jobs.artifacts import write_json
from deop.jobs.freshness import identity
from deop.jobs.job import Job
from deop.reporting import canvas, plots
from deop.reporting.origin import made_by
from deop.reporting.parts_plot import parts
from deop.settings.base import Settings
from deop.stages.table import NOT_RUN, TableDataset, TableSettings, by_seed, described, listed

TOP = 8
"""How many wrong classes have a column of their own in a confusion."""


class FigureRow(Settings):
    """An experiment and what it is called."""

    label: str
    experiment: str


class FigureSettings(Settings):
    """What a figure shows.

    ``bars`` shows ``metrics`` of the one table in ``tables``; ``scatter`` the second of its two ``metrics`` over the
    first, of all ``tables``. Tables are the settings of their own jobs, by their names. ``parts`` shows a benchmark.
    ``per_class_iou`` and ``confusion`` show ``rows`` on ``dataset``.
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


def run(job: Job) -> None:
    """Writes ``job.output`` (JSON, last), and the figure with suffixes .png and .svg.

    The job's inputs are evaluations: for bars and scatter ``<table>/<role>``, with the roles of stage ``table``; for
    parts ``benchmark``, a benchmark's; for the other kinds ``<experiment>/<dataset>/<seed>``. Beside each evaluation
    lies its confusion, with suffix .csv.

    Raises:
        ConfigError: settings that do not fit the kind of figure.
        DeopError: an evaluation that lacks what the figure shows.
    """
    settings = validated(FigureSettings, job.settings["figure"], "figure job", ("settings", "figure"))
    evaluations = {role: json.loads(Path(path).read_text()) for role, path in job.inputs.items()}
    figure = draw(settings, evaluations, job.inputs)
    output = Path(job.output)
    for suffix in (".png", ".svg"):
        canvas.save(figure, output.with_suffix(suffix))
    # The workflow takes a figure for up to date by what this file says of its key and inputs.
    write_json(output, {**identity(job), **made_by(settings.profile, settings.seeds, evaluations)})


def draw(settings: FigureSettings, evaluations: dict[str, dict], paths: dict[str, str]) -> Figure:
    """The figure of evaluations by role, and of what lies beside their paths."""
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
        "Marks: mean over the seeds; bands and lines: from the least to the largest.",
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
    """The values of one of the figure's tables by seed, as its own job has them."""
    roles = {role: role.removeprefix(f"{name}/") for role in evaluations if role.startswith(f"{name}/")}
    return by_seed(
        settings.tables[name],
        {short: evaluations[role] for role, short in roles.items()},
        {short: paths[role] for role, short in roles.items()},
    )


def class_iou(settings: FigureSettings, row: FigureRow, evaluations: dict[str, dict]) -> pd.DataFrame:
    """IoU in percent, of one line a class (its name, in label order) and one column a seed; NaN where it has none."""
    columns = {seed: evaluations[_role(settings, row, seed)]["per_class_iou"] for seed in settings.seeds}
    return 100 * pd.DataFrame(columns, dtype=float)


def confusion_matrix(path: Path, classes: int) -> np.ndarray:
    """(C, C) pixels by true class and by predicted class, summed over the images of a confusion CSV.

    Raises:
        DeopError: there is no such file.
    """
    if not path.exists():
        raise DeopError(f"{path} is missing: the confusion of each image, which stage evaluate writes")
    pairs = pd.read_csv(path)
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (pairs["truth"], pairs["predicted"]), pairs["pixels"])
    return matrix


def confusion_shares(
    matrices: dict[str, np.ndarray], names: list[str], unseen: list[str]
) -> dict[str, pd.DataFrame]:
    """Where the pixels of unseen classes go, in percent of each class's pixels, for each system.

    Args:
        matrices: (C, C) pixels by true and by predicted class, by the system's label.
        names: the C classes in label order.
        unseen: the unseen ones.

    Returns:
        Frames of the same lines, the unseen classes (those first that the last system has most of right), and columns
        (group, name): what is right, and what goes to seen and to unseen classes: of all systems' pixels the ``TOP``
        most frequent wrong classes, most frequent first, and the rest. A line is NaN if the class has no pixels.
    """
    labels = [names.index(name) for name in unseen]
    wrong = sum(matrices.values())[labels].astype(float)
    wrong[range(len(labels)), labels] = 0
    frequency = wrong.sum(0)
    order = np.argsort(-frequency, kind="stable")
    top = [int(label) for label in order[:TOP] if frequency[label] > 0]
    frames = {}
    for system, matrix in matrices.items():
        pixels = matrix[labels].astype(float)
        total = pixels.sum(1, keepdims=True)
        right = pixels[range(len(labels)), labels].copy()
        pixels[range(len(labels)), labels] = 0
        columns = {("", "correct"): right}
        for group, is_unseen in (("seen", False), ("unseen", True)):
            of_group = [label for label in range(len(names)) if (label in labels) == is_unseen]
            shown = [label for label in top if label in of_group]
            columns |= {(group, names[label]): pixels[:, label] for label in shown}
            rest = [label for label in of_group if label not in shown]
            columns[group, f"other {group}"] = pixels[:, rest].sum(1)
        frame = pd.DataFrame(columns, index=pd.Index(unseen))
        frames[system] = 100 * frame.div(np.where(total == 0, np.nan, total)[:, 0], axis=0)
    best = list(frames.values())[-1]["", "correct"].sort_values(ascending=False, kind="stable").index
    return {system: frame.loc[best] for system, frame in frames.items()}


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
    """Sentences for under the figure: on what it was measured, what the marks are, what is left out."""
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
