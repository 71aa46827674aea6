"""OpenSeg: class-agnostic masks, and the words of captions grounded in the regions under them.

Ghiasi et al., "Scaling Open-Vocabulary Image Segmentation with Image-Level Labels" (ECCV 2022).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deop.data.captions import CaptionedBatches, caption_source
from deop.data.segmentation import HIDDEN
from deop.data.transforms import TrainingBatches
from deop.errors import DeopError
from deop.methods.dense import DenseSegmenter, normalised
from deop.models.grounding import best_dice_loss, grounding_loss, grounding_scores
from deop.models.proposals import segment_classes, segment_masks
from deop.settings.methods import method
from deop.settings.per_pixel import OpenSegSettings

GRID = 24
"""Side of the square that position embeddings are stored on."""


def _branch(width: int, output: int) -> nn.Sequential:
    """A linear layer and three 3x3 convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(width, width, 1)]
    for index in range(3):
        layers += [nn.ReLU(), nn.Conv2d(width, output if index == 2 else width, 3, padding=1)]
    return nn.Sequential(*layers)


@method(OpenSegSettings)
class OpenSeg(DenseSegmenter):
    """A pixel's scores are those of the regions, weighted with their masks there.

    The number of words that captions have in all is the lexicon, which :meth:`training_batches` sets.
    """

    settings: OpenSegSettings
    scores_are_logits = False

    def __init__(self, backbone: nn.Module, settings: OpenSegSettings, **more) -> None:
        super().__init__(backbone, settings, **more)
        width = settings.width
        self.of_masks, self.of_meaning = _branch(width, width), _branch(width, self.embed_dim)
        self.positions = nn.Parameter(0.02 * torch.randn(1, width, GRID, GRID))
        self.queries = nn.Parameter(torch.randn(settings.queries, width))
        self.attention = nn.MultiheadAttention(width, settings.heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.07)))
        self._lexicon: list[str] = []

    def training_batches(self, batches: TrainingBatches) -> CaptionedBatches:
        own, more = self.settings.captions, self.settings.more_captions
        captioned = CaptionedBatches(
            batches,
            None if own is None else Path(own),
            None if more is None else caption_source(more, batches),
            self.settings.more_images,
        )
        self._lexicon = captioned.lexicon
        return captioned

    @property
    def temperature(self) -> Tensor:
        return self.log_temperature.exp().clamp(min=0.01)

    def regions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits (B, N, h, w) and region embeddings (B, N, D) of normalised images (B, 3, H, W)."""
        features = self.features(images)
        masks = self.of_masks(features)
        places = F.interpolate(self.positions, masks.shape[-2:], mode="bilinear", align_corners=False)
        memory = (masks + places).flatten(2).transpose(1, 2)
        queries = self.queries.expand(len(images), -1, -1)
        queries = self.norm(queries + self.attention(queries, memory, memory, need_weights=False)[0])
        logits = torch.einsum("bnd,bdhw->bnhw", queries, masks) / math.sqrt(masks.shape[1])
        meaning = torch.einsum("bnhw,bdhw->bnd", logits.sigmoid(), self.of_meaning(features))
        return logits, meaning

    def pixel_scores(self, images: Tensor, names: list[str]) -> Tensor:
        logits, regions = self.regions(images)
        with torch.autocast(images.device.type, enabled=False):
            cosines = F.normalize(regions.float(), dim=-1) @ self.embeddings(names).T
            classes = (cosines / self.temperature).softmax(-1)
            return torch.einsum("bnc,bnhw->bchw", classes, logits.float().sigmoid())

    def losses(self, images: Tensor, labels: Tensor, names: list[str], **more: Tensor) -> dict[str, Tensor]:
        """``masks``, the best Dice of every labelled segment, and ``grounding`` of captions among images.

        Args:
            more: ``words`` (B, K) int64, indices into the lexicon, negative for padding.

        Raises:
            DeopError: in training, a single image, whose caption there is nothing to compare with.
        """
        words, coarse = more["words"], self.coarse(labels)
        if self.training and len(images) == 1:
            raise DeopError(
                "OpenSeg compares the captions of the images that it is shown together, and was shown one image: "
                "resources.train_system.micro_batch, and the share of a process in the batch, have to be at least 2"
            )
        logits, regions = self.regions(normalised(images))
        classes, counts = segment_classes(coarse, HIDDEN)
        targets = segment_masks(coarse, classes, HIDDEN).flatten(2)
        known = (coarse != HIDDEN).flatten(1)[:, None]
        masks = best_dice_loss(logits.float().sigmoid().flatten(2) * known, targets, counts)
        valid = words >= 0
        if self.training:
            kept = torch.rand(words.shape, device=words.device) < self.settings.keep_words
            kept[torch.arange(len(words)), valid.float().argmax(1)] |= ~(kept & valid).any(1)
            valid = valid & kept
        embedded = self.embeddings(self._lexicon)[words.clamp(min=0)]
        scores = grounding_scores(regions, embedded, valid, self.temperature)
        grounding = grounding_loss(scores, valid.any(1), self.temperature)
        return {"masks": self.settings.mask_weight * masks, "grounding": grounding}

    def denominators(self, labels: Tensor) -> dict[str, Tensor]:
        counts = segment_classes(self.coarse(labels), HIDDEN)[1]
        return {"masks": labels.new_tensor(sum(counts))}
