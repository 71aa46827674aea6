"""Runs a few training steps with random weights on synthetic images, to measure the time and memory of a stage."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from deop.data.card import DatasetCard, LabelledClass, ignore_value
from deop.data.entries import Entry
from deop.data.segmentation import write_card, write_label_map, write_split
from deop.jobs.artifacts import Workspace
from deop.jobs.job import Job, schedule_of
from deop.training.loop import Training, fit_on_images, make_accelerator
from deop.utils.timing import PartTimes, wait_for

SEGMENTS = 6
"""Classes in a synthetic image, about as many as in one of COCO-Stuff or EmojiScenes."""
SCENES = 8
WORD_VECTOR = 300
WARM_UP = 3
"""Steps that are not measured: in the first ones, libraries choose kernels and memory is allocated."""
COUNTED = 15
"""Steps that are measured, if there is time for them."""
PATIENCE_S = 60.0
"""The longest step to run on a CPU; a longer one is extrapolated from one image."""
QUICK_PIXELS = 2**20
"""Steps of at most so many pixels are run without first measuring one image."""


class Trial(NamedTuple):
    """Time and memory of a training stage on this machine.

    Attributes:
        seconds: median time of a step with one process's share of the batch.
        idle_seconds: an estimate of the same without other processes on the CPU: the CPU time of a step plus the time
            it waited for images. On a GPU, ``seconds``.
        share: images in that step.
        images: in one forward pass.
        peak: peak GPU memory in bytes; 0 without a GPU.
    """

    seconds: float
    idle_seconds: float
    share: int
    images: int
    peak: int


def try_step(
    job: Job, classes: int, *, processes: int, threads: int, launch: dict[str, Any], seconds: float
) -> Trial:
    """Runs the training loop of a ``train_*`` job for about ``seconds``, as the workflow would start it.

    Args:
        job: the job; its inputs need not exist.
        classes: number of seen classes.
        processes: number of processes that share a batch. One of them is run, without communication.
        threads: CPU threads of a process.
        launch: content of Accelerate's launch file.

    Raises:
        torch.cuda.OutOfMemoryError: the images of one forward and backward pass do not fit.
        DeopError: a network that cannot be built.
    """
    with tempfile.TemporaryDirectory() as folder, _started_as(launch, threads), _quiet():
        device = make_accelerator(job.precision).device
        settings = schedule_of(job)
        share, crop = settings["batch_size"] // processes, settings["augmentation"]["crop"]
        micro_batch = job.settings.get("machine", {}).get("micro_batch") or share
        _write_scenes(Path(folder) / "data", crop, classes)
        job = _without_weights(job, Path(folder) / "data", classes)
        training = importlib.import_module(f"deop.stages.{job.stage}").training(job)
        training.dataset.read_ahead()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif share > 1 and share * crop**2 > QUICK_PIXELS:
            one = _measure(training, job, 1, device, 0.0)
            if one[0] * share > PATIENCE_S:
                return Trial(one[0] * share, one[1] * share, share, 1, 0)
        step = _measure(training, job, share, device, seconds)
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
        return Trial(*step, share, min(share, micro_batch), peak)


@contextlib.contextmanager
def _started_as(launch: dict[str, Any], threads: int) -> Iterator[None]:
    """Sets the environment as the workflow does for a stage, except for the device if it is set already."""
    told = {"ACCELERATE_USE_CPU": str(launch.get("use_cpu", False))}
    told = {name: value for name, value in told.items() if name not in os.environ}
    before = {name: os.environ.get(name) for name in (*told, "OMP_NUM_THREADS")}
    threads_before = torch.get_num_threads()
    os.environ.update(told, OMP_NUM_THREADS=str(threads))
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the loop's progress bar and open_clip's warnings about random weights, which are intended here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _without_weights(job: Job, data: Path, classes: int) -> Job:
    """The job with random weights, on the dataset in ``data``."""
    settings = dict(job.settings)
    if "proposals" in settings:
        settings["proposals"] = settings["proposals"] | {"pretrained_backbone": False}
    if "clip" in settings:
        settings["clip"] = settings["clip"] | {"pretrained": None}
    if "proposal_templates" in settings.get("method", {}):  # names are embedded once, whatever the prompt
        settings["method"] = settings["method"] | {"proposal_templates": ["{}"], "crop_templates": ["{}"]}
    files = settings.get("method", {}).get("word_vectors", ())
    if files:
        drawn = _write_word_vectors(data / "words.vec", classes)
        settings["method"] = settings["method"] | {"word_vectors": [drawn] * len(files)}
    return job.model_copy(update={"inputs": {"data": str(data)}, "settings": settings})


class _Enough(Exception):
    """Ends the training loop."""


class _Watch:
    """Called after every step: records its wall time and its CPU time plus the wait for images; ends the trial."""

    def __init__(self, device: torch.device, times: PartTimes | None, seconds: float) -> None:
        self._device, self._times, self._seconds = device, times, seconds
        self._begun = self._last = self._now()
        self.wall: list[float] = []
        self.busy: list[float] = []

    def _now(self) -> tuple[float, float]:
        waited = self._times.seconds.get("data", 0.0) if self._times else 0.0
        return time.perf_counter(), time.thread_time() + waited

    def __call__(self, batch: object) -> None:
        wait_for(self._device)
        now = self._now()
        self.wall.append(now[0] - self._last[0])
        self.busy.append(now[1] - self._last[1])
        self._last = now
        done, spent = len(self.wall), now[0] - self._begun[0]
        if done >= WARM_UP + COUNTED or (done >= 2 and spent >= self._seconds):
            raise _Enough


def _measure(
    training: Training, job: Job, batch_size: int, device: torch.device, seconds: float
) -> tuple[float, float]:
    """Medians over steps with ``batch_size`` images: wall time, and CPU time plus the wait for images."""
    settings = training.settings.model_copy(
        update={"batch_size": batch_size, "iterations": WARM_UP + COUNTED}
    )
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        # Timing parts would synchronise a GPU at each of them.
        times = stack.enter_context(PartTimes(device)) if device.type == "cpu" else None
        workspace = Workspace(Path(folder) / "trial")
        workspace.state.mkdir(parents=True)
        watch = _Watch(device, times, seconds)
        stack.enter_context(contextlib.suppress(_Enough))
        fit_on_images(
            training._replace(settings=settings),
            job,
            workspace=workspace,
            accelerator=make_accelerator(job.precision),
            after_step=watch,
        )
    first = min(WARM_UP, len(watch.wall) - 1)
    wall, busy = statistics.median(watch.wall[first:]), statistics.median(watch.busy[first:])
    return wall, min(wall, busy) if times else wall


def _write_word_vectors(path: Path, classes: int) -> str:
    """Random vectors of as many numbers as those of word2vec and fastText, for the classes of the synthetic images."""
    generator = np.random.default_rng(0)
    names = [f"class_{index}" for index in range(classes)]
    lines = [" ".join([name, *map(str, generator.normal(size=WORD_VECTOR))]) for name in names]
    path.write_text("\n".join([f"{classes} {WORD_VECTOR}", *lines]) + "\n")
    return str(path)


def _write_scenes(folder: Path, side: int, classes: int) -> None:
    """A prepared dataset of square noise images; label maps have a few ellipses on a background, one class each."""
    generator = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    ignore, entries = ignore_value(classes), []
    rows, columns = np.mgrid[:side, :side] / side
    for index in range(SCENES):
        present = generator.choice(classes, min(classes, SEGMENTS), replace=False)
        label = np.full((side, side), present[0])
        for value in present[1:]:
            (top, left), (height, width) = generator.random(2), generator.uniform(0.1, 0.3, 2)
            label[((rows - top) / height) ** 2 + ((columns - left) / width) ** 2 < 1] = value
        image, labels = folder / f"images/{index}.jpg", folder / f"labels/{index}.png"
        Image.fromarray(generator.integers(256, size=(side, side, 3), dtype=np.uint8)).save(image)
        write_label_map(labels, label, ignore)
        entries.append(Entry(image, labels, tuple(np.unique(label).tolist())))
    named = tuple(LabelledClass(name=f"class {index}", kind="thing") for index in range(classes))
    write_card(folder, DatasetCard(name="trial", classes=named, ignore=ignore))
    write_split(folder, "train", entries)
