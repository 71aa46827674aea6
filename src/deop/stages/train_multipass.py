"""Stage ``train_multipass``: a multi-pass system's proposals with a class head on names (figure 1b).

It is trained as long as the class-agnostic proposals are and with the same settings, which were chosen for those.
"""

from __future__ import annotations

from deop.jobs.artifacts import artifact
from deop.jobs.job import Job
from deop.methods.networks import build_multipass, save_weights, seed_everything
from deop.settings.stages import Proposals
from deop.stages.train_proposals import proposal_optimizer
from deop.stages.train_segmentation import SegmentationStep
from deop.training.loop import Training, fit_on_images, learned_state, make_accelerator, training_dataset


def training(job: Job) -> Training:
    """The system of ``job.settings["network"]``, to be trained on the dataset that the job has as input."""
    settings = Proposals.model_validate(job.settings["proposals"])
    seed_everything(job)
    dataset = training_dataset(job)
    segmenter = build_multipass(job)
    optimizer = proposal_optimizer(segmenter, "proposals.backbone.", settings)
    return Training(SegmentationStep(segmenter, dataset.names), optimizer, dataset, settings)


def run(job: Job) -> None:
    """Trains the system of ``job.settings["network"]`` and writes what it learned."""
    trained = training(job)
    with artifact(job) as workspace:
        accelerator = make_accelerator(job.precision, workspace.path / "tensorboard")
        fit_on_images(trained, job, workspace=workspace, accelerator=accelerator)
        segmenter = trained.module.segmenter
        # Of the proposals all: batch norms that are frozen learn nothing, but are not those of a new network.
        proposals = {f"proposals.{name}": value for name, value in segmenter.proposals.state_dict().items()}
        save_weights(learned_state(segmenter) | proposals, workspace.path)
