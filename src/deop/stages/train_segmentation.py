"""Stage ``train_segmentation``: what a system learns end to end, with CLIP and proposals frozen (sections 3.2, 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deop.data.segmentation import SegmentationDataset
from deop.methods.base import Segmenter
from deop.settings import Job, Segmentation
from deop.stages.artifacts import artifact
from deop.stages.loop import fit_on_images, learned_state, make_accelerator
from deop.stages.networks import build_segmenter, save_weights, seed_everything


class SegmentationStep(nn.Module):
    """A segmenter and its losses on a batch."""

    def __init__(self, segmenter: Segmenter, names: list[str]) -> None:
        super().__init__()
        self.segmenter, self.names = segmenter, names

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.segmenter.losses(batch["image"], batch["label"], self.names)


def run(job: Job) -> None:
    """Trains the network of ``job.settings["network"]`` and writes what it learned."""
    settings = Segmentation.model_validate(job.settings["segmentation"])
    seed_everything(job)
    dataset = SegmentationDataset(job.inputs["data"], "train", seen_only=True).check_labels()
    segmenter = build_segmenter(job)
    learned = {name: value for name, value in segmenter.named_parameters() if value.requires_grad}
    anchors = [value for name, value in learned.items() if name.startswith("anchors.")]
    prompts = [value for name, value in learned.items() if not name.startswith("anchors.")]
    groups = [{"params": prompts}, {"params": anchors, "lr": settings.lr * settings.anchors_lr_factor}]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    with artifact(job) as workspace:
        accelerator = make_accelerator(workspace.path / "tensorboard")
        fit_on_images(
            SegmentationStep(segmenter, dataset.names),
            dataset,
            settings,
            job,
            optimizer=optimizer,
            workspace=workspace,
            accelerator=accelerator,
        )
        save_weights(learned_state(segmenter), workspace.path)
