"""LSeg: pixel features drawn to the CLIP text embeddings of class names by cross-entropy.

Li et al., "Language-driven Semantic Segmentation" (ICLR 2022).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deop.methods.dense import DenseSegmenter, pixel_loss
from deop.settings.methods import method
from deop.settings.per_pixel import LSegSettings


class LabelMapBlock(nn.Module):
    """Spatial regularisation: one 3x3 kernel for the maps of all labels, so that their order does not matter.

    With ``bottleneck``, the maximum over the labels is added to every map.
    """

    def __init__(self, *, bottleneck: bool) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, K, h, w) to the same shape."""
        smoothed = self.convolution(maps.flatten(0, 1)[:, None]).view_as(maps)
        return smoothed + maps.amax(1, keepdim=True) if self.bottleneck else smoothed


@method(LSegSettings)
class LSeg(DenseSegmenter):
    """Scores are cosines over the temperature, after the blocks of spatial regularisation if there are any."""

    settings: LSegSettings

    def __init__(self, backbone: nn.Module, settings: LSegSettings, **more) -> None:
        super().__init__(backbone, settings, **more)
        self.project = nn.Conv2d(settings.width, self.embed_dim, 1)
        count = 0 if settings.regularisation == "none" else settings.blocks
        bottleneck = settings.regularisation == "bottleneck"
        self.blocks = nn.ModuleList(LabelMapBlock(bottleneck=bottleneck) for _ in range(count))

    def logits(self, features: Tensor, names: list[str]) -> Tensor:
        """(B, C, h, w) of features (B, width, h, w) and C names."""
        projected = F.normalize(self.project(features).float(), dim=1)
        with torch.autocast(features.device.type, enabled=False):
            cosines = torch.einsum("bdhw,cd->bchw", projected, self.embeddings(names))
        maps = cosines / self.settings.temperature
        for index, block in enumerate(self.blocks):
            maps = block(maps)
            if index < len(self.blocks) - 1:
                maps = F.leaky_relu(maps)
        return maps

    def pixel_scores(self, images: Tensor, names: list[str]) -> Tensor:
        return self.logits(self.features(images), names)

    def losses(self, images: Tensor, labels: Tensor, names: list[str], **more: Tensor) -> dict[str, Tensor]:
        return {"pixels": pixel_loss(self.logits(self.pixel_features(images), names), self.coarse(labels))}
