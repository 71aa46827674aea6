"""SPNet: pixel features projected onto the embeddings of class names, the simplest of these systems.

Xian et al., "Semantic Projection Network for Zero- and Few-Label Semantic Segmentation" (CVPR 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deop.methods.dense import DenseSegmenter, pixel_loss
from deop.settings.methods import method
from deop.settings.per_pixel import SPNetSettings


@method(SPNetSettings)
class SPNet(DenseSegmenter):
    """Scores are probabilities: the softmax of products of features with embeddings, minus the calibration."""

    settings: SPNetSettings
    scores_are_logits = False

    def __init__(self, backbone: nn.Module, settings: SPNetSettings, **more) -> None:
        super().__init__(backbone, settings, **more)
        self.project = nn.Conv2d(settings.width, self.embed_dim, 1)

    def logits(self, features: Tensor, names: list[str]) -> Tensor:
        """Products (B, C, h, w) of features (B, width, h, w), not normalised, with unit embeddings of C names."""
        return torch.einsum("bdhw,cd->bchw", self.project(features), self.embeddings(names))

    def pixel_scores(self, images: Tensor, names: list[str]) -> Tensor:
        scores = self.logits(self.features(images), names).float().softmax(1)
        seen = torch.tensor([name in self.seen_names for name in names], device=images.device)
        return scores - self.settings.calibration * seen.float()[:, None, None]

    def losses(self, images: Tensor, labels: Tensor, names: list[str], **more: Tensor) -> dict[str, Tensor]:
        return {"pixels": pixel_loss(self.logits(self.pixel_features(images), names), self.coarse(labels))}
