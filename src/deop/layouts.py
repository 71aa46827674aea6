"""What readers get: the tables, figures, pictures and claims of ``config/tables.yaml``.

All of them name experiments (``config/experiments.yaml``) and datasets by their names in the paper.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from deop.errors import ConfigError, unknown
from deop.settings import Settings

Metric = Literal["pAcc", "mIoU", "hIoU", "seen", "unseen", "passes", "FPS"]
PLACE = "config/tables.yaml"


class TableRow(Settings):
    """A row: what it is called (as in the paper, where it has one) and the experiment it shows.

    One without an experiment is a system that is not implemented here. ``decoupled`` says, where a table has that
    column, whether masks and their classes are found separately.
    """

    label: str
    experiment: str | None = None
    decoupled: bool | None = None


class TableLayout(Settings):
    """One table: its rows, and its columns (datasets, by their names in the paper, times metrics).

    ``reported`` is the number of the paper's table whose values are shown beside the measured ones. With
    ``trained_on``, all systems are trained on that dataset and tested on the others as they are; otherwise on each.
    """

    caption: str
    reported: int | None = None
    trained_on: str | None = None
    rows: Annotated[tuple[TableRow, ...], Field(min_length=1)]
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)]

    @property
    def experiments(self) -> list[str]:
        """Those of the rows, each once."""
        return list(dict.fromkeys(row.experiment for row in self.rows if row.experiment is not None))


class Figure(Settings):
    """A plot: of one table (``bars``), of several (``scatter``), of a benchmark (``parts``), or of what experiments do.

    ``metrics`` are what bars show; of a scatter, what lies on x and y. Experiments are shown on one dataset.
    """

    kind: Literal["bars", "scatter", "parts", "per_class_iou", "confusion"]
    title: str
    tables: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    experiments: tuple[str, ...] = ()
    dataset: str | None = None
    benchmark: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        of_tables, of_experiments = ("tables", "metrics"), ("experiments", "dataset")
        of_kinds = {"bars": of_tables, "scatter": of_tables, "parts": ("benchmark",)}
        needed = of_kinds.get(self.kind, of_experiments)
        for key in (*of_tables, *of_experiments, "benchmark"):
            if bool(getattr(self, key)) != (key in needed):
                raise ValueError(
                    f"a figure of kind {self.kind!r} has {' and '.join(needed)} and nothing else"
                )
        return self


class Picture(Settings):
    """A picture of one experiment at work: on a ``scene`` of a dataset, or where its ``anchors`` lie (figure 5)."""

    kind: Literal["scene", "anchors"]
    experiment: str
    dataset: str


class Claim(Settings):
    """That one row of a table is better than another, on each of some datasets."""

    claim: str
    table: str
    better: str
    worse: str
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    metric: Literal["pAcc", "mIoU", "hIoU", "seen", "unseen"]


class TablesFile(Settings):
    """``config/tables.yaml``. ``paper_datasets`` maps the paper's datasets to the titles that tables show."""

    paper_datasets: dict[str, str]
    tables: dict[str, TableLayout]
    figures: Annotated[dict[str, Figure], Field(default_factory=dict)]
    pictures: Annotated[dict[str, Picture], Field(default_factory=dict)]
    claims: tuple[Claim, ...] = ()

    def check(
        self,
        stand_ins: Collection[str],
        experiments: Collection[str],
        with_anchors: Collection[str],
        benchmarks: Collection[str],
    ) -> None:
        """Whether everything named is there.

        Args:
            stand_ins: the paper's datasets that the profile has one for.
            experiments: all experiments; ``with_anchors`` those that have an anchor heatmap.
            benchmarks: those that have systems side by side, which a plot can show.

        Raises:
            ConfigError: the first thing that is not.
        """
        for name, table in self.tables.items():
            place = f"{PLACE}: tables.{name}"
            trained_on = () if table.trained_on is None else (table.trained_on,)
            _known(f"{place}.datasets", "dataset", (*table.datasets, *trained_on), stand_ins)
            _known(f"{place}.rows", "experiment", table.experiments, experiments)
        for name, figure in self.figures.items():
            place = f"{PLACE}: figures.{name}"
            self._check_metrics(place, figure)
            _known(f"{place}.experiments", "experiment", figure.experiments, experiments)
            _known(f"{place}.dataset", "dataset", (figure.dataset,) if figure.dataset else (), stand_ins)
            named = (figure.benchmark,) if figure.benchmark else ()
            _known(f"{place}.benchmark", "benchmark of systems", named, benchmarks)
        for name, picture in self.pictures.items():
            place = f"{PLACE}: pictures.{name}"
            _known(f"{place}.dataset", "dataset", (picture.dataset,), stand_ins)
            _known(f"{place}.experiment", "experiment", (picture.experiment,), experiments)
            if picture.experiment not in with_anchors:
                raise ConfigError(f"{place}.experiment: {picture.experiment!r} has no anchor heatmap to show")
        for index, claim in enumerate(self.claims):
            place = f"{PLACE}: claims.{index}"
            _known(f"{place}.table", "table", (claim.table,), self.tables)
            table = self.tables[claim.table]
            _known(f"{place}.datasets", f"dataset of {claim.table}", claim.datasets, table.datasets)
            rows = f"experiment of {claim.table}"
            _known(f"{place}.better", rows, (claim.better,), table.experiments)
            _known(f"{place}.worse", rows, (claim.worse,), table.experiments)

    def _check_metrics(self, place: str, figure: Figure) -> None:
        _known(f"{place}.tables", "table", figure.tables, self.tables)
        for table in figure.tables:
            _known(f"{place}.metrics", f"metric of {table}", figure.metrics, self.tables[table].metrics)
        if figure.kind == "scatter" and len(figure.metrics) != 2:
            raise ConfigError(f"{place}.metrics: a scatter shows two metrics (got {len(figure.metrics)})")


def _known(
    place: str, kind: str, names: Collection[str], valid: Collection[str] | Mapping[str, object]
) -> None:
    for name in names:
        if name not in valid:
            raise unknown(place, kind, name, valid)
