"""Stage ``train_system``: a round of a method's training, end to end on images and label maps of seen classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deop.jobs.artifacts import TENSORBOARD, artifact
from deop.jobs.job import Job
from deop.methods.base import Segmenter
from deop.methods.builder import Builder
from deop.models.weight_files import checked_weights, load_learned, read_weights, save_weights
from deop.settings.methods import method_class
from deop.training.loop import Training, fit_on_images, make_accelerator, training_dataset
from deop.training.optim import adamw

_IMAGES = {"image", "label"}


class SystemStep(nn.Module):
    """A segmenter and its losses on a batch."""

    def __init__(self, segmenter: Segmenter, names: list[str]) -> None:
        super().__init__()
        self.segmenter, self.names = segmenter, names

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.segmenter.losses(
            batch["image"], batch["label"], self.names, **{key: batch[key] for key in batch.keys() - _IMAGES}
        )

    def denominators(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """By loss, how many of what it is a mean over are in a batch."""
        return self.segmenter.denominators(batch["label"])

    def networks(self, batch: dict[str, Tensor]) -> Tensor:
        """A scalar of the raw outputs that the losses supervise."""
        supervised = self.segmenter.supervised(batch["image"], self.names)
        return torch.stack([output.float().mean() for output in supervised]).sum()


def training(job: Job) -> Training:
    """The system of ``job.settings["method"]``, to be trained on the dataset that the job has as input."""
    torch.manual_seed(job.seed)
    dataset = training_dataset(job)
    name = job.settings["round"]["name"]
    builder = Builder(
        job.settings,
        job.inputs,
        seen_names=tuple(dataset.names),
        class_names=tuple(dataset.card.names),
        round=name,
    )
    segmenter = method_class(job.settings["method"]["method"]).build(builder)
    if "earlier" in job.inputs:
        load_learned(segmenter, checked_weights(job.inputs["earlier"]), unfinished=True)
    segmenter.gradient_checkpointing = job.settings.get("machine", {}).get("gradient_checkpointing", False)
    segmenter.start_round(name)
    schedule = builder.schedule
    optimizer = adamw(segmenter, schedule, segmenter.lr_factors(schedule))
    step = SystemStep(segmenter, dataset.names)
    return Training(step, optimizer, dataset, schedule, segmenter.training_batches)


def run(job: Job) -> None:
    """Trains a system and writes the tensors that training changed, in this round and in those before it."""
    trained = training(job)
    with artifact(job, resumes=(TENSORBOARD,)) as workspace:
        accelerator = make_accelerator(job.precision, workspace.path / TENSORBOARD)
        fit_on_images(trained, job, workspace=workspace, accelerator=accelerator)
        state = trained.module.segmenter.trained_state()
        if "earlier" in job.inputs:  # what this round left as it was
            state = read_weights(checked_weights(job.inputs["earlier"])) | state
        save_weights(state, workspace.path)
