"""Single segments cut out by their ground-truth masks, as multi-pass systems show them to CLIP."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deop.data.segmentation import SegmentationDataset


def crop_segment(image: Tensor, mask: Tensor, size: int, fill: Tensor, expand: float = 1.0) -> Tensor:
    """One segment on a plain ground: pixels outside the mask filled, its box cut out and resized.

    Args:
        image: (3, H, W) float RGB in [0, 1].
        mask: (H, W) bool, not empty.
        size: side of the result in pixels (bicubic).
        fill: (3,) colour of the ground.
        expand: side lengths of the cut box over those of the mask's box.

    Returns:
        (3, size, size) in [0, 1].
    """
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    bounds = []
    for inside, length in ((rows, mask.shape[0]), (columns, mask.shape[1])):
        first, last = int(inside[0]), int(inside[-1]) + 1
        grow = (expand - 1) * (last - first) / 2
        bounds.append((max(0, round(first - grow)), min(length, round(last + grow))))
    (top, bottom), (left, right) = bounds
    filled = torch.where(mask, image, fill.view(3, 1, 1))[:, top:bottom, left:right]
    resized = F.interpolate(filled[None], (size, size), mode="bicubic", align_corners=False, antialias=True)
    return resized[0].clamp(0, 1)


def draw_segments(dataset: SegmentationDataset, per_class: int, seed: int) -> list[tuple[int, int]]:
    """(image index, class) of up to ``per_class`` segments of every class, drawn at random without repeats."""
    rng = np.random.default_rng((seed, 0xC209))
    by_class: dict[int, list[int]] = {}
    for index, entry in enumerate(dataset.entries):
        for label in entry.classes:
            by_class.setdefault(label, []).append(index)
    drawn = []
    for label in sorted(by_class):
        indices = by_class[label]
        chosen = rng.permutation(len(indices))[:per_class]
        drawn += [(indices[position], label) for position in sorted(chosen)]
    return drawn
