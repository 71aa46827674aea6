"""Segmentation metrics from one confusion matrix, and the quality of class-agnostic proposals.

All values are fractions in [0, 1]; a mean over no class is NaN.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from deop.models.row_strips import resized_strips, rows_within_budget

MiouConvention = Literal["occurring", "ground_truth"]


class SegmentationScores(NamedTuple):
    """The scores of one dataset.

    Attributes:
        pacc: correct pixels / labelled pixels.
        miou: mean IoU over all classes that the convention counts.
        seen: the same over seen classes.
        unseen: the same over unseen classes.
        hiou: harmonic mean of ``seen`` and ``unseen``.
        miou_truth: ``miou`` by the convention ``ground_truth``, whichever the others have.
        iou: IoU of every class in label order; NaN for classes that the convention does not count.
    """

    pacc: float
    miou: float
    seen: float
    unseen: float
    hiou: float
    miou_truth: float
    iou: tuple[float, ...]


class SegmentationMetrics:
    """Accumulates a confusion matrix over images, and over processes where there are several.

    Args:
        classes: number C of classes, seen and unseen together; labels are 0 to C - 1.
        unseen: label indices of the unseen classes.
        ignore: label of pixels that do not count.
        convention: which classes an mIoU averages over: those ``occurring`` in the ground truth or in the
            prediction (SimBaseline's), or in the ``ground_truth`` alone (later toolkits').
        device: where the confusion matrix lives.

    Raises:
        ValueError: unknown convention, ``ignore`` or ``unseen`` out of place.
    """

    def __init__(
        self,
        classes: int,
        unseen: Collection[int] = (),
        *,
        ignore: int = 255,
        convention: MiouConvention = "occurring",
        device: torch.device | str = "cpu",
    ) -> None:
        valid = get_args(MiouConvention)
        if convention not in valid:
            raise ValueError(f"mIoU convention {convention!r}: valid are {', '.join(valid)}")
        if 0 <= ignore < classes:
            raise ValueError(
                f"ignore {ignore} is one of the {classes} classes: valid are {classes} and above"
            )
        if stray := [label for label in unseen if not 0 <= label < classes]:
            raise ValueError(f"unseen labels {stray} are not classes: valid are 0 to {classes - 1}")
        self.classes = classes
        self.ignore = ignore
        self.convention = convention
        self.unseen = torch.zeros(classes, dtype=torch.bool)
        self.unseen[list(unseen)] = True
        self.confusion = MulticlassConfusionMatrix(classes, ignore_index=ignore, validate_args=False)
        self.confusion.to(device)

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Count the pixels of a batch.

        Args:
            prediction: (B, H, W) predicted class indices.
            labels: (B, H, W) class indices, or ``ignore``.

        Raises:
            ValueError: a predicted class or a label is out of range.
        """
        last = self.classes - 1
        for name, values in (("label", labels[labels != self.ignore]), ("predicted class", prediction)):
            stray = values[(values < 0) | (values > last)]
            if stray.numel():
                raise ValueError(f"{name} {stray[0].item()} is not a class: valid are 0 to {last}")
        self.confusion.update(prediction, labels)

    def compute(self) -> SegmentationScores:
        """The scores over everything counted so far."""
        matrix = self.confusion.compute().cpu().double()  # rows are the ground truth
        correct, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        union = truth + predicted - correct
        counted = (union if self.convention == "occurring" else truth) > 0
        iou = torch.where(counted, correct / union, torch.nan)
        seen, unseen = (iou[group].nanmean().item() for group in (~self.unseen, self.unseen))
        return SegmentationScores(
            pacc=(correct.sum() / truth.sum()).item(),
            miou=iou.nanmean().item(),
            seen=seen,
            unseen=unseen,
            hiou=float(harmonic_mean(seen, unseen)),
            miou_truth=(correct / union)[truth > 0].mean().item(),
            iou=tuple(iou.tolist()),
        )


def harmonic_mean(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """``2 a b / (a + b)``, element by element; 0 where both are 0, NaN where one is.

    Of mIoU on seen and unseen classes, this is hIoU.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    total = first + second
    return np.divide(2 * first * second, total, out=np.zeros_like(total), where=total != 0)


class SegmentIoU(NamedTuple):
    """How well proposals cover the ground-truth segments of a batch.

    Attributes:
        classes: (S,) class index of each of the S segments.
        iou: (S,) best IoU of each segment over the proposals.
    """

    classes: Tensor
    iou: Tensor


def mean_best_iou(mask_probabilities: Tensor, labels: Tensor, ignore: int = 255) -> SegmentIoU:
    """The best IoU over all proposals, for every ground-truth segment (all pixels of one class in one image).

    The mean of ``iou`` is the mean best IoU; select by ``classes`` for the mean over seen or unseen segments.
    Proposals are upsampled bilinearly to label resolution, in row strips to bound memory, and binarised at 0.5; ignored
    pixels do not count.

    Args:
        mask_probabilities: (B, N, h, w) proposal masks in [0, 1].
        labels: (B, H, W) class indices, or ``ignore``.
        ignore: label of pixels that belong to no segment.

    Returns:
        One entry per segment, images in order and classes ascending within an image.
    """
    size, proposals = tuple(labels.shape[-2:]), mask_probabilities.shape[1]
    found, best = [], []
    for probabilities, truth in zip(mask_probabilities.float(), labels):
        classes, pixels = truth.unique(return_counts=True)
        # In a strip: the resized masks, the masks before and after the threshold, the segments and a comparison.
        rows = rows_within_budget(size[1] * (3 * proposals + 2 * len(classes)))
        intersection = torch.zeros(len(classes), proposals, dtype=torch.float64, device=truth.device)
        strips = resized_strips(probabilities[None], size, rows)
        for masks, labels_of_strip in zip(strips, truth.split(rows), strict=True):
            segments = (labels_of_strip.flatten() == classes[:, None]).float()
            proposed = (masks[0].flatten(1) > 0.5).float()
            with torch.autocast(truth.device.type, enabled=False):  # pixel counts are beyond half precision
                intersection += segments @ proposed.T
        labelled = classes != ignore
        intersection = intersection[labelled]
        # A labelled pixel of a proposal is one of some segment.
        union = pixels[labelled, None] + intersection.sum(0) - intersection
        found.append(classes[labelled])
        best.append((intersection / union).amax(1).float())
    return SegmentIoU(torch.cat(found), torch.cat(best))
