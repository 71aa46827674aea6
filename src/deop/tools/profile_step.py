"""Measures where the time of a training step goes, in a few steps of a stage's own loop."""

from __future__ import annotations

import importlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator

from deop.jobs.artifacts import Workspace, require_inputs
from deop.jobs.job import Job
from deop.training.accumulation import plain_attention, split
from deop.training.loop import fit_on_images, make_accelerator
from deop.utils.timing import PartTimes, wait_for

WARM_UP = 3
"""Steps that are not measured: in the first ones, libraries choose kernels and memory is allocated."""


class StepProfile(NamedTuple):
    """Medians over training steps, in seconds.

    Attributes:
        parts: by part; ``data`` is the time that the step waited for its batch.
        other: time of the step outside of all parts.
        step: the whole step, data included.
        bare: forward and backward passes of the networks alone, on the batches of ``step_beside``.
        step_beside: the steps that took turns with the bare networks.
        peak_bytes: peak GPU memory in bytes; 0 on a CPU.
    """

    parts: dict[str, float]
    other: float
    step: float
    bare: float
    step_beside: float
    peak_bytes: int

    @property
    def waiting(self) -> float:
        """Share of the step spent waiting for data."""
        return self.parts.get("data", 0.0) / self.step

    @property
    def ratio(self) -> float:
        """The time of a whole step over that of the bare forward and backward passes of its networks."""
        return self.step_beside / self.bare

    def table(self) -> str:
        """The profile as text."""
        lines = [
            f"{name:<12} {1000 * seconds:9.1f} ms {seconds / self.step:6.1%}"
            for name, seconds in [*self.parts.items(), ("other", self.other), ("step", self.step)]
        ]
        lines += [
            f"waiting for data: {self.waiting:.1%} of the step",
            f"bare forward and backward of the networks, in turns with steps: {1000 * self.bare:.1f} ms, "
            f"the step {self.ratio:.2f} times that",
        ]
        if self.peak_bytes:
            lines.append(f"GPU memory: {self.peak_bytes / 1e9:.2f} GB at most")
        return "\n".join(lines)


class _Watch:
    """Called after every step: measures it, and in the second half of the run the bare networks on its batch."""

    def __init__(
        self,
        module: torch.nn.Module,
        accelerator: Accelerator,
        times: PartTimes,
        steps: int,
        micro_batch: int | None,
    ) -> None:
        self._module, self._accelerator, self._times = module, accelerator, times
        self._steps, self._micro_batch = steps, micro_batch
        self._done, self._before = 0, {}
        self._begun = time.perf_counter()
        self.parts: list[dict[str, float]] = []
        self.seconds: list[float] = []
        self.beside: list[float] = []
        self.bare: list[float] = []

    def __call__(self, batch: dict[str, torch.Tensor]) -> None:
        wait_for(self._accelerator.device)
        seconds = time.perf_counter() - self._begun
        self._done += 1
        counted = self._done - WARM_UP
        if 0 < counted <= self._steps:
            self.seconds.append(seconds)
            self.parts.append(
                {name: spent - self._before.get(name, 0.0) for name, spent in self._times.seconds.items()}
            )
        elif counted > self._steps:
            # Only in the second half, because batches are loaded ahead while the bare networks compute.
            self.beside.append(seconds)
            self.bare.append(self._bare(batch))
        elif self._done == 1:
            self._bare(batch)
        self._before = dict(self._times.seconds)
        self._begun = time.perf_counter()

    def _bare(self, batch: dict[str, torch.Tensor]) -> float:
        device = self._accelerator.device
        begun = time.perf_counter()
        for samples, _ in split(batch, self._micro_batch):
            with self._accelerator.autocast(), plain_attention(device):
                output = self._module.networks(samples)
            with plain_attention(device):
                output.backward()
        wait_for(device)
        seconds = time.perf_counter() - begun
        self._module.zero_grad()
        return seconds


def profile_step(job: Job, steps: int) -> StepProfile:
    """Runs a job's training from its data and weights for a warm-up and twice ``steps`` steps; writes no results.

    Runs in one process with the whole batch, divided into the job's micro-batches if it has any.

    Raises:
        DeopError: an input of the job is missing or broken.
    """
    require_inputs(job)
    training = importlib.import_module(f"deop.stages.{job.stage}").training(job)
    iterations = WARM_UP + 2 * steps
    training.dataset.read_ahead()  # only the first epoch reads these files, so it is not typical
    training = training._replace(settings=training.settings.model_copy(update={"iterations": iterations}))
    accelerator = make_accelerator(job.precision)
    device = accelerator.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory() as folder, PartTimes(device) as times:
        workspace = Workspace(Path(folder) / "profile")
        workspace.state.mkdir(parents=True)
        micro_batch = job.settings.get("machine", {}).get("micro_batch")
        watch = _Watch(training.module, accelerator, times, steps, micro_batch)
        fit_on_images(training, job, workspace=workspace, accelerator=accelerator, after_step=watch)
    parts = {name: statistics.median(step.get(name, 0.0) for step in watch.parts) for name in watch.parts[-1]}
    step = statistics.median(watch.seconds)
    return StepProfile(
        parts=parts,
        other=max(0.0, step - sum(parts.values())),
        step=step,
        bare=statistics.median(watch.bare),
        step_beside=statistics.median(watch.beside),
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
    )
