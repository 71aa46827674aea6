"""What the stages that pre-train on generated images share: the optimiser, the run, and weights in half precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from deop.jobs.artifacts import Workspace
from deop.jobs.job import Job
from deop.settings.pretraining import PretrainBackbone, PretrainClip
from deop.training.loop import fit, make_accelerator
from deop.training.optim import cosine, parameter_groups


def pretrain(
    module: nn.Module,
    batches: Dataset,
    settings: PretrainClip | PretrainBackbone,
    job: Job,
    workspace: Workspace,
    **options: Any,
) -> None:
    """Trains ``module`` in place with AdamW and a cosine schedule, resuming an interrupted run.

    Args:
        module: called with a batch, returns named losses.
        batches: all batches of the run, by step number.
        options: of AdamW, besides the learning rate and the weight decay of ``settings``.
    """
    steps = len(batches)
    groups = parameter_groups(module, lr=settings.lr, weight_decay=settings.weight_decay)
    fit(
        module,
        batches,
        optimizer=torch.optim.AdamW(groups, **options),
        schedule=cosine(steps, settings.warmup_images // settings.batch_size),
        iterations=steps,
        seed=job.seed,
        workspace=workspace,
        accelerator=make_accelerator(job.precision, workspace.path / "tensorboard"),
        description=job.stage,
        clip_grad_norm=1.0,
        checkpoint_seconds=60,
        workers=1,
    )


def half_precision(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of ``module`` in half precision on the CPU, but for those that count."""
    return {
        name: value.detach().cpu().half().contiguous()
        for name, value in module.state_dict().items()
        if value.is_floating_point()
    }
