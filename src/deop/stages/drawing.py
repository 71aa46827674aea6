"""What the kinds of pictures share: how proposals are compared with the truth, and how figures are saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from deop.data.segmentation import IGNORE


class Drawing(NamedTuple):
    """A figure, and as values for JSON what it shows and (``rule``) by which rule that was chosen."""

    figure: Figure
    shows: dict[str, Any]


def proposal_masks(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits (N, h, w) -> probabilities (N, H, W), resized as :func:`deop.metrics.mean_best_iou` does."""
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


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG or SVG (by suffix), renamed when whole; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    kind = path.suffix[1:]
    metadata = {"Date": None} if kind == "svg" else None  # only SVG would have one
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):  # else SVG has random ids
        figure.savefig(temporary, format=kind, dpi=150, bbox_inches="tight", metadata=metadata)
    os.replace(temporary, path)
