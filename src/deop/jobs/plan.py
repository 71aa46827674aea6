"""From configuration to jobs: what has to be computed for the tables and figures, named by what made it.

A table asks for evaluations (experiment x dataset x seed), an evaluation for a trained segmentation network,
that one for text prompts and proposals, and so on down to the data. Every such job has a key: a hash of its
stage, its settings, its seed where it draws random numbers, and the keys of its inputs. Outputs are named by
that key, so an output that is there is the right one, whenever and in whatever order it was made, and two
experiments that ask for the same thing share it. Names (of experiments, of rows) never enter the key of
anything but what readers get and the speed of a table's systems.

This module decides; it computes nothing and imports nothing heavy, because the Snakefile builds a plan each
time it is read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deop.errors import ConfigError, unknown
from deop.jobs.folder_contents import FolderContents
from deop.jobs.job import Job
from deop.jobs.jobs import NAMED, Inputs, Jobs, dump, marker, name_of
from deop.jobs.launch import launch_command
from deop.jobs.pipeline import Pipeline
from deop.settings.configuration import Configuration
from deop.settings.datasets import RealDataset
from deop.settings.files import Resources
from deop.settings.tables import PLACE, Claim, TableLayout
from deop.utils.files import write_text

JOBS = Path(".deop/jobs")
LAUNCHED = (
    "pretrain_clip",
    "pretrain_backbone",
    "train_proposals",
    "train_system",
)
"""Stages that are started as the launch file says, as several processes if it does."""
SUPERSEDED = Path(".deop/superseded")
SystemName = tuple[str, str, int]
"""Dataset, experiment and seed of a trained system."""


class Plan:
    """All jobs behind the tables and figures of one configuration.

    Args:
        config: the merged configuration (profile over defaults).
        root: the folder that holds ``config/`` and receives the outputs.

    Attributes:
        jobs: every job by (stage, key), inputs before what needs them.
        named: by stage and name, the jobs of what readers ask for by name.
        resources: by stage, what a job asks of Snakemake.
        processes: on a machine, those of a job that trains; they share its threads.
        systems: the trained systems of the evaluations asked for, by (dataset, experiment, seed).
        evaluations: what measures each of them on the dataset that it was trained on, if anything does.
        launch: the command that runs ``deop`` as the configured Accelerate launch file says.
        launch_alone: the same, but as a single process.
        config_files: the files of the configuration that results depend on, relative to ``root``.

    Raises:
        ConfigError: the first thing in the configuration that cannot be run.
    """

    def __init__(self, config: dict[str, Any], root: Path = Path()) -> None:
        self._root, self._config, self._jobs = root, Configuration(config, root), Jobs(root)
        of_all = (self._jobs, FolderContents(self._config, root), self._config.precision)
        self._pipeline = Pipeline(self._config, *of_all)
        self._variants = {name: Pipeline(setup, *of_all) for name, setup in self._config.variants.items()}
        self.systems: dict[SystemName, Job] = {}
        self.evaluations: dict[SystemName, Job] = {}
        layouts = self._config.layouts
        self._tables = {name: self._read_table(name, layout) for name, layout in layouts.tables.items()}
        benchmarks = {name: self._benchmark(name) for name in self._config.benchmarks}
        self.named = {
            "benchmark": benchmarks,
            "table": {name: self._table(name) for name in layouts.tables},
            "claims": {"claims": self._claims(layouts.claims)} if layouts.claims else {},
            "figure": {name: self._figure(name, benchmarks) for name in layouts.figures},
            "picture": {name: self._picture(name) for name in layouts.pictures},
        }
        self.jobs = self._jobs.by_key
        self.config_files = self._config.files
        launch = self._config.launch_settings
        self.processes = max(1, launch.get("num_processes", 1) // launch.get("num_machines", 1))
        self.resources = _of_jobs(self._config.main.resources, self.processes)
        launch_file = (self._config.launch_file, launch)
        self.launch, self.launch_alone = (
            launch_command(*launch_file),
            launch_command(*launch_file, alone=True),
        )

    @property
    def tables(self) -> dict[str, Job]:
        """The table jobs by table name."""
        return self.named["table"]

    def outputs(self, stage: str) -> list[str]:
        """The files that say that all jobs of ``stage`` are done."""
        return [marker(job) for job in self.jobs.values() if job.stage == stage]

    def inputs(self, stage: str) -> Callable[[Any], list[str]]:
        """A Snakemake input function: the files that the job of ``stage`` with these wildcards reads.

        Rules mark them as ancient: they are named by what made them, so dates say nothing. Benchmarks, which keep
        their names, are not among them.
        """
        return lambda wildcards: self._inputs(stage, wildcards, of_names=False)

    def named_inputs(self, stage: str) -> Callable[[Any], list[str]]:
        """The same of benchmarks: what reads them is made again when they are, hence not ancient."""
        return lambda wildcards: self._inputs(stage, wildcards, of_names=True)

    def job_file(self, stage: str) -> Callable[[Any], str]:
        """A Snakemake params function: where the job of ``stage`` with these wildcards is written down."""
        return lambda wildcards: str(_job_file(self._job(stage, wildcards)))

    def threads_alone(self, stage: str, cores: int | None) -> Callable[[Any], int]:
        """A Snakemake threads function of jobs that measure speed.

        On one machine they claim all ``cores``, so that nothing runs beside them. On a cluster, where Snakemake has no
        cores of its own (None), they claim what they compute with.
        """
        section = {"measure_speed": "speed", "benchmark": "benchmark"}[stage]
        return lambda wildcards: cores or self._job(stage, wildcards).settings[section]["threads"]

    def superseded(self, stage: str) -> Callable[[Any], list[str]]:
        """A Snakemake input function: a file newer than the table or figure on disk, if that is not this plan's.

        A table keeps its file names when its content changes, so its key is in its JSON. Neither dates nor
        records of earlier runs count: a table from a cache or another clone is taken for what it is.
        """

        def marks(wildcards: Any) -> list[str]:
            job = self._job(stage, wildcards)
            return [] if self._is_current(job) else [str(_mark(job))]

        return marks

    def write(self) -> None:
        """Write each job to its file, unless it is there, and mark tables and figures that are not the plan's."""
        for job in self.jobs.values():
            path, text = self._root / _job_file(job), job.model_dump_json(indent=1) + "\n"
            if not path.exists() or path.read_text() != text:
                write_text(path, text)
            if job.stage in NAMED and not self._is_current(job):
                # The time makes the content new as well: Snakemake overlooks a new file with known content.
                write_text(self._root / _mark(job), f"superseded, as seen at {time.time_ns()}\n")

    def _inputs(self, stage: str, wildcards: Any, *, of_names: bool) -> list[str]:
        jobs = self._jobs.inputs_of(self._job(stage, wildcards)).values()
        return sorted({marker(job) for job in jobs if (job.stage in NAMED) == of_names})

    def _job(self, stage: str, wildcards: Any) -> Job:
        if stage in NAMED:
            # Wildcards are called as their stage is; there is one list of claims.
            name, jobs = getattr(wildcards, stage, stage), self.named[stage]
            if name not in jobs:
                raise unknown(f"results of kind {stage}", stage, name, jobs)
            return jobs[name]
        if (stage, wildcards.key) not in self.jobs:
            raise unknown(stage, "key", wildcards.key, [key for other, key in self.jobs if other == stage])
        return self.jobs[stage, wildcards.key]

    def _is_current(self, job: Job) -> bool:
        try:
            return json.loads((self._root / job.output).read_text())["key"] == job.key
        except (OSError, ValueError, KeyError):
            return False

    # What readers ask for.

    def _evaluation(self, experiment: str, dataset: str, seed: int, trained_on: str | None = None) -> Job:
        trained_on = trained_on or self._config.names.trained_on(dataset)
        job = self._of(experiment).evaluation(experiment, dataset, seed, trained_on)
        name = (trained_on, experiment, seed)
        self.systems[name] = self._jobs.inputs_of(job)["system"]
        if trained_on == dataset:
            self.evaluations[name] = job
        return job

    def _of(self, experiment: str) -> Pipeline:
        variant = self._config.variant_of.get(experiment)
        return self._pipeline if variant is None else self._variants[variant]

    def _speed(self, experiments: list[str], dataset: str, trained_on: str | None) -> Job:
        """How fast the systems of a table are, in one run: the checkpoints that its scores of the first seed are of."""
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

    def _read_table(self, name: str, layout: TableLayout) -> tuple[dict[str, Any], Inputs]:
        """What a table shows, and the jobs it is filled from, by role."""
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
            "datasets": [self._describe(dataset, trained_on) for dataset in datasets],
            "metrics": list(layout.metrics),
            "rows": [{**dump(row), "reported": reported.get(row.label, {})} for row in layout.rows],
        }
        return table, inputs

    def _evaluations(
        self, experiments: list[str], datasets: list[str], trained_on: str | None = None
    ) -> Inputs:
        """Evaluations of every seed by ``<experiment>/<dataset>/<seed>``."""
        return {
            f"{experiment}/{dataset}/{seed}": self._evaluation(experiment, dataset, seed, trained_on)
            for experiment in experiments
            for dataset in datasets
            for seed in self._config.main.seeds
        }

    def _dataset(self, name: str) -> str:
        """The dataset that a layout names, either way."""
        return self._config.names.resolve(PLACE, name)

    def _describe(self, name: str, trained_on: str | None = None) -> dict[str, Any]:
        """A dataset as tables speak of it; of the paper's in whose place it stands, if there is one."""
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

    def _table(self, name: str) -> Job:
        table, inputs = self._tables[name]
        # Where these lie changes nothing about what a table shows.
        local = {"table": table | {"artifacts": self._jobs.upstream(inputs.values())}}
        return self._jobs.add("table", f"results/{name}.json", {"table": table}, inputs, local=local)

    def _claims(self, claims: tuple[Claim, ...]) -> Job:
        inputs: Inputs = {}
        entries = []
        for claim in claims:
            table, of_table = self._tables[claim.table]
            rows = {row["experiment"]: row for row in table["rows"]}
            better, worse = rows[claim.better], rows[claim.worse]
            for dataset in (self._describe(self._dataset(name)) for name in claim.datasets):
                column = f"{dataset.get('paper')}.{claim.metric}"
                both = (better["reported"].get(column), worse["reported"].get(column))
                for experiment in (claim.better, claim.worse):
                    for seed in self._config.main.seeds:
                        role = f"{experiment}/{dataset['name']}/{seed}"
                        if inputs.setdefault(role, of_table[role]) is not of_table[role]:
                            raise ConfigError(
                                f"{PLACE}: claims: tables differ in what {experiment!r} was trained on before it was "
                                f"tested on {dataset['name']!r}; one list of claims can speak of one of them"
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
                        "reported": None if None in both else round(both[0] - both[1], 6),
                    }
                )
        settings = {
            "claims": {
                "profile": self._config.main.profile,
                "seeds": list(self._config.main.seeds),
                "claims": entries,
            }
        }
        return self._jobs.add("claims", "results/claims.json", settings, inputs)

    def _figure(self, name: str, benchmarks: dict[str, Job]) -> Job:
        layout, main = self._config.layouts.figures[name], self._config.main
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
            dataset = self._describe(self._dataset(layout.dataset))
            figure["dataset"] = dataset
            figure["rows"] = [{"label": self._label(of), "experiment": of} for of in layout.experiments]
            inputs = self._evaluations(list(layout.experiments), [dataset["name"]])
        return self._jobs.add("figure", f"results/figures/{name}.json", {"figure": figure}, inputs)

    def _benchmark(self, name: str) -> Job:
        settings = {"benchmark": dump(self._config.benchmarks[name])}
        return self._jobs.add("benchmark", f"results/{name}.json", settings, {})

    def _label(self, experiment: str) -> str:
        """What tables call an experiment, if one shows it."""
        rows = (row for table in self._config.layouts.tables.values() for row in table.rows)
        return next((row.label for row in rows if row.experiment == experiment), experiment)

    def _picture(self, name: str) -> Job:
        """A picture of a system at work on a dataset."""
        layout = self._config.layouts.pictures[name]
        dataset = self._dataset(layout.dataset)
        measured = self._evaluation(layout.experiment, dataset, self._config.main.seeds[0])
        short_side = measured.settings["evaluation"]["short_side"]
        settings = {"picture": {"kind": layout.kind, "short_side": short_side}}
        return self._jobs.add(
            "picture", f"results/figures/{name}.json", settings, dict(self._jobs.inputs_of(measured))
        )


def _of_jobs(resources: Resources, processes: int) -> Resources:
    """What jobs take, of which those that train have several processes."""
    scaled = {}
    for stage in LAUNCHED:
        one = getattr(resources, stage)
        scaled[stage] = one.model_copy(
            update={key: processes * getattr(one, key) for key in ("threads", "mem_mb", "gpu")}
        )
    return resources.model_copy(update=scaled)


def _job_file(job: Job) -> Path:
    return JOBS / f"{job.stage}-{job.key}.json"


def _mark(job: Job) -> Path:
    return SUPERSEDED / f"{job.stage}-{Path(job.output).stem}"
