"""Estimates from a few steps how many hours the training jobs of a plan take on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from deop.jobs.job import Job, schedule_of
from deop.jobs.plan import Plan
from deop.settings.configuration import Configuration

if TYPE_CHECKING:
    from deop.tools.trial_step import Trial

STAGES = ("train_proposals", "train_system")
CLASSES = 150
"""Assumed number of seen classes of a real dataset, about that of COCO-Stuff."""
UNDISTURBED = 0.9
"""The share of its wall time that a step has the CPU for, at least, on an otherwise idle machine."""
GIB = 2**30


class Machine(NamedTuple):
    """CPU cores, GPUs, and bytes of memory of a GPU."""

    cores: int
    gpus: int = 0
    memory: int = 0


class Estimate(NamedTuple):
    """The time that a group of similar jobs takes on an otherwise idle machine.

    Attributes:
        trial: of the largest job.
        jobs: number of jobs.
        longest: hours of the largest job.
        hours: of all jobs, one after another.
        at_once: number of jobs that this machine runs in parallel.
        processes: of one job.
        load: of the machine during the trial: runnable processes, averaged over a minute.
        busy: whether other processes slowed the trial down.
    """

    trial: Trial
    jobs: int
    longest: float
    hours: float
    at_once: int
    processes: int
    load: float
    busy: bool

    def describe(self, machine: Machine) -> str:
        """The estimate in words."""
        trial = self.trial
        memory = f", at most {trial.peak / GIB:.1f} of {machine.memory / GIB:.0f} GiB" if trial.peak else ""
        parts = "" if trial.images == trial.share else f", {trial.images} at a time"
        told = f"{trial.idle_seconds:.3g} s a step of {trial.share} images{parts}{memory}"
        if self.processes > 1:
            told += f", on each of {self.processes} processes, without communication"
        if self.jobs == 1:
            told += f": the one job takes {duration(self.longest)}"
        else:
            told += f": the longest of {self.jobs} jobs takes {duration(self.longest)}, "
            told += f"all one after another {duration(self.hours)}"
        if self.at_once > 1:
            told += f", {self.at_once} side by side at least {duration(side_by_side([self]))}"
        if self.busy and trial.idle_seconds < trial.seconds:
            share = trial.idle_seconds / trial.seconds
            told += (
                f". Other processes were running: steps took {trial.seconds:.3g} s, of which this one had the CPU for "
                f"{share:.0%}. The times above are corrected for that; at this load they are {1 / share:.1f} times as "
                "long"
            )
        elif self.busy:
            told += (
                f". Other processes were running (load {self.load:.1f} on {machine.cores} cores): the times above are "
                "upper bounds"
            )
        return told


def groups(plan: Plan) -> dict[str, list[Job]]:
    """The training jobs on images by stage and method, and by CLIP where there are several, the largest of each
    first."""
    found: dict[str, dict[str, list[Job]]] = {}
    for job in plan.jobs.values():
        if job.stage in STAGES:
            of = f" of {job.settings['method']['method']}" if "method" in job.settings else ""
            model = job.settings.get("clip", {}).get("model", "")
            found.setdefault(job.stage + of, {}).setdefault(model, []).append(job)
    return {
        subject if len(by_model) == 1 else f"{subject} with {model}": sorted(jobs, key=_size, reverse=True)
        for subject, by_model in found.items()
        for model, jobs in by_model.items()
    }


def estimate_group(
    plan: Plan, config: Configuration, jobs: list[Job], machine: Machine, seconds: float
) -> Estimate:
    """Runs steps of the first of ``jobs`` for about ``seconds``; the others are assumed to take as long per pixel.

    Raises:
        torch.cuda.OutOfMemoryError: a step does not fit the GPU.
        DeopError: a network that cannot be built.
    """
    from deop.tools.trial_step import try_step

    launch, first = config.launch_settings, jobs[0]
    processes = launch.get("num_processes", 1)
    resources = getattr(plan.resources, first.stage)
    trial = try_step(
        first,
        _seen_classes(plan, first),
        processes=processes,
        threads=max(1, resources.threads // plan.processes),
        launch=launch,
        seconds=seconds,
    )
    load = os.getloadavg()[0]
    longest = trial.idle_seconds * schedule_of(first)["iterations"] / 3600
    # The trial itself is one process.
    busy = load > machine.cores + 1 if machine.gpus else trial.idle_seconds < UNDISTURBED * trial.seconds
    at_once = machine.gpus // resources.gpu if resources.gpu else machine.cores // resources.threads
    return Estimate(
        trial=trial,
        jobs=len(jobs),
        longest=longest,
        hours=longest * sum(map(_pixels, jobs)) / max(1, _pixels(first)),
        at_once=max(1, min(at_once, len(jobs))),
        processes=processes,
        load=load,
        busy=busy,
    )


def side_by_side(estimates: Iterable[Estimate]) -> float:
    """Hours of all jobs if as many run in parallel as the machine has room for, each as fast as alone."""
    return sum(max(estimate.longest, estimate.hours / estimate.at_once) for estimate in estimates)


def total(estimates: list[Estimate]) -> str:
    """The time of all of them, in words."""
    jobs, hours = sum(estimate.jobs for estimate in estimates), sum(estimate.hours for estimate in estimates)
    told = f"{jobs} jobs, {duration(hours)} one after another"
    if any(estimate.at_once > 1 for estimate in estimates):
        told += f", at least {duration(side_by_side(estimates))} side by side"
    if any(estimate.busy for estimate in estimates):
        told += ", on a machine that does nothing else"
    return told


def duration(hours: float) -> str:
    """``45 s``, ``6.1 min`` or ``3.5 h``."""
    seconds = 3600 * hours
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if hours < 1 else f"{hours:.3g} h"


def _pixels(job: Job) -> int:
    """Pixels of all training images of a job, to which its time is proportional."""
    training = schedule_of(job)
    return training["iterations"] * training["batch_size"] * training["augmentation"]["crop"] ** 2


def _size(job: Job) -> tuple[int, bool, bool]:
    """Sorting key by duration: with the same number of pixels, networks with more parts take longer."""
    network = job.settings.get("method", {})
    anchors = network.get("anchors", {}).get("kind", "none") != "none"
    return _pixels(job), anchors, network.get("visual_prompts", False)


def _seen_classes(plan: Plan, job: Job) -> int:
    """Number of seen classes of a job's dataset, :data:`CLASSES` if the configuration does not list them."""
    data = next(other for other in plan.jobs.values() if other.output == job.inputs["data"])
    vocabulary = data.settings["dataset"].get("vocabulary")
    if not isinstance(vocabulary, dict):
        return CLASSES
    return len(vocabulary["things"]) + len(vocabulary["stuff"]) - len(vocabulary["unseen"])
