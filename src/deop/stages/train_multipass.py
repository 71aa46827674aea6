"""Stage ``train_multipass``: a multi-pass system's proposals with a class head on names (figure 1b).

It is trained as long as the class-agnostic proposals are and with the same settings, which were chosen for those.
"""

from __future__ import annotations

from deop.data.segmentation import SegmentationDataset
from deop.settings import Job, Proposals
from deop.stages.artifacts import artifact
from deop.stages.loop import fit_on_images, learned_state, make_accelerator
from deop.stages.networks import build_multipass, save_weights, seed_everything
from deop.stages.train_proposals import proposal_optimizer
from deop.stages.train_segmentation import SegmentationStep


def run(job: Job) -> None:
    """Trains the system of ``job.settings["network"]`` and writes what it learned."""
    settings = Proposals.model_validate(job.settings["proposals"])
    seed_everything(job)
    dataset = SegmentationDataset(job.inputs["data"], "train", seen_only=True).check_labels()
    segmenter = build_multipass(job)
    with artifact(job) as workspace:
        accelerator = make_accelerator(workspace.path / "tensorboard")
        fit_on_images(
            SegmentationStep(segmenter, dataset.names),
            dataset,
            settings,
            job,
            optimizer=proposal_optimizer(segmenter, segmenter.proposals, settings),
            workspace=workspace,
            accelerator=accelerator,
        )
        # Of the proposals all: batch norms that are frozen learn nothing, but are not those of a new network.
        proposals = {f"proposals.{name}": value for name, value in segmenter.proposals.state_dict().items()}
        save_weights(learned_state(segmenter) | proposals, workspace.path)
