"""The plan: all jobs that a configuration asks for, as Snakemake needs to know them.

Every job has a key, a hash of what determines its output: its stage and the revision of its code, its settings, its
seed if it draws random numbers, and the keys of its inputs. Outputs have that key in their names. An output that
exists is therefore the right one, no matter when it was made, and experiments that need the same thing share it. Names
of experiments and labels of rows are only part of the keys of tables, figures and measurements of speed.

From ``results/table3.csv`` to a training step, a reader passes these files:

1. ``workflow/rules/tables.smk``: the rule that makes a table.
2. :mod:`deop.jobs.plan` (this file): which files it reads.
3. :mod:`deop.jobs.results`: which evaluations a table asks for.
4. :mod:`deop.jobs.pipeline`: which system an evaluation needs, and how that is trained.
5. ``workflow/rules/systems.smk``: the rule that trains it.
6. :mod:`deop.stages.train_system`: what that rule runs.
7. :mod:`deop.training.loop`: the training step.

A plan is built each time the Snakefile is read, so nothing here imports torch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deop.errors import unknown
from deop.jobs.freshness import is_current
from deop.jobs.job import Job
from deop.jobs.jobs import NAMED, Jobs, done_file
from deop.jobs.launch import launch_command
from deop.jobs.results import Results
from deop.settings.configuration import Configuration
from deop.settings.files import Resources
from deop.utils.files import write_text

JOBS = Path(".deop/jobs")
OUTDATED = Path(".deop/outdated")
LAUNCHED = ("pretrain_clip", "pretrain_backbone", "train_proposals", "train_system")
"""Stages that run as several processes if the launch file asks for them."""


class Plan:
    """All jobs behind the tables and figures of one configuration.

    Args:
        config: the merged configuration (profile over defaults).
        root: the folder that holds ``config/`` and receives the outputs.

    Attributes:
        jobs: every job by (stage, key). Jobs come after those whose outputs they read.
        named: by stage and name, the jobs of results that keep their names.
        systems: the trained systems under the results, by (dataset, experiment, seed).
        evaluations: the evaluation of each of these systems on the dataset that it was trained on, if there is one.
        resources: by stage, what a job asks of Snakemake.
        processes: number of processes of a training job on each machine; they share its threads.
        machines: number of machines of a training job.
        config_files: the files of the configuration that results depend on, relative to ``root``.

    Raises:
        ConfigError: the first thing in the configuration that cannot be run.
    """

    def __init__(self, config: dict[str, Any], root: Path = Path()) -> None:
        self._root, self._config, self._jobs = root, Configuration(config, root), Jobs(root)
        results = Results(self._config, self._jobs, root)
        self.jobs, self.named = self._jobs.by_key, results.by_stage
        self.systems, self.evaluations = results.systems, results.evaluations
        self.config_files = self._config.files
        launch = self._config.launch_settings
        self.machines = launch.get("num_machines", 1)
        self.processes = max(1, launch.get("num_processes", 1) // self.machines)
        self.resources = _of_jobs(self._config.main.resources, self.processes)

    def launch(self, stage: str) -> str:
        """The command that runs ``deop`` for ``stage``: as the configured Accelerate launch file says, or alone."""
        return launch_command(
            self._config.launch_file,
            self._config.launch_settings,
            alone=stage not in LAUNCHED,
            gpus=getattr(self.resources, stage).gpu,
        )

    @property
    def tables(self) -> dict[str, Job]:
        """The table jobs by table name."""
        return self.named["table"]

    def outputs(self, stage: str) -> list[str]:
        """The files that exist when all jobs of ``stage`` are done."""
        return [done_file(job) for job in self.jobs.values() if job.stage == stage]

    def input(self, stage: str, role: str) -> Callable[[Any], list[str]]:
        """A Snakemake input function: the file that a job of ``stage`` reads in this role, or none if it reads none.

        Rules mark inputs with keys in their names as ancient, because their dates mean nothing.
        """

        def files(wildcards: Any) -> list[str]:
            job = self._jobs.inputs_of(self._job(stage, wildcards)).get(role)
            return [] if job is None else [done_file(job)]

        return files

    def inputs(self, stage: str, made_by: str) -> Callable[[Any], list[str]]:
        """A Snakemake input function: all files that a job of ``stage`` reads and stage ``made_by`` makes."""

        def files(wildcards: Any) -> list[str]:
            jobs = self._jobs.inputs_of(self._job(stage, wildcards)).values()
            return sorted({done_file(job) for job in jobs if job.stage == made_by})

        return files

    def outdated(self, stage: str) -> Callable[[Any], list[str]]:
        """A Snakemake input function: nothing if the result on disk is up to date, else a file that is newer than it.

        See :mod:`deop.jobs.freshness`.
        """

        def files(wildcards: Any) -> list[str]:
            job = self._job(stage, wildcards)
            return [str(_outdated_file(job))] if job.output in self._outdated else []

        return files

    def job_file(self, stage: str) -> Callable[[Any], str]:
        """A Snakemake params function: the file in which the job of ``stage`` with these wildcards is written."""
        return lambda wildcards: str(_job_file(self._job(stage, wildcards)))

    def asked(self, stage: str) -> dict[str, Any]:
        """What the rule of ``stage`` asks for besides threads, as Snakemake's resources.

        Memory and wall time grow with each attempt at a job, in case they are why the last one failed. A training job
        on several machines has one task on each: its own ``srun`` starts them, which ``mpi`` tells Snakemake's plugin
        for Slurm. Memory is that of each machine, and GPUs those of all.
        """
        of_stage = getattr(self.resources, stage)
        asked: dict[str, Any] = {
            "mem_mb": lambda wildcards, attempt: attempt * of_stage.mem_mb,
            "runtime": lambda wildcards, attempt: attempt * of_stage.runtime,
            "gpu": of_stage.gpu,
        }
        if stage in LAUNCHED and self.machines > 1:
            asked |= {"nodes": self.machines, "tasks": self.machines, "mpi": "srun"}
            if of_stage.gpu:
                # Without the first, the plugin would ask for as many tasks per GPU; without the second, the GPUs of a
                # job could lie unevenly on its machines.
                asked |= {"tasks_per_gpu": 0, "gres": f"gpu:{of_stage.gpu}"}
                asked["gpu"] *= self.machines
        return asked

    def threads_alone(self, stage: str, cores: int | None) -> Callable[[Any], int]:
        """A Snakemake threads function of jobs that measure speed.

        On one machine they claim all ``cores``, so that nothing runs beside them. On a cluster, where Snakemake has no
        cores of its own (None), they claim the threads that they compute with.
        """
        section = {"measure_speed": "speed", "benchmark": "benchmark"}[stage]
        return lambda wildcards: cores or self._job(stage, wildcards).settings[section]["threads"]

    def write(self) -> None:
        """Writes a file for each job, and one for each result that is outdated (see :meth:`outdated`)."""
        for job in self.jobs.values():
            path, text = self._root / _job_file(job), job.model_dump_json(indent=1) + "\n"
            if not path.exists() or path.read_text() != text:
                write_text(path, text)
            if job.output in self._outdated:
                # The time makes the content new as well: Snakemake ignores a new date if the content is the same.
                write_text(self._root / _outdated_file(job), f"outdated as of {time.time_ns()}\n")

    @functools.cached_property
    def _outdated(self) -> set[str]:
        """The outputs of results that are not up to date when this is first asked for."""
        jobs = (job for job in self.jobs.values() if job.stage in NAMED)
        return {job.output for job in jobs if not is_current(job, self._root)}

    def _job(self, stage: str, wildcards: Any) -> Job:
        """The job of ``stage`` with these wildcards: ``key`` or, of results that keep their names, the stage's name."""
        if stage in NAMED:
            name, jobs = getattr(wildcards, stage, stage), self.named[stage]  # of claims there is one list
            if name not in jobs:
                raise unknown(f"results of kind {stage}", stage, name, jobs)
            return jobs[name]
        if (stage, wildcards.key) not in self.jobs:
            raise unknown(stage, "key", wildcards.key, [key for other, key in self.jobs if other == stage])
        return self.jobs[stage, wildcards.key]


def _of_jobs(resources: Resources, processes: int) -> Resources:
    """The resources of jobs, which for training jobs are those of all their processes on a machine."""
    scaled = {}
    for stage in LAUNCHED:
        one = getattr(resources, stage)
        scaled[stage] = one.model_copy(
            update={key: processes * getattr(one, key) for key in ("threads", "mem_mb", "gpu")}
        )
    return resources.model_copy(update=scaled)


def _job_file(job: Job) -> Path:
    return JOBS / f"{job.stage}-{job.key}.json"


def _outdated_file(job: Job) -> Path:
    return OUTDATED / f"{job.stage}-{Path(job.output).stem}"
