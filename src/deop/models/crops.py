"""Crops of single segments, as multi-pass systems show them to CLIP."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from deop.data.segmentation import SegmentationDataset


def crop_segment(image: Tensor, mask: Tensor, size: int, fill: Tensor, expand: float = 1.0) -> Tensor:
    """One segment on a plain background: pixels outside the mask are filled, and its box is cropped and resized.

    Args:
        image: (3, H, W) float RGB in [0, 1].
        mask: (H, W) bool, not empty.
        size: side of the result in pixels (bicubic).
        fill: (3,) colour of the background.
        expand: factor of the side lengths of the mask's box.

    Returns:
        (3, size, size) in [0, 1].
    """
    return crop_segments(image, mask[None], size, fill, expand)[0]


def crop_segments(
    image: Tensor, masks: Tensor, size: int, fill: Tensor, expand: float = 1.0, *, antialias: bool = True
) -> Tensor:
    """:func:`crop_segment` of M masks (M, H, W) of one image: (M, 3, size, size). No mask may be empty.

    Without ``antialias``, crops are resized as in SimBaseline's release: every pixel is computed from the sixteen
    around it, and values are not clamped to [0, 1], which bicubic interpolation exceeds at sharp edges.
    """
    crops = image.new_empty(len(masks), 3, size, size)
    for crop, mask, (top, bottom, left, right) in zip(crops, masks, bounding_boxes(masks, expand)):
        box = slice(top, bottom), slice(left, right)
        filled = torch.where(mask[box], image[:, *box], fill.view(3, 1, 1))
        crop.copy_(
            F.interpolate(
                filled[None], (size, size), mode="bicubic", align_corners=False, antialias=antialias
            )[0]
        )
    return crops.clamp_(0, 1) if antialias else crops


def roi_align_segments(image: Tensor, masks: Tensor, size: int, fill: Tensor, expand: float = 1.0) -> Tensor:
    """The crops of :func:`crop_segments`, made with RoIAlign as in ZegFormer's release.

    In the release, each box ends at the index of the mask's last row and column, which are therefore outside of it.
    If such a box has no area, the whole image is taken.
    """
    height, width = masks.shape[1:]
    crops = image.new_empty(len(masks), 3, size, size)
    for crop, mask, (top, bottom, left, right) in zip(crops, masks, bounding_boxes(masks, expand)):
        box = (left, top, right - 1, bottom - 1)
        if left == right - 1 or top == bottom - 1:
            box = (0, 0, width, height)
        filled = torch.where(mask, image, fill.view(3, 1, 1))
        crop.copy_(roi_align(filled[None], [image.new_tensor([box])], size, aligned=True)[0])
    return crops


def bounding_boxes(masks: Tensor, expand: float = 1.0) -> list[tuple[int, int, int, int]]:
    """Top, bottom, left and right of each mask (M, H, W), bottom and right exclusive, expanded within the image."""
    rows, columns = _spans(masks.any(2), expand), _spans(masks.any(1), expand)
    return [(*row, *column) for row, column in zip(rows, columns, strict=True)]


def _spans(occupied: Tensor, expand: float) -> list[tuple[int, int]]:
    """First and last + 1 index of each line (M, L) that is occupied, expanded within the image.

    All lines are read at once, because on a GPU each single read would wait for all work before it.
    """
    length = occupied.shape[1]
    first = occupied.int().argmax(1)
    last = length - occupied.flip(1).int().argmax(1)
    spans = []
    for start, end in torch.stack([first, last], 1).tolist():
        grow = (expand - 1) * (end - start) / 2
        spans.append((max(0, round(start - grow)), min(length, round(end + grow))))
    return spans


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
