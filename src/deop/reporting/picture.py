"""Shared by both kinds of pictures: their type, proposal masks and the overlap of proposals with a segment."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from deop.data.emoji.dataset import draw_scene, plan_split
from deop.data.emoji.settings import EmojiScenes
from deop.data.segmentation import IGNORE, Sample, SegmentationDataset
from deop.jobs.artifacts import PROVENANCE

DETAIL = 5
"""How many times larger than for the networks generated scenes are drawn."""


class Picture(NamedTuple):
    """A drawn picture. ``shows`` are values for JSON: what is shown, and the ``rule`` by which it was chosen."""

    figure: Figure
    shows: dict[str, Any]


def for_readers(dataset: SegmentationDataset, index: int) -> Sample:
    """An image and its labels as a picture shows them: generated scenes are drawn again, :data:`DETAIL` times as large.

    The networks see the image of the dataset.
    """
    provenance = dataset.root / PROVENANCE
    values = json.loads(provenance.read_text())["settings"]["dataset"] if provenance.exists() else {}
    if values.get("kind") != "emoji_scenes":
        return dataset[index]
    settings = EmojiScenes.model_validate(values)
    scene = plan_split(settings, dataset.split)[index]
    image, label = draw_scene(settings, dataset.split, index, *scene, detail=DETAIL)
    return Sample(torch.from_numpy(image.copy()).permute(2, 0, 1), torch.from_numpy(label))


def proposal_masks(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits (N, h, w) -> probabilities (N, H, W), resized as :func:`deop.evaluation.metrics.mean_best_iou`
    does."""
    return F.interpolate(mask_logits[None].sigmoid(), size, mode="bilinear", align_corners=False)[0]


def proposal_overlaps(label: Tensor, segment: int, masks: Tensor) -> Tensor:
    """IoU (N,) of proposals with a segment, which is all pixels of one class; pixels without a class do not count.

    Args:
        label: (H, W) class indices, or ``IGNORE``.
        segment: the class.
        masks: (N, H, W) probabilities, cut at 0.5.
    """
    truth, proposed = label == segment, (masks > 0.5) & (label != IGNORE)
    return (truth & proposed).flatten(1).sum(1) / (truth | proposed).flatten(1).sum(1)
