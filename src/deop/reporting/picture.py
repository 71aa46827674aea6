"""Shared by both kinds of pictures: their type, proposal masks and the overlap of proposals with a segment."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from deop.data.segmentation import IGNORE


class Picture(NamedTuple):
    """A drawn picture. ``shows`` are values for JSON: what is shown, and the ``rule`` by which it was chosen."""

    figure: Figure
    shows: dict[str, Any]


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
