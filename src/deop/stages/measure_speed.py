"""Stage ``measure_speed``: how many images a second systems segment, side by side in one run (section 5)."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from deop.data.segmentation import SegmentationDataset
from deop.data.transforms import resize_short_side
from deop.jobs.artifacts import describe
from deop.jobs.integrity import write_sealed
from deop.jobs.job import Job
from deop.methods.inference import prepare
from deop.settings.stages import Evaluation, Speed
from deop.stages.evaluate import load_tested
from deop.training.loop import make_accelerator
from deop.utils.progress import progress_bar
from deop.utils.timing import wait_for


def run(job: Job) -> None:
    """Writes as JSON to ``job.output``, for each system, its median latency and images a second.

    Systems take turns at every image, one image at a time, so that whatever else the machine does slows all of them
    alike. Timed is all between an image in memory and its label map: resizing, both networks, the likeliest of all
    classes at every pixel of the image, which is the same function for every system. The names stay the same, so what a
    system keeps of them between images is not computed again.
    """
    started = time.monotonic()
    settings = Speed.model_validate(job.settings["speed"])
    torch.set_num_threads(settings.threads)
    accelerator = make_accelerator(job.precision)
    device = accelerator.device
    jobs = {name: system_job(job, name) for name in job.settings["systems"]}
    tested = {name: Evaluation.model_validate(each.settings["evaluation"]) for name, each in jobs.items()}
    segmenters = {
        name: prepare(load_tested(each), device, precision=job.precision, **tested[name].inference)
        for name, each in jobs.items()
    }
    dataset = SegmentationDataset(next(iter(jobs.values())).inputs["data"], "val")
    latencies: dict[str, list[float]] = {name: [] for name in jobs}
    for step in progress_bar(range(settings.warmup + settings.images), desc="measure_speed"):
        sample = dataset[step % len(dataset)]
        image = sample.image[None].to(device).float() / 255
        size = tuple(sample.label.shape)
        for name, segmenter in segmenters.items():
            wait_for(device)
            begun = time.perf_counter()
            with accelerator.autocast():
                segmenter.label(resize_short_side(image, tested[name].short_side), dataset.names, size)
            wait_for(device)
            if step >= settings.warmup:
                latencies[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(values) for name, values in latencies.items()}
    write_sealed(
        Path(job.output),
        {
            "systems": {
                name: {"latency_median_ms": 1000 * median, "images_per_s": 1 / median}
                for name, median in medians.items()
            },
            "images": settings.images,
            "provenance": describe(job, wall_time_s=round(time.monotonic() - started, 2)),
        },
    )


def system_job(job: Job, name: str) -> Job:
    """The evaluation of one system, out of a job that holds those of several: inputs are called ``<system>/<role>``."""
    inputs = {
        role.removeprefix(f"{name}/"): path
        for role, path in job.inputs.items()
        if role.startswith(f"{name}/")
    }
    return job.model_copy(update={"settings": job.settings["systems"][name], "inputs": inputs})
