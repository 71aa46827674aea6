"""The command line: commands for people first, then one command a pipeline stage, told what to do by a job file."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import IO, Annotated

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from deop.demo.command import demo
from deop.errors import DeopError, explain, of_the_machine
from deop.jobs.artifacts import code_version
from deop.jobs.integrity import check_inputs
from deop.jobs.job import Job
from deop.jobs.jobs import done_file
from deop.jobs.launch import prepare_process
from deop.jobs.ranks import decided_by_first
from deop.jobs.systems import find_system
from deop.settings.system import CONFIG
from deop.tools.commands import caption_words, doctor, explain_number, export, import_authors
from deop.utils.locks import lock, open_to_lock
from deop.utils.options import (
    CORES,
    DEFAULT_MODEL,
    ModelOption,
    Profiles,
    Project,
    Proposals,
    SystemOption,
    Threads,
)
from deop.utils.processes import end_with_parent

STAGES = {
    "download": "Download and unpack an archive of a dataset, or find it in place.",
    "prepare_data": "Make a dataset: images, label maps, class list, splits.",
    "pretrain_clip": "Pre-train the mini CLIP on generated scenes and captions.",
    "pretrain_backbone": "Pre-train the proposal network's backbone to name single emoji.",
    "learn_prompts": "Learn text prompts offline (section 3.2).",
    "train_proposals": "Train the class-agnostic mask proposal network (section 3.1).",
    "train_system": "Train a method end to end (section 4, figure 1b).",
    "build_system": "Put the networks of a trained system into one folder.",
    "evaluate": "Measure a segmentation network on a validation set.",
    "measure_speed": "Measure how many images a second systems segment, side by side.",
    "benchmark": "Measure what systems cost at their true sizes, by part, side by side.",
    "table": "Write a table from evaluations.",
    "claims": "Compare pairs of systems as the paper does, by a paired bootstrap.",
    "figure": "Plot tables, or what networks do to each class.",
    "picture": "Draw a network at work on validation scenes.",
}
PEOPLE, TOOLS, WORKFLOW = "Your own pictures", "Tools", "Stages of the workflow, which Snakemake calls"


class OneLineErrors(TyperGroup):
    """Errors that a user can put right are one line on standard error, with status 1; others keep their traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except DeopError as error:
            typer.echo(f"deop: {error}", err=True)
            raise typer.Exit(1) from None
        except Exception as error:
            if (line := of_the_machine(error)) is None:
                raise
            typer.echo(f"deop: {line}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=OneLineErrors,
    help="Open-vocabulary segmentation with a decoupled one-pass network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def read_job(path: Path, *stages: str) -> Job:
    """The job in ``path``, of one of ``stages``.

    Raises:
        DeopError: a file that is missing, is not a job, or is a job of another stage.
    """
    try:
        job = Job.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DeopError(
            f"job file {path} is not there; Snakemake writes it when it plans (snakemake -n)"
        ) from None
    except OSError as error:
        raise DeopError(f"job file {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise DeopError(f"invalid job file {explain(error, Job, str(path))}") from None
    if job.stage not in stages:
        raise DeopError(f"job file {path} is for stage {job.stage!r}, not {' or '.join(map(repr, stages))}")
    return job


def wait_for_others(file: IO) -> bool:
    """Keep other processes from running what this file describes until this one ends; whether one had to be waited for.

    Otherwise a process that a killed Snakemake left behind and the one that the next Snakemake starts would
    work in one folder. Of the processes of one launch only the first may take the lock.
    """

    def waiting() -> None:
        typer.echo(f"deop: another process is at {file.name}; waiting for it to end", err=True)

    def unsupported(reason: str) -> None:
        typer.echo(
            f"deop: {file.name} cannot be locked ({reason}); do not start another process at it", err=True
        )

    return lock(file, waiting, unsupported)


@app.command(rich_help_panel=PEOPLE)
def segment(
    images: Annotated[
        list[Path],
        typer.Argument(
            help="images (.jpg, .jpeg, .png, .webp), and folders to search to their depths; - is standard input"
        ),
    ],
    classes: Annotated[
        str | None,
        typer.Option(
            help="any names, 'cat, dog', or @FILE with one a line; those it was trained with if left out"
        ),
    ] = None,
    classes_file: Annotated[
        Path | None, typer.Option(help="a text file with one name a line; - is standard input")
    ] = None,
    background: Annotated[
        str | None,
        typer.Option(
            help="words for what is none of the classes, or the least probability of a class, as 0.5"
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    proposals: Proposals = None,
    output: Annotated[Path, typer.Option(help="folder of the results")] = Path("segments"),
    format: Annotated[str, typer.Option(help="form of the labels: png, npz or coco")] = "png",
    batch_size: Annotated[int, typer.Option(min=1, help="images of one size to compute at once")] = 1,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16, float16, or auto: bfloat16 on a CPU where it is faster"),
    ] = None,
    project: Project = None,
    profile: Profiles = None,
    threads: Threads = CORES,
) -> None:
    """Segment images into any words: an overlay, a label map, and a JSON with areas and scores, for each.

    Resumes an interrupted run. Images that cannot be read are listed at the end, with exit status 1.
    """
    prepare_process(threads)
    options = {"proposals": proposals, "project": project, "profiles": profile or [], "dtype": dtype}
    command = importlib.import_module("deop.tools.segment")
    with tempfile.TemporaryDirectory() as folder:
        given = _with_standard_input(images, Path(folder))
        names = _class_names(classes, classes_file, Path(folder), stdin_taken=given != images)
        broken = command.run(
            model,
            given,
            output,
            classes=names,
            background=background,
            format=format,
            batch_size=batch_size,
            options=options,
        )
    typer.echo(f"deop: results are in {output}", err=True)
    if broken:
        typer.echo(f"deop: {len(broken)} of the images cannot be read, all others are done:", err=True)
        for path, reason in broken.items():
            typer.echo(f"  {path}: {reason}", err=True)
        raise typer.Exit(1)


def _with_standard_input(images: list[Path], folder: Path) -> list[Path]:
    """The images, ``-`` among them as a file in ``folder``."""
    if Path("-") not in images:
        return images
    picture = sys.stdin.buffer.read()
    # Results are kept by name, so different pictures have different ones. What it is is read from its content.
    stdin = folder / f"stdin-{hashlib.sha256(picture).hexdigest()[:8]}.jpg"
    stdin.write_bytes(picture)
    return [stdin if image == Path("-") else image for image in images]


def _class_names(classes: str | None, file: Path | None, folder: Path, *, stdin_taken: bool) -> str | None:
    """The names as ``--classes`` takes them; those of standard input as a file in ``folder``."""
    if file is None:
        return classes
    if classes is not None:
        raise DeopError("--classes and --classes-file are both given; leave one out")
    if file != Path("-"):
        return f"@{file}"
    if stdin_taken:
        raise DeopError("standard input cannot be both an image and the class names")
    names = folder / "classes.txt"
    names.write_bytes(sys.stdin.buffer.read())
    return f"@{names}"


@app.command(rich_help_panel=PEOPLE)
def compare(
    first: Annotated[str, typer.Argument(help="a system, as --model of deop segment takes it")],
    second: Annotated[str, typer.Argument(help="another one")],
    picture: Annotated[Path, typer.Argument(help="an image")],
    classes: Annotated[str | None, typer.Option(help="any names, 'cat, dog'")] = None,
    output: Annotated[Path, typer.Option(help="the picture to write")] = Path("comparison.png"),
    project: Project = None,
    profile: Profiles = None,
    threads: Threads = CORES,
) -> None:
    """Draw what two systems say of a picture side by side, and how far they agree."""
    prepare_process(threads)
    if not picture.is_file():
        raise DeopError(f"{picture} is not there")
    options = {"project": project, "profiles": profile or []}
    agreement = importlib.import_module("deop.tools.compare").run(
        first, second, picture, output, classes, options
    )
    typer.echo(f"{output}: the two agree on {agreement:.1%} of the pixels")


app.command(rich_help_panel=PEOPLE)(demo)


@app.command(rich_help_panel=PEOPLE)
def systems(project: Project = None, profile: Profiles = None) -> None:
    """List the systems of the configuration: what was trained, and its scores on the dataset it was trained on."""
    from rich.console import Console
    from rich.table import Table

    from deop.api.places import BUNDLED_SYSTEMS, bundled_systems, find_project, systems_of

    table = Table("system", "trained", "hIoU", "mIoU", "folder", box=None)
    for system in systems_of(find_project(project), profile or []):
        scores = system.scores or {}
        values = [
            "" if (score := scores.get(name)) is None else f"{100 * score:.1f}" for name in ("hIoU", "mIoU")
        ]
        trained = ("yes", *values, str(system.folder)) if system.trained else ("no", *values, "")
        table.add_row(system.name, *trained)
    for name in bundled_systems():
        table.add_row(name, "bundled", "", "", str(BUNDLED_SYSTEMS / name))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


app.command(rich_help_panel=TOOLS)(doctor)
app.command(name="explain", rich_help_panel=TOOLS)(explain_number)
app.command(rich_help_panel=TOOLS)(export)


@app.command(rich_help_panel=TOOLS)
def export_coco(
    results: Annotated[Path, typer.Argument(help="where the results go, one JSON")],
    system: SystemOption,
    data: Annotated[
        Path | None, typer.Option(help="a prepared dataset, for a system that is given as a folder")
    ] = None,
    profile: Profiles = None,
    threads: Threads = 1,
) -> None:
    """Write the label maps of a validation set as a COCO results file for stuff segmentation.

    Resumes an interrupted run.
    """
    prepare_process(threads)
    found = find_system(system, Path(), profile or [])
    command = importlib.import_module("deop.tools.export_coco")
    with open_to_lock(found.folder / CONFIG) as file:
        wait_for_others(file)
        command.run(command.evaluation_of(found, data), results)


@app.command(rich_help_panel=TOOLS)
def pack(
    system: SystemOption,
    output: Annotated[Path, typer.Argument(help="folder to make")],
    profile: Profiles = None,
) -> None:
    """Copy a trained system with the weights of its CLIP written in, so that the folder can travel alone."""
    prepare_process(1)
    importlib.import_module("deop.tools.pack").run(find_system(system, Path(), profile or []).folder, output)


@app.command(rich_help_panel=TOOLS)
def profile_step(
    job: Annotated[
        Path,
        typer.Argument(help="job file of a training on images, such as .deop/jobs/train_system-KEY.json"),
    ],
    steps: Annotated[int, typer.Option(min=1, help="steps to measure")] = 20,
    threads: Threads = 1,
) -> None:
    """Take a few steps of a training and print where their time goes; nothing is kept.

    In the precision of the job. The inputs of the job have to be there. The workflow
    trains with as many threads as resources in the configuration say; a process beside them loads the images, on a GPU
    as many as there are threads but one.
    """
    prepare_process(threads)
    order = read_job(job, "train_proposals", "train_system")
    typer.echo(importlib.import_module("deop.tools.profile_step").profile_step(order, steps).table())


app.command(name="caption-words", rich_help_panel=TOOLS)(caption_words)
app.command(name="import-authors", rich_help_panel=TOOLS)(import_authors)


def _add_command(stage: str, description: str) -> None:
    def command(
        job: Annotated[Path, typer.Argument(help="job file that the workflow's planner wrote")],
        threads: Threads = 1,
    ) -> None:
        prepare_process(threads)
        if "TORCHELASTIC_RUN_ID" in os.environ:  # one of several processes, whose parent is the launcher
            end_with_parent()
        order = read_job(job, stage)
        with open_to_lock(job) as job_file:
            if decided_by_first(lambda: wait_for_others(job_file) and Path(done_file(order)).exists()):
                return
            check_inputs(order)
            run = importlib.import_module(f"deop.stages.{stage}").run
            code_version()  # of what was just imported; files may change while it runs
            run(order)

    app.command(name=stage.replace("_", "-"), help=description, rich_help_panel=WORKFLOW)(command)


for _stage, _description in STAGES.items():
    _add_command(_stage, _description)
