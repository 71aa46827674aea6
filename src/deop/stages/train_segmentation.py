"""Stage ``train_segmentation``: what a system learns end to end, with CLIP and proposals frozen (sections 3.2, 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deop.jobs.artifacts import artifact
from deop.jobs.job import Job
from deop.methods.base import Segmenter
from deop.methods.networks import build_segmenter, save_weights, seed_everything
from deop.settings.stages import Segmentation
from deop.training.loop import Training, fit_on_images, learned_state, make_accelerator, training_dataset
from deop.training.optim import parameter_groups


class SegmentationStep(nn.Module):
    """A segmenter and its losses on a batch."""

    def __init__(self, segmenter: Segmenter, names: list[str]) -> None:
        super().__init__()
        self.segmenter, self.names = segmenter, names

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.segmenter.losses(batch["image"], batch["label"], self.names)

    def denominators(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """By loss, how many of what it is a mean over are in a batch."""
        return self.segmenter.denominators(batch["label"])

    def networks(self, batch: dict[str, Tensor]) -> Tensor:
        """A scalar of all that the losses are made of."""
        supervised = self.segmenter.supervised(batch["image"], self.names)
        return torch.stack([output.float().mean() for output in supervised]).sum()


def training(job: Job) -> Training:
    """The network of ``job.settings["network"]``, to be trained on the dataset that the job has as input."""
    settings = Segmentation.model_validate(job.settings["segmentation"])
    seed_everything(job)
    dataset = training_dataset(job)
    segmenter = build_segmenter(job)
    groups = parameter_groups(
        segmenter,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        lr_factors={"anchors.": settings.anchors_lr_factor},
        decay_biases=settings.decay_biases,
    )
    optimizer = torch.optim.AdamW(groups, fused=True)
    return Training(SegmentationStep(segmenter, dataset.names), optimizer, dataset, settings)


def run(job: Job) -> None:
    """Trains the network of ``job.settings["network"]`` and writes what it learned."""
    trained = training(job)
    with artifact(job) as workspace:
        accelerator = make_accelerator(job.precision, workspace.path / "tensorboard")
        fit_on_images(trained, job, workspace=workspace, accelerator=accelerator)
        save_weights(learned_state(trained.module.segmenter), workspace.path)
