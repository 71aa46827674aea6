"""What readers get: the tables, figures, pictures and claims of ``config/tables.yaml``.

All of them name experiments (``config/experiments.yaml``), and datasets by their own names or by those of the paper's
datasets that they stand for. A profile may change and add entries of all but the claims.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from deop.errors import ConfigError, unknown, validated
from deop.settings.base import Settings
from deop.settings.dataset_names import DatasetNames
from deop.settings.files import SOURCE, load_yaml, merged, without_nulls

Metric = Literal["pAcc", "mIoU", "hIoU", "seen", "unseen", "passes", "FPS", "mIoU_truth"]
PLACE = f"{SOURCE}/tables.yaml"


class TableRow(Settings):
    """A row: what it is called (as in the paper, where it has one) and the experiment it shows.

    One without an experiment is a system that is not implemented here. ``decoupled`` says, where a table has that
    column, whether masks and their classes are found separately.
    """

    label: str
    experiment: str | None = None
    decoupled: bool | None = None


class DatasetTable(Settings):
    """The table of each dataset that stands for none of the paper's; ``{dataset}`` in the caption is its name."""

    caption: str
    rows: Annotated[tuple[TableRow, ...], Field(min_length=1)]
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)]


class ResultsTable(DatasetTable):
    """One table: its rows, and its columns (datasets times metrics).

    ``reported`` is the number of the paper's table whose values are shown beside the measured ones. With
    ``trained_on``, all systems are trained on that dataset and tested on the others as they are; otherwise on each, or
    on the one that its entry names. ``more_metrics`` are further columns, by dataset. ``notes`` are printed below the
    table.
    """

    reported: int | None = None
    trained_on: str | None = None
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    more_metrics: Annotated[dict[str, tuple[Metric, ...]], Field(default_factory=dict)]
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _of_its_datasets(self) -> Self:
        for name in self.more_metrics:
            if name not in self.datasets:
                raise ValueError(f"more_metrics: {name!r} is none of the table's datasets")
        return self

    def more_of(self, dataset: str) -> dict[str, list[str]]:
        """The further columns of a dataset, as its description in a table has them; nothing if it has none."""
        return {"more_metrics": list(self.more_metrics[dataset])} if dataset in self.more_metrics else {}

    @property
    def experiments(self) -> list[str]:
        """The experiments of the rows, without repeats."""
        return list(dict.fromkeys(row.experiment for row in self.rows if row.experiment is not None))


class Figure(Settings):
    """A plot of one table (``bars``), several (``scatter``), a benchmark (``parts``) or experiments (other kinds).

    ``metrics`` are the metrics that bars show, or x and y of a scatter. Experiments are shown on one dataset.
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
    """That one row of a table is better than another, on each of some datasets.

    The metric ``gap`` is seen minus unseen mIoU; the row named ``better`` is then the one with the larger gap.
    """

    claim: str
    table: str
    better: str
    worse: str
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    metric: Literal["pAcc", "mIoU", "hIoU", "seen", "unseen", "gap"]


class TablesFile(Settings):
    """``config/tables.yaml``, with the profile's changes.

    ``paper_datasets`` maps the paper's datasets to the titles that tables show.
    """

    paper_datasets: dict[str, str]
    dataset_table: DatasetTable
    tables: dict[str, ResultsTable]
    figures: Annotated[dict[str, Figure], Field(default_factory=dict)]
    pictures: Annotated[dict[str, Picture], Field(default_factory=dict)]
    claims: tuple[Claim, ...] = ()

    def with_tables_of(self, datasets: DatasetNames, benchmarks: Collection[str]) -> Self:
        """The same with a table of every dataset that stands for none of the paper's, and has none of its name.

        Raises:
            ConfigError: a dataset that nothing can be trained for, or whose name another result has.
        """
        tables = dict(self.tables)
        for name in datasets.own:
            if name in tables or not datasets.has_split(name, "val"):
                continue
            _check_name(f"{SOURCE}: datasets.{name}", name, benchmarks)
            datasets.check_trained(f"{SOURCE}: datasets", name)
            tables[name] = ResultsTable(
                caption=self.dataset_table.caption.replace("{dataset}", name),
                rows=self.dataset_table.rows,
                metrics=self.dataset_table.metrics,
                datasets=(name,),
                more_metrics={},
            )
        return self.model_copy(update={"tables": tables})

    def check(
        self,
        datasets: DatasetNames,
        experiments: Collection[str],
        with_anchors: Collection[str],
        benchmarks: Mapping[str, bool],
        profile: Mapping[str, Collection[str]],
    ) -> None:
        """Checks that everything named exists.

        Args:
            datasets: those of the profile.
            experiments: all experiments; ``with_anchors`` those that have an anchor heatmap.
            benchmarks: by name, whether a benchmark has systems side by side, which a plot can show.
            profile: by kind, the tables, figures and pictures that the profile has changed, for errors to name it.

        Raises:
            ConfigError: something named does not exist (the first one found).
        """

        def place_of(kind: str, name: str) -> str:
            return f"{SOURCE if name in profile[kind] else PLACE}: {kind}.{name}"

        in_dataset_table = [row.experiment for row in self.dataset_table.rows if row.experiment is not None]
        _known(f"{PLACE}: dataset_table.rows", "experiment", in_dataset_table, experiments)
        for name, table in self.tables.items():
            place = place_of("tables", name)
            _check_name(place, name, benchmarks)
            datasets.check(place, "datasets", table.datasets, table.trained_on)
            _known(f"{place}.rows", "experiment", table.experiments, experiments)
        for name, figure in self.figures.items():
            place = place_of("figures", name)
            self._check_metrics(place, figure)
            _known(f"{place}.experiments", "experiment", figure.experiments, experiments)
            datasets.check(place, "dataset", (figure.dataset,) if figure.dataset else ())
            named = (figure.benchmark,) if figure.benchmark else ()
            of_systems = [name for name, systems in benchmarks.items() if systems]
            _known(f"{place}.benchmark", "benchmark of systems", named, of_systems)
        for name, picture in self.pictures.items():
            place = place_of("pictures", name)
            if name in self.figures:
                raise ConfigError(f"{place}: results/figures/{name}.png is a figure; choose another name")
            datasets.check(place, "dataset", (picture.dataset,))
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


OF_PROFILE: dict[str, type[Settings]] = {"tables": ResultsTable, "figures": Figure, "pictures": Picture}
"""What a profile may change and add, by its key in the profile and in ``config/tables.yaml``."""


def read_tables(root: Path, profile: Mapping[str, dict[str, Any]]) -> TablesFile:
    """Reads ``config/tables.yaml`` and merges a profile's changes, by key, over it.

    With a table that the profile removes go its claims, and figures that show nothing else.

    Raises:
        ConfigError: a file that cannot be read, or an invalid entry.
    """
    values = load_yaml(root / PLACE, PLACE)
    gone = {name for name, table in (profile.get("tables") or {}).items() if table is None}
    if gone:
        values["claims"] = [claim for claim in values.get("claims") or [] if claim.get("table") not in gone]
        figures = values.get("figures") or {}
        for name in [name for name, figure in figures.items() if gone.intersection(figure.get("tables", ()))]:
            figures[name]["tables"] = [table for table in figures[name]["tables"] if table not in gone]
            if not figures[name]["tables"]:
                del figures[name]
    for kind, model in OF_PROFILE.items():
        changes = profile.get(kind) or {}
        if not changes:
            continue
        values[kind] = without_nulls(merged(values.get(kind) or {}, changes))
        for name in changes.keys() & values[kind].keys():
            validated(model, values[kind][name], SOURCE, (kind, name))
    return validated(TablesFile, values, PLACE)


def _check_name(place: str, name: str, benchmarks: Collection[str]) -> None:
    if name == "claims" or name in benchmarks:
        raise ConfigError(f"{place}: results/{name}.csv is another result; choose another name")


def _known(
    place: str, kind: str, names: Collection[str], valid: Collection[str] | Mapping[str, object]
) -> None:
    for name in names:
        if name not in valid:
            raise unknown(place, kind, name, valid)
