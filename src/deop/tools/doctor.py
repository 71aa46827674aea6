"""Checks in about a minute whether a machine can run a profile, before long work starts."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import requests

from deop.data.downloads.manifests import ARCHIVES, verify
from deop.data.downloads.sources import count
from deop.errors import DeopError, WeightsError
from deop.jobs.job import Job
from deop.jobs.jobs import NAMED
from deop.jobs.plan import Plan
from deop.settings.configuration import Configuration
from deop.settings.downloads import Download
from deop.settings.files import read_profile
from deop.tools.training_hours import STAGES, Machine, estimate_group, groups, total

PYTHON = (3, 11, 4)
STEP_SECONDS = 10.0
"""Time for trial training steps; at least two are always finished."""
HOST_SECONDS = 10.0
"""Timeout for a host to answer."""
GIB = 2**30


class Finding(NamedTuple):
    """One line of the report. ``remedy`` says what to do about a warning or failure."""

    subject: str
    status: Literal["pass", "warn", "fail"]
    found: str
    remedy: str = ""


def examine(root: Path, *profiles: Path) -> Iterator[Finding]:
    """Checks everything in ``root`` that a run of ``profiles`` (files merged over ``config/config.yaml``) needs.

    Yields findings one by one, quick checks first. Downloads nothing and leaves no files.
    """
    yield _python()
    try:
        values = read_profile(root, *profiles)
        config, plan = Configuration(values, root), Plan(values, root)
    except DeopError as error:
        yield Finding("configuration", "fail", str(error), "mend the file named")
        return
    profile_name = config.main.profile
    stages = {job.stage for job in plan.jobs.values()}
    yield Finding(
        "configuration", "pass", f"profile {profile_name}: {len(plan.jobs)} jobs of {len(stages)} stages"
    )
    # The workflow sets this for its stages; it has to be set before the device is first used.
    os.environ.setdefault("ACCELERATE_USE_CPU", str(config.launch_settings.get("use_cpu", False)))
    yield from _gpus(config, plan, stages)
    yield from _folders(root, config)
    yield from _data(root, config, plan)
    yield from _weights(plan)
    yield from _training(plan, config)


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= PYTHON:
        return Finding("Python", "pass", found)
    return Finding("Python", "fail", found, f"use Python {'.'.join(map(str, PYTHON))} or newer")


def _gpus(config: Configuration, plan: Plan, stages: set[str]) -> Iterator[Finding]:
    import torch

    version = f"torch {torch.__version__}"
    wanted = max(getattr(plan.resources, stage).gpu for stage in stages)
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
    if present or not wanted:
        yield _precision(config)


def _precision(config: Configuration) -> Finding:
    """Whether this machine supports the configured precision."""
    from deop.training.loop import make_accelerator

    asked, precision = config.main.precision, config.precision
    try:
        make_accelerator(precision)
    except DeopError as error:
        return Finding("precision", "fail", str(error), "set precision, or run where there is such a device")
    return Finding(
        "precision", "pass", precision if asked == precision else f"{precision} (precision: {asked})"
    )


def _folders(root: Path, config: Configuration) -> Iterator[Finding]:
    """Whether the folders of a run are writable."""
    writable = True
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
            writable = False
    if writable:
        yield Finding("folders", "pass", "data, checkpoints, results and logs can be written to")


def _data(root: Path, config: Configuration, plan: Plan) -> Iterator[Finding]:
    """Which datasets are complete, whether the others can be downloaded, and whether these fit on the disk."""
    sources = [
        Download.model_validate(job.settings["source"])
        for job in plan.jobs.values()
        if job.stage == "download"
    ]
    missing = []
    for source in sources:
        try:
            verify(source.model_copy(update={"root": str(root / source.root)}))
        except DeopError as error:
            if any(count(source.entry.holds, root / source.root).values()):
                yield Finding(source.name, "fail", str(error), "as it says")
            else:
                missing.append(source)
        else:
            yield Finding(source.name, "pass", f"is whole in {source.root}")
    for source in missing:
        yield _reachable(source)
    if missing:
        folder = root / config.main.data.root
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        needed, free = _space([source.entry.bytes for source in missing]), shutil.disk_usage(existing).free
        found = (
            f"{free / GIB:.0f} GiB free at {existing}, about {needed / GIB:.0f} GiB needed "
            f"for {len(missing)} downloads"
        )
        remedy = (
            ""
            if free > needed
            else "make room, set data.root to a larger disk, or data.keep_archives to false"
        )
        yield Finding("disk", "pass" if free > needed else "fail", found, remedy)


def _space(sizes: list[int | None]) -> float:
    """Disk space for archives and their contents in bytes; an archive of unknown size counts as 2 GiB."""
    return sum(2.1 * (2 * GIB if size is None else size) for size in sizes)


def _reachable(source: Download) -> Finding:
    """Whether an archive is available: the file exists, or one of its addresses answers."""
    archive = Path(source.path or Path(source.root) / ARCHIVES / source.entry.archive)
    if archive.exists():
        return Finding(source.name, "pass", f"{archive} is there, to be unpacked")
    addresses = (*source.mirrors, *source.entry.urls)
    if not addresses:
        remedy = f"{source.entry.how_to_get}; then set data.sources.{source.name}.path to where it is"
        return Finding(source.name, "fail", "is handed out by its owners only", remedy)
    problems = {address: _problem(address) for address in addresses}
    for address, problem in problems.items():
        if problem is None:
            return Finding(source.name, "pass", f"can be downloaded from {urlsplit(address).netloc}")
    remedy = f"add a mirror to data.sources.{source.name}.mirrors, or name a copy in data.sources.{source.name}.path"
    found = "; ".join(f"{address}: {problem}" for address, problem in problems.items())
    return Finding(source.name, "fail", found, remedy)


def _weights(plan: Plan) -> Iterator[Finding]:
    """Which pre-trained weights exist, and whether the others can be downloaded."""
    from deop.models.pretrained import cached_backbone, cached_clip

    clips = {
        tuple(job.settings["clip"][key] for key in ("model", "pretrained", "quick_gelu"))
        for job in _with(plan, "clip")
    }
    for model, pretrained, quick_gelu in sorted(clips, key=str):
        if pretrained in (None, "bundled"):
            yield Finding(f"CLIP {model}", "pass", "needs no download")
        elif Path(pretrained).is_file() or Path(pretrained).suffix in (".safetensors", ".pt", ".bin", ".pth"):
            yield _clip_file(model, Path(pretrained), quick_gelu)
        else:
            yield _download(f"CLIP {model}", partial(cached_clip, model, pretrained), "clip.pretrained")
    backbones = {
        (job.settings["proposals"]["backbone"], job.settings["proposals"]["pretrained_backbone"])
        for job in _with(plan, "proposals")
    }
    for name, pretrained in sorted(backbones, key=str):
        if pretrained is True:
            key = "proposals.pretrained_backbone"
            yield _download(f"backbone {name}", partial(cached_backbone, name), key)
        elif pretrained in (False, "bundled"):
            yield Finding(f"backbone {name}", "pass", "needs no download")
        else:
            yield _file(f"backbone {name}", Path(pretrained), "proposals.pretrained_backbone")
    methods = [job.settings["method"] for job in _with(plan, "method")]
    for path, name in sorted({(path, of["method"]) for of in methods for path in of.get("word_vectors", ())}):
        yield _file(f"word vectors of {name}", Path(path), f"methods.{name}.word_vectors")
    keys = ("captions", "more_captions")
    captions = {(of[key], key) for of in methods for key in keys if of.get(key) not in (None, "scenes")}
    for path, key in sorted(captions):
        found = _file(key.replace("_", " "), Path(path), key)
        remedy = f"make it with deop caption-words, or set {key} to one that is there"
        yield found if found.status == "pass" else found._replace(remedy=remedy)


def _clip_file(model: str, path: Path, quick_gelu: bool | None) -> Finding:
    """Whether a file of CLIP's weights exists, and whether it is known which activation they need."""
    import deop.models.clip  # noqa: F401  registers the package's own models
    from deop.models.clip_build import uses_quick_gelu

    found = _file(f"CLIP {model}", path, "clip.pretrained")
    if found.status == "pass":
        try:
            uses_quick_gelu(model, str(path), path, quick_gelu)
        except DeopError as error:
            return Finding(f"CLIP {model}", "fail", str(error), "as it says")
    return found


def _with(plan: Plan, section: str) -> list[Job]:
    return [job for job in plan.jobs.values() if section in job.settings]


def _file(subject: str, path: Path, key: str) -> Finding:
    if path.is_file():
        return Finding(subject, "pass", f"{path} is there")
    return Finding(subject, "fail", f"{path} is not there", f"set {key} to a file of weights that is")


def _download(subject: str, find: Callable[[], tuple[Path | None, str]], key: str) -> Finding:
    """Whether weights exist or can be downloaded; ``find`` returns their path, None if missing, and their address."""
    try:
        path, address = find()
    except WeightsError as error:
        return Finding(
            subject, "fail", str(error), f"set {key}, also where a variant has it, to what is valid"
        )
    if path is not None:
        return Finding(subject, "pass", f"{path} is there")
    problem = _problem(address)
    if problem is None:
        return Finding(subject, "pass", f"can be downloaded from {urlsplit(address).netloc}")
    remedy = f"download that file on a machine that may, and set {key} to its path"
    return Finding(subject, "fail", f"{address}: {problem}", remedy)


def _problem(address: str) -> str | None:
    """Why an address cannot be downloaded from, None if it can."""
    try:
        # Not a HEAD request, which some servers refuse; nothing of the body is read.
        with requests.get(address, stream=True, timeout=HOST_SECONDS) as answer:
            answer.raise_for_status()
    except requests.RequestException as error:
        return f"answers {error.response.status_code}" if error.response is not None else type(error).__name__
    return None


def _training(plan: Plan, config: Configuration) -> Iterator[Finding]:
    """How long training will take here and whether it fits, from a few steps of each stage's largest job."""
    import torch

    if torch.cuda.is_available():
        machine = Machine(
            _cores(), torch.cuda.device_count(), torch.cuda.get_device_properties(0).total_memory
        )
    else:
        machine = Machine(_cores())
    estimates, left_out = [], []
    for subject, jobs in groups(plan).items():
        stage = jobs[0].stage
        if not machine.gpus and getattr(plan.resources, stage).gpu:
            yield Finding(
                subject, "warn", "no step was tried: there is no GPU", "look again where there is one"
            )
            left_out.append(subject)
            continue
        try:
            estimate = estimate_group(plan, config, jobs, machine, STEP_SECONDS)
        except torch.cuda.OutOfMemoryError:
            remedy = f"set resources.{stage}.micro_batch to fewer images; the batch stays the same"
            if stage == "train_system":
                remedy += "; if one is too many, set gradient_checkpointing beside it"
            found = f"a step does not fit the GPU's {machine.memory / GIB:.0f} GiB"
            yield Finding(subject, "fail", found, remedy)
            left_out.append(subject)
            continue
        except (
            DeopError,
            ValueError,
            FloatingPointError,
        ) as error:  # parts that do not fit each other, or overflow in fp16
            yield Finding(subject, "fail", f"no step can be taken: {error}", "change its settings")
            left_out.append(subject)
            continue
        estimates.append(estimate)
        tight = machine.memory and estimate.trial.peak > 0.9 * machine.memory
        remedies = [f"lower resources.{stage}.micro_batch"] if tight else []
        if estimate.busy:
            remedies.append("look again when nothing else runs")
        yield Finding(
            subject, "warn" if remedies else "pass", estimate.describe(machine), "; ".join(remedies)
        )
    if estimates:
        others = {job.stage for job in plan.jobs.values()} - {*STAGES, *NAMED}
        not_counted = ", ".join([*sorted(others), *left_out])
        yield Finding("training", "pass", f"{total(estimates)}; not counted: {not_counted}")


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
