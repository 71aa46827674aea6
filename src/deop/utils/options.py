"""Options that several commands of the command line have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

SystemOption = Annotated[
    str, typer.Option(help="a trained system: dataset/experiment, as `deop systems` lists them, or a folder")
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "--system",
        help="a system's folder, dataset/experiment as `deop systems` lists them, a bundled system, a name on the "
        "Hugging Face hub, or CLIP/WEIGHTS such as ViT-B-16/openai, which needs no training",
    ),
]
DEFAULT_MODEL = "ViT-B-16/openai"
Proposals = Annotated[
    str | None,
    typer.Option(
        help="for CLIP/WEIGHTS: none, slic, or a MaskFormer, Mask2Former or SAM on the Hugging Face hub"
    ),
]
Project = Annotated[
    Path | None,
    typer.Option(
        help="folder of the workflow that names refer to; DEOP_PROJECT, or this one or one above it"
    ),
]
CORES = os.cpu_count() or 1
Profiles = Annotated[
    list[Path] | None,
    typer.Option(help="profiles: files merged over config/config.yaml in turn, such as config/paper.yaml"),
]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads to compute with")]
