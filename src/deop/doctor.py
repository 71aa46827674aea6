"""Whether a machine is fit for a profile: looked at in a minute or so, before days are spent."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from deop.config import Configuration
from deop.config_files import read_profile
from deop.errors import DeopError
from deop.plan import Plan

PYTHON = (3, 11)
STEP_SECONDS = 10.0
"""How long training steps are tried for; a first one is always finished."""
CLASSES = 150
"""Seen classes in trial steps, about as many as COCO-Stuff has."""
GIB = 2**30


class Finding(NamedTuple):
    """One line of the report. ``remedy`` says what to do about anything but a pass."""

    subject: str
    status: Literal["pass", "warn", "fail"]
    found: str
    remedy: str = ""


def examine(root: Path, profile: Path | None = None) -> Iterator[Finding]:
    """Looks at everything that a run of ``profile`` (a file put over ``config/config.yaml``) rests on, in ``root``.

    Findings come one by one, the quick ones first. Nothing is downloaded and nothing is left behind.
    """
    yield _python()
    try:
        values = read_profile(root, profile)
        config, plan = Configuration(values, root), Plan(values, root)
    except DeopError as error:
        yield Finding("configuration", "fail", str(error), "mend the file named")
        return
    profile_name = config.main.profile
    stages = {job.stage for job in plan.jobs.values()}
    yield Finding(
        "configuration", "pass", f"profile {profile_name}: {len(plan.jobs)} jobs of {len(stages)} stages"
    )
    yield from _gpus(config, plan)
    yield from _folders(root, config)
    yield from _data(root, config, plan)
    yield from _weights(config)
    yield _training_step(config, plan)


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= PYTHON:
        return Finding("Python", "pass", found)
    return Finding("Python", "fail", found, f"use Python {'.'.join(map(str, PYTHON))} or newer")


def _gpus(config: Configuration, plan: Plan) -> Iterator[Finding]:
    import torch

    version = f"torch {torch.__version__}"
    wanted = max(
        getattr(plan.resources, stage).gpu
        for stage in type(plan.resources).model_fields
        if stage in plan.stages
    )
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(present)}))
    yield Finding("torch", "pass", f"{version}, CUDA {torch.version.cuda or 'none'}")
    if not wanted:
        yield Finding("GPUs", "pass", f"{present}; this profile asks for none")
    elif present < wanted:
        remedy = (
            "set accelerate to a launch file for the GPUs there are (config/accelerate; single for one), "
            "or run where there are more"
        )
        status = "fail" if not present else "warn"
        yield Finding(
            "GPUs", status, f"{present} ({names or 'none'}); this profile asks for {wanted} at once", remedy
        )
    else:
        yield Finding("GPUs", "pass", f"{present} ({names})")
    precision = config.launch_settings.get("mixed_precision", "no")
    if present and precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding(
            "precision",
            "warn",
            "no bf16 arithmetic: fp16 is used",
            "none is needed; scores may differ a little",
        )


def _folders(root: Path, config: Configuration) -> Iterator[Finding]:
    """Whether the folders that a run writes to can be written to."""
    for folder in ("data", "checkpoints", "results", "logs", ".deop"):
        place = root / folder
        existing = next(parent for parent in (place, *place.parents) if parent.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            yield Finding(
                f"{folder}/",
                "fail",
                f"{existing.resolve()} cannot be written to ({error.strerror})",
                "mend its permissions",
            )
            continue
    yield Finding("folders", "pass", "data, checkpoints, results and logs can be written to")


def _training(plan: Plan, config: Configuration) -> Iterator[Finding]:
    """How long the stages that train will take here, from a few steps of the largest job of each, and whether it fits."""
    import torch

    from deop.trial_step import try_step

    total = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    processes = config.launch_settings.get("num_processes", 1)
    for stage, section in (("train_proposals", "proposals"), ("train_segmentation", "segmentation")):
        jobs = [job for job in plan.jobs.values() if job.stage == stage]
        if not jobs:
            continue
        costs = {job.key: _pixels(job.settings[section]) for job in jobs}
        largest = max(jobs, key=lambda job: costs[job.key])
        try:
            trial = try_step(largest, CLASSES, processes, STEP_SECONDS)
        except torch.cuda.OutOfMemoryError:
            remedy = f"set resources.{stage}.micro_batch to fewer images; the batch stays the same"
            yield Finding(stage, "fail", f"a step does not fit the GPU's {total / GIB:.0f} GiB", remedy)
            continue
        hours = trial.seconds * largest.settings[section]["iterations"] / 3600
        all_hours = hours * sum(costs.values()) / costs[largest.key]
        memory = f", at most {trial.peak / GIB:.1f} of {total / GIB:.0f} GiB" if total else ""
        found = (
            f"{trial.seconds:.3g} s a step ({trial.images} images at once{memory}): the longest job takes "
            f"{hours:.3g} h of {processes} process(es), all {len(jobs)} about {all_hours:.3g} h; loading images not counted"
        )
        tight = total and trial.peak > 0.9 * total
        yield Finding(
            stage, "warn" if tight else "pass", found, f"lower resources.{stage}.micro_batch" if tight else ""
        )


def _pixels(training: dict) -> int:
    """What a training's time grows with."""
    return training["iterations"] * training["batch_size"] * training["augmentation"]["crop"] ** 2
