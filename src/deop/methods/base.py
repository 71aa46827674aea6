"""The interface that every system of the tables shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class SegmenterOutput(NamedTuple):
    """What a system of proposals and classifiers gives for a batch.

    mask_logits: (B, N, h, w) at the resolution of the proposal network's masks.
    class_logits: (B, N, C + 1), the last column "no object".
    heatmaps: (B, N, heads, h, w) on CLIP's patch grid: what each proposal's embedding was pooled with.
    passes: (B,) int64, how many pictures of each image CLIP was shown.
    """

    mask_logits: Tensor
    class_logits: Tensor
    heatmaps: Tensor
    passes: Tensor


class Segmenter(nn.Module, ABC):
    """Images and class names in, per-pixel class scores out; in training, named losses.

    Classes are always names: no system knows a dataset.
    """

    @abstractmethod
    def losses(self, images: Tensor, labels: Tensor, names: list[str]) -> dict[str, Tensor]:
        """Named scalar losses, of which training minimises the sum.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            labels: (B, H, W) int64 indices into ``names``; of :mod:`deop.data.segmentation`, ``IGNORE`` where a pixel
                has no class and ``HIDDEN`` where it has an unseen one.
        """

    @staticmethod
    @abstractmethod
    def combine(output: Any, size: tuple[int, int]) -> Tensor:
        """Per-pixel class scores (B, C, H, W) at ``size`` (H, W) of what calling the system gave.

        Whatever else ``output`` has, its ``mask_logits`` are (B, N, h, w) and its ``passes`` (B,) int64.
        """

    @torch.inference_mode()
    def segment(self, images: Tensor, names: list[str], size: tuple[int, int] | None = None) -> Tensor:
        """Per-pixel class scores (B, C, H, W), higher is likelier; ``size`` (H, W) is that of the images by default.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], any size.
        """
        return self.combine(self(images, names), size or tuple(images.shape[-2:]))


def sum_over_proposals(class_scores: Tensor, mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Per-pixel class scores (B, C, H, W): the sum over N proposals of class score (B, N, C) times mask.

    Masks (B, N, h, w) are brought to ``size`` (H, W) as logits. In full precision: sums of small terms are compared
    with each other.
    """
    with torch.autocast(mask_logits.device.type, enabled=False):
        masks = F.interpolate(mask_logits.float(), size, mode="bilinear", align_corners=False).sigmoid()
        return torch.einsum("bnc,bnhw->bchw", class_scores.float(), masks)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], shifted and scaled per channel."""
    return (images - images.new_tensor(mean).view(3, 1, 1)) / images.new_tensor(std).view(3, 1, 1)


def to_multiple(images: Tensor, patch: int) -> Tensor:
    """Images resized (bilinear) so that both sides are the nearest multiple of ``patch`` pixels."""
    size = [max(1, round(side / patch)) * patch for side in images.shape[-2:]]
    if list(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
