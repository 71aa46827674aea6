"""Pre-training on generated batches: the part that the stages ``pretrain_clip`` and ``pretrain_backbone`` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from deop.jobs.artifacts import TENSORBOARD, artifact
from deop.jobs.job import Job
from deop.models.weight_files import save_weights
from deop.settings.pretraining import PretrainBackbone, PretrainClip
from deop.training.loop import fit, make_accelerator
from deop.training.optim import cosine, parameter_groups
from deop.utils.files import write_json


def pretrain(
    step: nn.Module,
    batches: Dataset,
    settings: PretrainClip | PretrainBackbone,
    job: Job,
    *,
    network: nn.Module,
    accuracy: Callable[[Path], dict[str, Any]],
    without: tuple[str, ...] = (),
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    **provenance: Any,
) -> None:
    """Trains a network with AdamW and a cosine schedule, one step per batch, and writes the artifact of ``job``.

    The artifact has the network's weights in half precision, ``accuracy.json``, TensorBoard logs and the provenance.

    Args:
        step: a module with the network in it; called with a batch, returns named losses.
        batches: map from a step number to a batch. Its length is the number of steps.
        settings: learning rate, weight decay, batch size and warm-up.
        network: the part of ``step`` that learns and whose floating-point weights are written.
        accuracy: called with the folder of the written weights; returns the content of ``accuracy.json``.
        without: prefixes of names of weights that are not written.
        betas, eps: of AdamW.
        provenance: more entries of ``provenance.json``, beside the numbers of steps and images.
    """
    steps = len(batches)
    optimizer = torch.optim.AdamW(
        parameter_groups(network, lr=settings.lr, weight_decay=settings.weight_decay), betas=betas, eps=eps
    )
    seen = steps * settings.batch_size
    with artifact(job, resumes=(TENSORBOARD,), steps=steps, images_seen=seen, **provenance) as workspace:
        fit(
            step,
            batches,
            optimizer=optimizer,
            schedule=cosine(steps, settings.warmup_images // settings.batch_size),
            iterations=steps,
            seed=job.seed,
            workspace=workspace,
            accelerator=make_accelerator(job.precision, workspace.path / TENSORBOARD),
            description=job.stage,
            clip_grad_norm=1.0,
            workers=1,
        )
        written = {
            name: value.half()
            for name, value in network.state_dict().items()
            if value.is_floating_point() and not name.startswith(without)
        }
        save_weights(written, workspace.path)
        write_json(workspace.path / "accuracy.json", accuracy(workspace.path))
