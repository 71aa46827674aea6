"""A few training steps with random weights and made-up images: how long a stage will take, and whether it fits."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from deop.settings import Augmentation, Job
from deop.stages.loop import make_accelerator
from deop.stages.networks import build_proposals, build_segmenter
from deop.stages.train_proposals import ProposalStep
from deop.stages.train_segmentation import SegmentationStep

CELL = 64
"""Side in pixels of the squares of one class in made-up label maps."""


class Trial(NamedTuple):
    """What a training stage takes on this machine.

    seconds: of one step of a process's share of the batch, by the median of what was tried.
    images: that went through the network at once.
    peak: bytes of GPU memory at most; 0 without a GPU.
    """

    seconds: float
    images: int
    peak: int


def try_step(job: Job, classes: int, processes: int, seconds: float) -> Trial:
    """Trains the network of a ``train_proposals`` or ``train_segmentation`` job for about ``seconds``.

    Args:
        job: the job; what it reads need not be there.
        classes: number of classes of the made-up labels and names.
        processes: that share a batch.

    Raises:
        torch.cuda.OutOfMemoryError: the images that go through the network at once do not fit.
    """
    section = "proposals" if job.stage == "train_proposals" else "segmentation"
    training = job.settings[section]
    share = training["batch_size"] // processes
    accelerator = make_accelerator(job.precision)
    # A CPU is no faster with several at once, and runs out of memory and patience.
    at_once = job.settings.get("machine", {}).get("micro_batch") if accelerator.device.type == "cuda" else 1
    images = min(share, at_once or share)
    crop = Augmentation.model_validate(training["augmentation"]).crop
    step = _network(job, [f"class {index}" for index in range(classes)]).to(accelerator.device).train()
    optimizer = torch.optim.AdamW([value for value in step.parameters() if value.requires_grad], lr=0.0)
    batch = {
        "image": torch.rand(images, 3, crop, crop, device=accelerator.device),
        "label": _labels(images, crop, classes).to(accelerator.device),
    }
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    # The first step finds out what fits the machine, and does not count if there is another.
    while len(times) < 2 or (sum(times) < seconds and len(times) < 50):
        begun = time.perf_counter()
        with accelerator.autocast():
            losses = step(batch)
        accelerator.backward(torch.stack(list(losses.values())).sum())
        optimizer.step()
        optimizer.zero_grad()
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
        if times[0] > seconds:
            break
    counted = sorted(times[1:] or times)
    peak = torch.cuda.max_memory_allocated() if accelerator.device.type == "cuda" else 0
    return Trial(counted[len(counted) // 2] * share / images, images, peak)


def _network(job: Job, names: list[str]) -> torch.nn.Module:
    settings = dict(job.settings)
    settings["proposals"] = settings["proposals"] | {"pretrained_backbone": False}
    if job.stage == "train_proposals":
        return ProposalStep(build_proposals(job.model_copy(update={"inputs": {}, "settings": settings})))
    settings["clip"] = settings["clip"] | {"pretrained": None}
    return SegmentationStep(
        build_segmenter(job.model_copy(update={"inputs": {}, "settings": settings})), names
    )


def _labels(images: int, crop: int, classes: int) -> torch.Tensor:
    """Label maps (B, crop, crop) of squares, each of a random class."""
    cells = -(-crop // CELL)
    squares = torch.randint(classes, (images, cells, cells))
    return squares.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)[:, :crop, :crop]
