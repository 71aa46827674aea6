"""Stage ``picture``: a network at work on validation images; the settings say which kind of picture."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from deop.data.segmentation import SegmentationDataset
from deop.jobs.artifacts import describe
from deop.jobs.freshness import identity
from deop.jobs.job import Job
from deop.methods.system import load_system
from deop.reporting import anchor_picture, scene_picture
from deop.reporting.plot_style import save_figure
from deop.settings.stages import PictureSettings
from deop.utils.files import write_json

DRAW = {"scene": scene_picture.draw, "anchors": anchor_picture.draw}


@torch.inference_mode()
def run(job: Job) -> None:
    """Draws ``job``'s system as PNG and SVG beside ``job.output``, a JSON (last) of what it shows and its provenance.

    Raises:
        DeopError: a system or a dataset of which this kind of picture cannot be drawn.
    """
    started = time.monotonic()
    settings = PictureSettings.model_validate(job.settings["picture"])
    kind, short_side = settings.kind, settings.short_side
    dataset = SegmentationDataset(job.inputs["data"], "val")
    segmenter = load_system(job.inputs["system"])
    # Masks and heatmaps are drawn over the image itself, so it is not padded, however the system is evaluated.
    segmenter.size_divisibility, segmenter.upsample = 1, "masks"
    picture = DRAW[kind](segmenter, dataset, short_side)
    output = Path(job.output)
    for suffix in (".png", ".svg"):
        save_figure(picture.figure, output.with_suffix(suffix))
    provenance = describe(job, wall_time_s=round(time.monotonic() - started, 2))
    # The workflow knows by the key and inputs in this file whether the picture is up to date.
    write_json(output, {**identity(job), "kind": kind, **picture.shows, "provenance": provenance})
