"""How many jobs a configuration asks for, counted from its tables without the planner that the tests are about.

A job counts once for everything that it depends on, in the words of the configuration: what system it is about, on
which dataset that is trained or tested, and with which seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from deop.settings.configuration import Configuration
from deop.settings.files import read_profile


class Shown(NamedTuple):
    """An experiment, trained on one dataset and tested on the same or another, as a result shows it."""

    experiment: str
    tested: str
    trained: str


class Asked:
    """What a configuration asks for.

    Args:
        values: the merged configuration.
        root: the folder that holds ``config/``.

    Attributes:
        shown: by stage and name, what each result shows.
    """

    def __init__(self, values: dict[str, Any], root: Path) -> None:
        self._config = config = Configuration(values, root)
        self._seeds = config.main.seeds
        results = config.results
        tables = {name: set(self._of_table(table)) for name, table in results.tables.items()}
        self.shown: dict[tuple[str, str], set[Shown]] = {
            ("table", name): shown for name, shown in tables.items()
        }
        claimed = {
            shown
            for claim in results.claims
            for shown in tables[claim.table]
            if shown.experiment in (claim.better, claim.worse)
            and shown.tested in {config.names.resolve("", name) for name in claim.datasets}
        }
        if claimed:
            self.shown["claims", "claims"] = claimed
        for name, figure in results.figures.items():
            of_tables = set().union(*(tables[table] for table in figure.tables))
            of_experiments = {self._at_home(each, figure.dataset) for each in figure.experiments}
            self.shown["figure", name] = of_tables | of_experiments
        for name, picture in results.pictures.items():
            self.shown["picture", name] = {self._at_home(picture.experiment, picture.dataset)}

    @classmethod
    def in_folder(cls, folder: Path, *profiles: Path, **changes: object) -> Asked:
        """What the files in a folder of the workflow ask for."""
        return cls(read_profile(folder, *profiles) | changes, folder)

    def jobs(
        self, *names: str, about: Callable[[Shown], bool] | None = None, without: Iterable[str] = ()
    ) -> dict[str, int]:
        """The number of jobs of each stage that makes at least one.

        Args:
            names: results such as ``table3``; all, with the benchmarks, if left out.
            about: which experiments and datasets count, all if left out. Results count that show any of them.
            without: stages that are left out.
        """
        everything, about = about is None, about or (lambda shown: True)
        wanted = {
            of: {shown for shown in all_shown if about(shown)}
            for of, all_shown in self.shown.items()
            if not names or of[1] in names
        }
        counts = Counter(stage for (stage, _), shown in wanted.items() if shown)
        drawn = {each for (stage, _), shown in wanted.items() if stage == "picture" for each in shown}
        measured = {each for (stage, _), shown in wanted.items() if stage != "picture" for each in shown}
        counts += self._behind(measured, drawn)
        counts["measure_speed"] = len({timed for of in wanted for timed in self._timed(of, about)})
        if everything:
            benchmarks = [name for name in self._config.benchmarks if not names or name in names]
            figures = [
                figure for name, figure in self._config.results.figures.items() if not names or name in names
            ]
            of_benchmarks = [figure.benchmark for figure in figures if figure.benchmark]
            counts["benchmark"] = len({*benchmarks, *of_benchmarks})
            counts["figure"] += len(of_benchmarks)
        return {stage: count for stage, count in counts.items() if count and stage not in without}

    def _behind(self, measured: set[Shown], drawn: set[Shown]) -> Counter:
        """The jobs behind evaluations and pictures."""
        config, of_seed, once = self._config, Counter(), Counter()
        distinct: dict[str, set] = {}

        def add(stage: str, *depends_on: object) -> None:
            distinct.setdefault(stage, set()).add(repr(depends_on))

        for shown in measured:
            system, tested = (self._method(shown.experiment, on) for on in (shown.trained, shown.tested))
            add("evaluate", self._variant(shown), system, tested, shown.trained, shown.tested)
        for shown in measured | drawn:
            variant, method = self._variant(shown), self._method(shown.experiment, shown.trained)
            settings = config.variants[variant] if variant else config
            place, parts = (variant, shown.trained), {*method.parts}
            for name in (shown.trained, shown.tested):
                add("prepare_data", name)
                for source in getattr(config.datasets[name], "sources", tuple)():
                    add("download", source)
            add("build_system", place, method)
            if method.rounds:
                parts |= {*method.for_training().parts}
                for index in range(len(method.rounds)):
                    add("train_system", place, method.for_training(), index)
            proposals = settings.stages["proposals"][shown.trained]
            if "proposals" in parts:
                with_class_term = proposals.class_term is not None
                add("train_proposals", shown.trained, proposals, variant if with_class_term else None)
                parts |= {"clip", "prompts"} if with_class_term else set()
            if "prompts" in parts:
                add("learn_prompts", place)
            if "clip" in parts and settings.main.clip.retrain:
                for index in range(len(settings.pretrain_clip)):
                    add("pretrain_clip", settings.main.clip, settings.pretrain_clip, index)
            if {"proposals", "backbone"} & parts and settings.retrain_backbone:
                add("pretrain_backbone", proposals.backbone, proposals.backbone_args)
        for stage, found in distinct.items():
            of_all_seeds = stage in ("prepare_data", "download", "pretrain_clip", "pretrain_backbone")
            (once if of_all_seeds else of_seed)[stage] = len(found)
        return once + Counter({stage: len(self._seeds) * count for stage, count in of_seed.items()})

    def _of_table(self, table: Any) -> Iterable[Shown]:
        names = self._config.names
        for experiment in table.experiments:
            for dataset in (names.resolve("", name) for name in table.datasets):
                trained_on = (
                    names.resolve("", table.trained_on) if table.trained_on else names.trained_on(dataset)
                )
                yield Shown(experiment, dataset, trained_on)

    def _at_home(self, experiment: str, dataset: str) -> Shown:
        names = self._config.names
        return Shown(experiment, names.resolve("", dataset), names.trained_on(names.resolve("", dataset)))

    def _method(self, experiment: str, dataset: str) -> Any:
        return self._config.experiments[experiment][dataset]

    def _variant(self, shown: Shown) -> str | None:
        return self._config.variant_of.get(shown.experiment)

    def _timed(self, of: tuple[str, str], about: Callable[[Shown], bool]) -> Iterable[tuple]:
        """The measurements of speed that a table, or the tables of a figure, show."""
        (stage, name), results = of, self._config.results
        tables = {"table": (name,), "figure": results.figures[name].tables if stage == "figure" else ()}
        for table in tables.get(stage, ()):
            if "FPS" in results.tables[table].metrics:
                shown = self.shown["table", table]
                for tested in {each.tested for each in shown if about(each)}:
                    yield tuple(sorted(each for each in shown if each.tested == tested))
