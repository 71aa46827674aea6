"""The jobs of what readers get: tables, claims, figures, pictures and benchmarks, and the evaluations under them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deop.errors import ConfigError
from deop.jobs.folder_contents import FolderContents
from deop.jobs.job import Job
from deop.jobs.jobs import Inputs, Jobs, dump, name_of
from deop.jobs.pipeline import Pipeline
from deop.settings.configuration import Configuration
from deop.settings.datasets import RealDataset
from deop.settings.tables import PLACE, Claim, Figure, Picture, ResultsTable

SystemName = tuple[str, str, int]
"""Dataset, experiment and seed of a trained system."""


class Results:
    """Adds the jobs of all results that a configuration asks for.

    Args:
        config: the configuration.
        jobs: where the jobs are added.
        root: the folder that relative paths start from.

    Attributes:
        by_stage: by stage and name, the jobs of the results.
        systems: the trained systems under them, by (dataset, experiment, seed).
        evaluations: the evaluation of each of these systems on the dataset that it was trained on, if there is one.

    Raises:
        ConfigError: the first thing in the configuration that cannot be run.
    """

    def __init__(self, config: Configuration, jobs: Jobs, root: Path) -> None:
        self._config, self._jobs = config, jobs
        shared = (jobs, FolderContents(config, root), config.precision)
        self._pipeline = Pipeline(config, *shared)
        self._variants = {name: Pipeline(settings, *shared) for name, settings in config.variants.items()}
        self.systems: dict[SystemName, Job] = {}
        self.evaluations: dict[SystemName, Job] = {}
        asked = config.results
        self._tables = {name: self._read_table(name, table) for name, table in asked.tables.items()}
        benchmarks = {name: self._benchmark(name) for name in config.benchmarks}
        self.by_stage: dict[str, dict[str, Job]] = {
            "benchmark": benchmarks,
            "table": {name: self._table(name) for name in asked.tables},
            "claims": {"claims": self._claims(asked.claims)} if asked.claims else {},
            "figure": {
                name: self._figure(name, figure, benchmarks) for name, figure in asked.figures.items()
            },
            "picture": {name: self._picture(name, picture) for name, picture in asked.pictures.items()},
        }

    def _read_table(self, name: str, layout: ResultsTable) -> tuple[dict[str, Any], Inputs]:
        """The settings of a table, and the jobs whose numbers it shows, by role."""
        config = self._config
        datasets = [self._dataset(dataset) for dataset in layout.datasets]
        trained_on = None if layout.trained_on is None else self._dataset(layout.trained_on)
        inputs = self._evaluations(layout.experiments, datasets, trained_on)
        if "FPS" in layout.metrics:
            speeds = {dataset: self._speed(layout.experiments, dataset, trained_on) for dataset in datasets}
            inputs |= {f"speed/{dataset}": job for dataset, job in speeds.items()}
        reported = config.reported(name)
        table = {
            "caption": layout.caption,
            "profile": config.main.profile,
            "seeds": list(config.main.seeds),
            "datasets": [
                self._describe(dataset, trained_on) | more
                for dataset, more in zip(datasets, map(layout.more_of, layout.datasets))
            ],
            "metrics": list(layout.metrics),
            "rows": [{**dump(row), "reported": reported.get(row.label, {})} for row in layout.rows],
            **({"notes": list(layout.notes)} if layout.notes else {}),
        }
        return table, inputs

    def _evaluations(
        self, experiments: list[str], datasets: list[str], trained_on: str | None = None
    ) -> Inputs:
        """Evaluations with every seed, by ``<experiment>/<dataset>/<seed>``."""
        return {
            f"{experiment}/{dataset}/{seed}": self._evaluation(experiment, dataset, seed, trained_on)
            for experiment in experiments
            for dataset in datasets
            for seed in self._config.main.seeds
        }

    def _evaluation(self, experiment: str, dataset: str, seed: int, trained_on: str | None = None) -> Job:
        trained_on = trained_on or self._config.names.trained_on(dataset)
        variant = self._config.variant_of.get(experiment)
        pipeline = self._pipeline if variant is None else self._variants[variant]
        job = pipeline.evaluation(experiment, dataset, seed, trained_on)
        name = (trained_on, experiment, seed)
        self.systems[name] = self._jobs.inputs_of(job)["system"]
        if trained_on == dataset:
            self.evaluations[name] = job
        return job

    def _speed(self, experiments: list[str], dataset: str, trained_on: str | None) -> Job:
        """Measures the speed of a table's systems in one run: of the first seed, the same ones as are evaluated."""
        seed = self._config.main.seeds[0]
        measured = {name: self._evaluation(name, dataset, seed, trained_on) for name in experiments}
        settings = self._pipeline.settings(dataset, "speed") | {
            "evaluations": {name: job.key for name, job in measured.items()},
            "systems": {name: job.settings for name, job in measured.items()},
        }
        inputs: Inputs = {
            f"{name}/{role}": upstream
            for name, job in measured.items()
            for role, upstream in self._jobs.inputs_of(job).items()
        }
        output = f"results/speed/{name_of(dataset, '+'.join(experiments), f'seed{seed}')}"
        return self._jobs.add("measure_speed", output, settings, inputs, precision=self._config.precision)

    def _table(self, name: str) -> Job:
        table, inputs = self._tables[name]
        # The paths under a table change nothing about what it shows.
        local = {"table": table | {"artifacts": self._jobs.upstream(inputs.values())}}
        return self._jobs.add("table", f"results/{name}.json", {"table": table}, inputs, local=local)

    def _claims(self, claims: tuple[Claim, ...]) -> Job:
        inputs: Inputs = {}
        main, entries = self._config.main, []
        for claim in claims:
            table, of_table = self._tables[claim.table]
            rows = {row["experiment"]: row for row in table["rows"]}
            better, worse = rows[claim.better], rows[claim.worse]
            for dataset in (self._describe(self._dataset(name)) for name in claim.datasets):
                for experiment in (claim.better, claim.worse):
                    for seed in main.seeds:
                        role = f"{experiment}/{dataset['name']}/{seed}"
                        if inputs.setdefault(role, of_table[role]) is not of_table[role]:
                            raise ConfigError(
                                f"{PLACE}: claims: tables differ in what {experiment!r} was trained on before it was "
                                f"tested on {dataset['name']!r}, and claims can only be about one of them"
                            )
                one, other = (
                    _reported(row["reported"], dataset.get("paper"), claim.metric) for row in (better, worse)
                )
                entries.append(
                    {
                        "claim": claim.claim,
                        "better": claim.better,
                        "worse": claim.worse,
                        "better_label": better["label"],
                        "worse_label": worse["label"],
                        "dataset": dataset["name"],
                        "place": dataset["place"],
                        "metric": claim.metric,
                        "miou": dataset["miou"],
                        "reported": None if one is None or other is None else round(one - other, 6),
                    }
                )
        settings = {"profile": main.profile, "seeds": list(main.seeds), "claims": entries}
        return self._jobs.add("claims", "results/claims.json", {"claims": settings}, inputs)

    def _figure(self, name: str, layout: Figure, benchmarks: dict[str, Job]) -> Job:
        main = self._config.main
        figure: dict[str, Any] = {
            "kind": layout.kind,
            "title": layout.title,
            "profile": main.profile,
            "seeds": list(main.seeds),
        }
        if layout.tables:
            figure["metrics"] = list(layout.metrics)
            figure["tables"] = {table: self._tables[table][0] for table in layout.tables}
            inputs = {
                f"{table}/{role}": job
                for table in layout.tables
                for role, job in self._tables[table][1].items()
            }
        elif layout.benchmark is not None:
            inputs = {"benchmark": benchmarks[layout.benchmark]}
        else:
            assert layout.dataset is not None  # Figure has checked it
            dataset = self._describe(self._dataset(layout.dataset))
            figure["dataset"] = dataset
            figure["rows"] = [{"label": self._label(of), "experiment": of} for of in layout.experiments]
            inputs = self._evaluations(list(layout.experiments), [dataset["name"]])
        return self._jobs.add("figure", f"results/figures/{name}.json", {"figure": figure}, inputs)

    def _picture(self, name: str, layout: Picture) -> Job:
        dataset = self._dataset(layout.dataset)
        measured = self._evaluation(layout.experiment, dataset, self._config.main.seeds[0])
        short_side = measured.settings["evaluation"]["short_side"]
        settings = {"picture": {"kind": layout.kind, "short_side": short_side}}
        inputs: Inputs = dict(self._jobs.inputs_of(measured))
        return self._jobs.add("picture", f"results/figures/{name}.json", settings, inputs)

    def _benchmark(self, name: str) -> Job:
        settings = {"benchmark": dump(self._config.benchmarks[name])}
        return self._jobs.add("benchmark", f"results/{name}.json", settings, {})

    def _dataset(self, name: str) -> str:
        """The dataset called ``name`` in ``config/tables.yaml``: by its own name, or by the paper's it stands for."""
        return self._config.names.resolve(PLACE, name)

    def _describe(self, name: str, trained_on: str | None = None) -> dict[str, Any]:
        """What tables say of a dataset, and of the paper's dataset that it is or stands for, if any."""
        dataset, of_paper = self._config.datasets[name], self._config.names.paper(name)
        trained_on = trained_on or self._config.names.trained_on(name)
        described = {
            "name": name,
            "images": dataset.images,
            "place": name,
            "miou": self._config.stages["evaluation"][name].miou,
            "trained_on": None if trained_on == name else trained_on,
        }
        if of_paper is None:
            return described
        paper, title = of_paper
        itself = isinstance(dataset, RealDataset)
        return described | {
            "paper": paper,
            "paper_title": title,
            "place": f"{title} (here {name})" if itself else f"{title} ({name} stands in for it)",
            "stand_in": not itself,
        }

    def _label(self, experiment: str) -> str:
        """The label of an experiment in the first table that shows it, or its name."""
        rows = (row for table in self._config.results.tables.values() for row in table.rows)
        return next((row.label for row in rows if row.experiment == experiment), experiment)


def _reported(values: dict[str, float], dataset: str | None, metric: str) -> float | None:
    """A value of the paper, in percent, or None."""
    if metric != "gap":
        return values.get(f"{dataset}.{metric}")
    seen, unseen = values.get(f"{dataset}.seen"), values.get(f"{dataset}.unseen")
    return None if seen is None or unseen is None else seen - unseen
