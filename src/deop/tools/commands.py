"""Commands that are tools beside the workflow: their options, and what they print."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from deop.jobs.launch import keep_freed_memory, prepare_process
from deop.utils.options import CORES, Profiles, Project, Proposals, Threads

COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


def doctor(
    profiles: Annotated[
        list[Path] | None,
        typer.Argument(
            help="profiles: files merged over config/config.yaml in turn, such as config/paper.yaml"
        ),
    ] = None,
) -> None:
    """Look at this machine before days are spent on it: each line passes, warns or fails, with what to do."""
    from deop.tools.doctor import examine

    keep_freed_memory()  # as every stage does, or training steps would take longer here
    failed = 0
    for finding in examine(Path(), *(profiles or [])):
        failed += finding.status == "fail"
        typer.secho(f"{finding.status:<5}", nl=False, bold=True, fg=COLOURS[finding.status])
        typer.echo(f"{finding.subject}: {finding.found}")
        if finding.remedy:
            typer.echo(f"      to do: {finding.remedy}")
    raise typer.Exit(1 if failed else 0)


def explain_number(
    table: Annotated[
        Path, typer.Argument(help="a table in the workflow's results, such as results/table3.csv")
    ],
    row: Annotated[str, typer.Argument(help="the method, as the table calls it, such as DeOP")],
    column: Annotated[str, typer.Argument(help="dataset and metric, such as es171.hIoU")],
) -> None:
    """Walk from a number to what made it: seeds, evaluations, systems, trainings, data, weights, commits, machine.

    The last line is the command that makes it again.
    """
    typer.echo(importlib.import_module("deop.tools.explain").explain(table, row, column))


def export(
    model: Annotated[str, typer.Argument(help="a system, as --model of deop segment takes it")],
    to: Annotated[str, typer.Option(help="onnx, or openvino")] = "onnx",
    classes: Annotated[
        str | None,
        typer.Option(
            help="a vocabulary to freeze into the graph, 'cat, dog' or @FILE; any names if left out"
        ),
    ] = None,
    proposals: Proposals = None,
    output: Annotated[Path | None, typer.Option(help="file to write")] = None,
    int8: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="a prepared dataset, such as data/es171-KEY: the graph is in int8, calibrated on its training images "
            "and measured on its validation images",
        ),
    ] = None,
    calibration_images: Annotated[
        int, typer.Option(min=1, help="for --int8: images to calibrate on, at most")
    ] = 128,
    validation_images: Annotated[
        int | None, typer.Option(min=1, help="for --int8: images to measure on, at most; all if left out")
    ] = None,
    project: Project = None,
    profile: Profiles = None,
    threads: Threads = CORES,
) -> None:
    """Write a system as a graph for ONNX Runtime or OpenVINO, and check that it labels as the network does.

    A graph in int8 is written only if it costs no more than 0.5 points of hIoU.
    """
    prepare_process(threads)
    options = {"proposals": proposals, "project": project, "profiles": profile or []}
    command = importlib.import_module("deop.tools.export")
    data = int8 and command.Int8(int8, calibration_images, validation_images)
    path, agreement, cost = command.run(model, output, to, classes=classes, int8=data, options=options)
    what = "in float32, it labels" if cost else "labels"
    typer.echo(f"{path}: {what} {agreement:.2%} of the pixels of a test image as the network does")
    if cost:
        typer.echo(f"{path}: {cost.summary()}")


def caption_words(
    sources: Annotated[
        list[Path],
        typer.Argument(help="captions of COCO (captions_train2017.json) or Localized Narratives (.jsonl)"),
    ],
    images: Annotated[Path, typer.Option(help="folder of the images, such as train2017")],
    output: Annotated[Path, typer.Option(help="the CSV to write")],
) -> None:
    """Write the nouns and adjectives of captions as a CSV, for `captions` and `more_captions` of OpenSeg."""
    written = importlib.import_module("deop.tools.caption_words").run(sources, images, output)
    typer.echo(
        f"{output}: {written.captions} captions of {written.images} images; left out are {written.without_image} whose "
        f"image is not in {images}, and {written.without_word} without a noun or adjective"
    )


def import_authors(
    checkpoint: Annotated[Path, typer.Argument(help="the release's model_final.pth")],
    output: Annotated[Path, typer.Argument(help="folder to make")],
    data: Annotated[
        Path | None, typer.Option(help="a prepared dataset to measure it on, such as data/coco-KEY")
    ] = None,
) -> None:
    """Import the authors' released DeOP checkpoint: every tensor into our networks, or listed as left out."""
    from deop.tools.import_authors import class_names, import_checkpoint

    imported = import_checkpoint(checkpoint, output, data)
    for part, tensors in imported.parts.items():
        typer.echo(f"{part}: {len(tensors)} tensors")
    typer.echo(f"{len(imported.left_out)} left out:")
    for name, reason in imported.left_out.items():
        typer.echo(f"  {name}: {reason}")
    typer.echo(f"To use it: deop segment --system {output} IMAGES --output FOLDER")
    if data is not None:
        typer.echo(f"Class names: {class_names(output, data)}")
        typer.echo(f"To measure it: deop evaluate {output / 'evaluate.json'}")
