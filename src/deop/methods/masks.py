"""Systems that classify mask proposals: what DeOP and the multi-pass systems have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deop.methods.base import PixelOutput, Segmenter
from deop.models.proposals import ProposalNetwork
from deop.models.row_strips import resized_strips, rows_within_budget
from deop.utils.timing import part, parts_of

CPU_STRIP_BYTES = 4 * 2**20
"""Memory for one strip of a label map on a CPU: what stays in its cache is quick to read again."""


class SegmenterOutput(NamedTuple):
    """What a system of proposals and classifiers gives for a batch.

    mask_logits: (B, N, h, w) over the image, as :meth:`MaskSegmenter.over_image` has them.
    class_logits: (B, N, C + 1), the last column "no object".
    heatmaps: (B, N, heads, h, w) on CLIP's patch grid: what each proposal's embedding was pooled with.
    passes: (B,) int64, how many pictures of each image CLIP was shown.
    """

    mask_logits: Tensor
    class_logits: Tensor
    heatmaps: Tensor
    passes: Tensor


class Regions(NamedTuple):
    """What a system knows of a batch before it is given class names.

    mask_logits, heatmaps, passes: as in :class:`SegmenterOutput`.
    embeddings: (B, N, D) of the proposals in CLIP's joint space.
    """

    mask_logits: Tensor
    embeddings: Tensor
    heatmaps: Tensor
    passes: Tensor


class ClassScores(NamedTuple):
    """What the masks of a batch are weighted with, to give every pixel a score of each class.

    of_proposals: (B, N, C).
    offset: (C,) what is added to every pixel's scores.
    """

    of_proposals: Tensor
    offset: Tensor


class MaskSegmenter(Segmenter):
    """A segmenter that gives every proposal class scores; a pixel's scores are their sum, weighted with the masks.

    Attributes:
        proposals: the proposal network.
    """

    proposals: ProposalNetwork

    @staticmethod
    @abstractmethod
    def class_scores(output: Any) -> ClassScores:
        """The class scores of the proposals, out of what calling the system gave.

        Whatever else ``output`` has, its ``mask_logits`` are (B, N, h, w) and its ``passes`` (B,) int64.
        """

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

        Upsampled in row strips to bound memory: neither all scores nor all masks are ever held. Only the classes that
        :func:`contenders` leaves are compared. Equal to the plain way but where two classes tie to rounding.
        """
        with part("scoring"), torch.autocast(output.mask_logits.device.type, enabled=False):
            mask_logits, (of_proposals, offset) = output.mask_logits.float(), self.class_scores(output)
            classes = contenders(of_proposals, offset)
            of_proposals, offset = of_proposals[..., classes].float(), offset[classes].float()
            batch, proposals = mask_logits.shape[:2]
            # Scores, the mask logits and their sigmoid.
            values_a_row = batch * max(size[1], mask_logits.shape[3]) * (len(classes) + 2 * proposals)
            rows = rows_within_budget(values_a_row, CPU_STRIP_BYTES if mask_logits.is_cpu else None)
            labels = []

            def scores(logits: Tensor) -> Tensor:
                """Class scores (B, pixels, K) of mask logits (B, N, pixels)."""
                return torch.baddbmm(offset, logits.sigmoid().transpose(1, 2), of_proposals)

            if self.upsample == "scores":

                def score_rows(logits: Tensor) -> Tensor:
                    return scores(logits.flatten(2)).transpose(1, 2).unflatten(2, logits.shape[2:])

                for strip in resized_strips(mask_logits, size, rows, score_rows):
                    labels.append(classes[strip.argmax(1)])
                return torch.cat(labels, dim=1)
            for strip in parts_of(resized_strips(mask_logits, size, rows), "upsampling"):
                # Classes last: their argmax is several times as fast as along a dimension with others behind it.
                best = scores(strip.flatten(2)).argmax(2)
                labels.append(classes[best].unflatten(1, strip.shape[2:]))
            return torch.cat(labels, dim=1)


class MaskOrPixelSegmenter(MaskSegmenter):
    """A segmenter that classifies mask proposals if it has any, and else pixels, with a :class:`PixelOutput`."""

    def combine(self, output: Any, size: tuple[int, int]) -> Tensor:
        if isinstance(output, PixelOutput):
            return Segmenter.combine(self, output, size)
        return super().combine(output, size)

    def label_map(self, output: Any, size: tuple[int, int]) -> Tensor:
        if isinstance(output, PixelOutput):
            return Segmenter.label_map(self, output, size)
        return super().label_map(output, size)

    @staticmethod
    def class_scores(output: SegmenterOutput) -> ClassScores:
        """Class probabilities of the proposals."""
        probabilities = output.class_logits.float().softmax(-1)[..., :-1]
        return ClassScores(probabilities, probabilities.new_zeros(probabilities.shape[-1]))


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
