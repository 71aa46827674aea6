"""The interface that every system of the tables shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deop.models.proposals import ProposalNetwork
from deop.models.row_strips import resized_bands, rows_within_budget
from deop.utils.timing import part, parts_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CPU_BAND_BYTES = 4 * 2**20
"""What one band of a label map may take on a CPU: what stays in its cache is read again at once."""


class SegmenterOutput(NamedTuple):
    """What a system of proposals and classifiers gives for a batch.

    mask_logits: (B, N, h, w) over the image, as :meth:`Segmenter.over_image` has them.
    class_logits: (B, N, C + 1), the last column "no object".
    heatmaps: (B, N, heads, h, w) on CLIP's patch grid: what each proposal's embedding was pooled with.
    passes: (B,) int64, how many pictures of each image CLIP was shown.
    """

    mask_logits: Tensor
    class_logits: Tensor
    heatmaps: Tensor
    passes: Tensor


class ClassScores(NamedTuple):
    """What the masks of a batch are weighted with, to give every pixel a score of each class.

    of_proposals: (B, N, C).
    offset: (C,) what is added to every pixel's scores.
    """

    of_proposals: Tensor
    offset: Tensor


class Segmenter(nn.Module, ABC):
    """Images and class names in, per-pixel class scores or labels out; in training, named losses.

    Classes are always names: no system knows a dataset.

    Attributes:
        proposals: the proposal network.
        compiled_methods: names of the methods that do most of the work, of tensors alone
        (:mod:`deop.methods.inference`).
        size_divisibility: images are padded to multiples of this many pixels (:meth:`padded`).
        upsample: what is resized to the size of a label map, ``"masks"`` (their logits) or class ``"scores"``.
    """

    proposals: ProposalNetwork
    compiled_methods: tuple[str, ...]
    size_divisibility: int = 1
    upsample: Literal["masks", "scores"] = "masks"

    @abstractmethod
    def supervised(self, images: Tensor, names: list[str]) -> list[Tensor]:
        """What :meth:`losses` are made of: all that the networks give for images (B, 3, H, W) in training."""

    @abstractmethod
    def losses(self, images: Tensor, labels: Tensor, names: list[str]) -> dict[str, Tensor]:
        """Named scalar losses, of which training minimises the sum.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            labels: (B, H, W) int64 indices into ``names``; of :mod:`deop.data.segmentation`, ``IGNORE`` where a pixel
                has no class and ``HIDDEN`` where it has an unseen one.
        """

    @abstractmethod
    def denominators(self, labels: Tensor) -> dict[str, Tensor]:
        """By name of a loss, how many of what it is a mean over are in ``labels`` (as :meth:`losses` takes them).

        Training divides a batch into parts and puts their losses together by these numbers (scalars), so that the
        result does not depend on the division.
        """

    @abstractmethod
    def embed(self, names: list[str]) -> None:
        """Embeds class names ahead of the first image that is compared with them; kept until others are asked for."""

    @staticmethod
    @abstractmethod
    def class_scores(output: Any) -> ClassScores:
        """The class scores of the proposals, out of what calling the system gave.

        Whatever else ``output`` has, its ``mask_logits`` are (B, N, h, w) and its ``passes`` (B,) int64.
        """

    def padded(self, images: Tensor, colour: tuple[float, ...]) -> Tensor:
        """Images (B, 3, H, W) with ``colour`` on the right and at the bottom, to multiples of ``size_divisibility``.

        The mean that images are normalised with, as colour, is zero after normalisation, with which detectron2 pads.
        """
        height, width = images.shape[-2:]
        size = self._padded_size((height, width))
        if size == (height, width):
            return images
        padded = images.new_tensor(colour).view(3, 1, 1).repeat(len(images), 1, *size)
        padded[..., :height, :width] = images
        return padded

    def over_image(self, mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Mask logits (B, N, h, w) of padded images, over the images of ``size`` (H, W) alone.

        Without padding, these are the same. With it, and wherever scores are to be resized, they are returned at the
        size of the image: resized (bilinear) to that of the padded image, then cropped.
        """
        padded = self._padded_size(size)
        if padded == size and self.upsample == "masks":
            return mask_logits
        resized = F.interpolate(mask_logits, padded, mode="bilinear", align_corners=False)
        return resized[..., : size[0], : size[1]]

    def _padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = (-(-side // self.size_divisibility) * self.size_divisibility for side in size)
        return height, width

    def combine(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Per-pixel class scores (B, C, H, W) at ``size`` (H, W) of what calling the system gave.

        Gigabytes for many classes and pixels; where labels are wanted, :meth:`label_map` does without them.
        """
        scores = self.class_scores(output)
        with torch.autocast(output.mask_logits.device.type, enabled=False):
            if self.upsample == "scores":
                summed = sum_over_proposals(scores, output.mask_logits)
                return F.interpolate(summed, size, mode="bilinear", align_corners=False)
            logits = F.interpolate(output.mask_logits.float(), size, mode="bilinear", align_corners=False)
        return sum_over_proposals(scores, logits)

    def label_map(self, output: Any, size: tuple[int, int]) -> Tensor:
        """The likeliest class of every pixel, (B, H, W) int64 at ``size``: the argmax of :meth:`combine`.

        Found band by band of rows, so that neither all scores nor all masks are ever held, among the classes that
        :func:`contenders` leaves. Equal to the plain way but where two classes tie to rounding.
        """
        with part("scoring"), torch.autocast(output.mask_logits.device.type, enabled=False):
            mask_logits, (of_proposals, offset) = output.mask_logits.float(), self.class_scores(output)
            classes = contenders(of_proposals, offset)
            of_proposals, offset = of_proposals[..., classes].float(), offset[classes].float()
            batch, proposals = mask_logits.shape[:2]
            # Scores, the mask logits and their sigmoid.
            values_a_row = batch * max(size[1], mask_logits.shape[3]) * (len(classes) + 2 * proposals)
            rows = rows_within_budget(values_a_row, CPU_BAND_BYTES if mask_logits.is_cpu else None)
            labels = []

            def scores(logits: Tensor) -> Tensor:
                """Class scores (B, pixels, K) of mask logits (B, N, pixels)."""
                return torch.baddbmm(offset, logits.sigmoid().transpose(1, 2), of_proposals)

            if self.upsample == "scores":

                def score_rows(logits: Tensor) -> Tensor:
                    return scores(logits.flatten(2)).transpose(1, 2).unflatten(2, logits.shape[2:])

                for band in resized_bands(mask_logits, size, rows, score_rows):
                    labels.append(classes[band.argmax(1)])
                return torch.cat(labels, dim=1)
            for band in parts_of(resized_bands(mask_logits, size, rows), "upsampling"):
                # Classes last: their argmax is several times as fast as along a dimension with others behind it.
                best = scores(band.flatten(2)).argmax(2)
                labels.append(classes[best].unflatten(1, band.shape[2:]))
            return torch.cat(labels, dim=1)

    @torch.inference_mode()
    def segment(self, images: Tensor, names: list[str], size: tuple[int, int] | None = None) -> Tensor:
        """Per-pixel class scores (B, C, H, W), higher is likelier; ``size`` (H, W) is that of the images by default.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], any size.
        """
        return self.combine(self(images, names), size or tuple(images.shape[-2:]))

    @torch.inference_mode()
    def label(self, images: Tensor, names: list[str], size: tuple[int, int] | None = None) -> Tensor:
        """The class with the highest score of :meth:`segment`, (B, H, W) int64, without holding all scores."""
        return self.label_map(self(images, names), size or tuple(images.shape[-2:]))


def sum_over_proposals(scores: ClassScores, mask_logits: Tensor) -> Tensor:
    """Per-pixel class scores (B, C, H, W): the sum over N proposals of class score times mask, and the offset.

    Of mask logits (B, N, H, W). In full precision: sums of small terms are compared with each other.
    """
    with torch.autocast(mask_logits.device.type, enabled=False):
        summed = torch.einsum("bnc,bnhw->bchw", scores.of_proposals.float(), mask_logits.float().sigmoid())
        return summed.add_(scores.offset[:, None, None])


def contenders(of_proposals: Tensor, offset: Tensor) -> Tensor:
    """Indices (K,), ascending, of the classes that can be the likeliest of some pixel, whatever the masks.

    A class that scores nowhere more than the average of other classes does, neither in a proposal nor in the offset,
    is beaten by one of them at every pixel, since masks are not negative. Others here are the best classes of the
    proposals. Of hundreds of classes that leaves tens, once a network knows what it sees.

    Args:
        of_proposals: (B, N, C).
        offset: (C,).
    """
    best = of_proposals.argmax(2)
    rows = torch.cat([of_proposals, offset.expand(len(of_proposals), 1, -1)], dim=1)
    average = rows.gather(2, best[:, None].expand(-1, rows.shape[1], -1)).mean(2, keepdim=True)
    beaten = ((rows <= average).all(1) & (rows < average).any(1)).all(0)
    beaten[best] = False  # an average of equal numbers may be rounded to more than each of them
    return (~beaten).nonzero()[:, 0]


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], shifted and scaled per channel."""
    return (images - images.new_tensor(mean).view(3, 1, 1)) / images.new_tensor(std).view(3, 1, 1)


def to_multiple(images: Tensor, patch: int) -> Tensor:
    """Images resized (bilinear) so that both sides are the nearest multiple of ``patch`` pixels."""
    size = [max(1, round(side / patch)) * patch for side in images.shape[-2:]]
    if list(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
