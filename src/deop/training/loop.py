"""The training loop of all training stages, built on Hugging Face Accelerate.

The batch of a step is a pure function of the seed and the step number, and both seed the random state of the step. So
a resumed run computes exactly what an uninterrupted one computes.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from deop.data.segmentation import SegmentationDataset
from deop.data.transforms import TrainingBatches, seed_cpu
from deop.errors import DeopError, NotFiniteError
from deop.jobs.artifacts import Workspace, device_name
from deop.jobs.job import Job
from deop.models.weight_files import learned_state
from deop.settings.precision import Precision
from deop.settings.schedule import Schedule
from deop.training.accumulation import accumulate
from deop.training.checkpoint import load_checkpoint, save_checkpoint
from deop.training.optim import poly
from deop.utils.processes import end_with_parent
from deop.utils.progress import progress_bar
from deop.utils.signals import termination
from deop.utils.timing import part, parts_of

KEPT_BYTES = 256 * 2**20
"""Memory for decoded samples, in each process that loads them."""


class Training(NamedTuple):
    """A module to be trained on augmented images of a dataset.

    module: called with a batch, returns named losses. Its ``networks`` is called with a batch as well, and returns a
        scalar computed from the raw outputs that the losses supervise. Its ``denominators`` gives the number of items
        that each loss is a mean over (see :func:`accumulate`).
    optimizer: of the parameters that learn.
    batches: what is trained on, made from the augmented batches of the dataset.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    dataset: SegmentationDataset
    settings: Schedule
    batches: Callable[[TrainingBatches], Dataset] = lambda batches: batches


def make_accelerator(
    precision: Precision = "fp32", logging_dir: Path | None = None, *, or_full: bool = False
) -> Accelerator:
    """An Accelerator configured by its launch file or environment, which computes in ``precision``.

    With ``or_full``, it falls back to full precision on a device that does not support that precision.

    Raises:
        DeopError: the device does not support that precision. Another precision would be another job.
    """
    device = PartialState(parse_flag_from_env("ACCELERATE_USE_CPU")).device
    if or_full and not has_arithmetic(device, precision):
        precision = "fp32"
    if not has_arithmetic(device, precision):
        others = [other for other in get_args(Precision) if has_arithmetic(device, other)]
        raise DeopError(
            f"this job computes in {precision}, for which {device_name(device)} has no arithmetic; set precision in "
            f"the configuration to one that it has ({', '.join(others)})"
        )
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        log_with="tensorboard" if logging_dir else None,
        project_dir=str(logging_dir) if logging_dir else None,
    )


def has_arithmetic(device: torch.device, precision: Precision) -> bool:
    """Whether a device supports a precision in hardware. GPUs before Ampere, for example, only emulate bf16."""
    if precision == "fp32":
        return True
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16" and (device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fit(
    module: nn.Module,
    batches: Dataset,
    *,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    iterations: int,
    seed: int,
    workspace: Workspace,
    accelerator: Accelerator,
    description: str,
    clip_grad_norm: float | None = None,
    checkpoint_seconds: float = 30.0,
    micro_batch: int | None = None,
    workers: int | None = None,
    denominators: Callable[[object], dict[str, Tensor]] | None = None,
    after_step: Callable[[object], None] | None = None,
    files: Callable[[int], list[str]] | None = None,
    skip_not_finite: int = 0,
) -> None:
    """Trains ``module`` in place for ``iterations`` steps, resuming from the workspace's last sound checkpoint.

    On SIGTERM, which clusters send some seconds before they kill a job, it finishes the step, saves a checkpoint and
    ends. Of several processes the first does so, and the others end with it.

    Args:
        module: called with a batch, returns named losses. Their sum is minimised.
        batches: map from a step number to a batch of ``batch_size`` samples.
        schedule: factor of the learning rate by step.
        checkpoint_seconds: time between checkpoints, the most that an interrupted run loses.
        micro_batch: samples in one forward pass; the gradients of a larger batch are accumulated over parts of it.
        workers: processes that load batches ahead, 0 for none; None chooses with :func:`loader_workers`.
        denominators: what each loss is a mean over, see :func:`accumulate`; None if all are means over samples.
        after_step: called with the batch after each step.
        files: called with a step, returns the names of its images, for the error about a loss that is not finite.
        skip_not_finite: how many steps with a loss that is not finite are left out, before one is an error. Their
            number becomes an entry of the artifact's provenance, ``skipped_steps``.

    Raises:
        NotFiniteError: a loss is not finite, ``skip_not_finite`` times before; the last checkpoint is kept.
        DeopError: raised while reading a batch; or SIGTERM came.
        WeightsError: the checkpoint cannot be read.
    """
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    plain = module
    module, optimizer = accelerator.prepare(module, optimizer)
    first = skipped = 0
    if (loaded := load_checkpoint(workspace.state, accelerator.print)) is not None:
        state, first = loaded
        plain.load_state_dict(state["module"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        skipped = state["skipped"]
        accelerator.print(f"{description}: resuming at step {first} of {iterations}")
    accelerator.init_trackers(description.replace(" ", "_"))
    loader = DataLoader(
        _OrError(batches),
        batch_size=None,
        sampler=range(first, iterations),
        num_workers=loader_workers(accelerator.device) if workers is None else workers,
        worker_init_fn=_start_worker,
        pin_memory=accelerator.device.type == "cuda",
        collate_fn=_as_arrays if accelerator.device.type == "cpu" else None,
    )
    progress = progress_bar(
        loader,
        desc=description,
        initial=first,
        total=iterations,
        disable=not accelerator.is_main_process,
    )
    saved, kept = time.monotonic(), first
    module.train()
    with termination() as terminated:
        for step, loaded in enumerate(parts_of(progress, "data"), start=first):
            _seed_step(hash((seed, step)) % 2**31 + accelerator.process_index, accelerator.device)
            if isinstance(loaded, DeopError):
                raise loaded
            batch = _to(loaded, accelerator.device)
            try:
                losses = accumulate(module, batch, micro_batch, accelerator, denominators)
            except NotFiniteError as error:
                images = f". Its images: {_shortened(files(step))}" if files else ""
                found = f"{description}, step {step}: {error}{images}."
                if skipped == skip_not_finite:
                    left = (
                        f"The last checkpoint is that of step {kept}"
                        if kept
                        else "There is no checkpoint yet"
                    )
                    raise NotFiniteError(f"{found} {left}") from None
                skipped += 1
                accelerator.print(f"{found} Skipped, as {skipped} of at most {skip_not_finite} steps")
                optimizer.zero_grad()
                scheduler.step()
                continue
            with part("optimizer"):
                if clip_grad_norm:
                    accelerator.clip_grad_norm_(module.parameters(), clip_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
            if step % 10 == 0:
                whole = accelerator.reduce(losses, reduction="mean")
                values = {name: value.item() for name, value in whole.items()}
                progress.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
                accelerator.log({**values, "lr": scheduler.get_last_lr()[0]}, step=step)
            ending = terminated()
            if time.monotonic() - saved > checkpoint_seconds or ending:
                if accelerator.is_main_process:
                    state = _state(plain, optimizer, scheduler, accelerator) | {"skipped": skipped}
                    save_checkpoint(workspace.state, state, step + 1)
                    workspace.tick()
                saved, kept = time.monotonic(), step + 1
            if ending and accelerator.is_main_process:
                raise DeopError(
                    f"{description}: ended by SIGTERM, with a checkpoint of step {kept}; run the same command to go on"
                )
            if after_step is not None:
                after_step(batch)
    if skip_not_finite:
        workspace.provenance["skipped_steps"] = skipped
    # Not end_training: it would destroy the process group, and the processes still wait for each other (see artifact).
    for tracker in accelerator.trackers:
        tracker.finish()


def _start_worker(_: int) -> None:
    """A process that loads batches lives as long as the one that trains, which SIGTERM does not end at once."""
    end_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _shortened(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class _OrError(Dataset):
    """Returns batches, or the errors of reading them: raised in a loader's process they would arrive as tracebacks."""

    def __init__(self, batches: Dataset) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> object:
        try:
            return self._batches[step]
        except DeopError as error:
            return error


def _as_arrays(batch):
    """Tensors as arrays, which are sent through a pipe: shared-memory files cost a CPU a millisecond per step."""
    if isinstance(batch, dict):
        return {key: _as_arrays(value) for key, value in batch.items()}
    return batch.numpy() if isinstance(batch, Tensor) else batch


def _seed_step(seed: int, device: torch.device) -> None:
    if device.type == "cpu":  # steps only draw from torch's generator
        seed_cpu(seed)
    else:
        set_seed(seed)


def loader_workers(device: torch.device) -> int:
    """Number of processes that load batches ahead: one less than the job's threads on a GPU, else one."""
    return max(1, int(os.environ.get("OMP_NUM_THREADS", "1")) - 1) if device.type == "cuda" else 1


def training_dataset(job: Job) -> SegmentationDataset:
    """The training split of ``job.inputs["data"]`` with seen classes only, its label maps checked."""
    return SegmentationDataset(
        job.inputs["data"], "train", seen_only=True, keep_bytes=KEPT_BYTES
    ).check_labels()


def fit_on_images(
    training: Training,
    job: Job,
    *,
    workspace: Workspace,
    accelerator: Accelerator,
    after_step: Callable[[object], None] | None = None,
) -> None:
    """:func:`fit` on augmented batches of a dataset, split over the processes, with the schedule of the settings."""
    settings = training.settings
    batches = TrainingBatches(
        training.dataset,
        settings.augmentation,
        batch_size=settings.batch_size,
        steps=settings.iterations,
        seed=job.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    fit(
        training.module,
        training.batches(batches),
        optimizer=training.optimizer,
        schedule=poly(settings.iterations, settings.warmup),
        iterations=settings.iterations,
        seed=job.seed,
        workspace=workspace,
        accelerator=accelerator,
        description=job.stage,
        clip_grad_norm=settings.clip_grad_norm,
        micro_batch=job.settings.get("machine", {}).get("micro_batch"),
        denominators=training.module.denominators,
        after_step=after_step,
        skip_not_finite=settings.skip_not_finite,
        files=lambda step: [training.dataset.image_name(index) for index in batches.samples(step)],
    )


def _state(module: nn.Module, optimizer, scheduler, accelerator: Accelerator) -> dict[str, Any]:
    """What a checkpoint holds besides the step."""
    return {
        "module": learned_state(module),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
    }


def _to(batch, device: torch.device):
    """A batch on the device, in the types of networks: uint8 becomes images in [0, 1], int16 and int32 int64."""
    if isinstance(batch, Tensor | np.ndarray):
        batch = torch.as_tensor(batch).to(device, non_blocking=True)
        if batch.dtype == torch.uint8:
            return batch.float().div_(255)
        return batch.long() if batch.dtype in (torch.int16, torch.int32) else batch
    if isinstance(batch, dict):
        return {key: _to(value, device) for key, value in batch.items()}
    return batch
