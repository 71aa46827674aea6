"""Pixel features at one resolution from a pre-trained backbone: what per-pixel systems put their heads on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseFeatures(nn.Module):
    """A backbone's features of all stages, summed at the resolution of the first.

    Each stage goes through a 1x1 convolution, the deepest through parallel dilated 3x3 convolutions that are summed, as
    in DeepLabV2. From the deepest on, features are upsampled and added to the next finer ones. A last 3x3 convolution
    with batch norm and ReLU gives the pixel features.

    Args:
        backbone: as :func:`deop.models.backbones.timm_features` makes it.
        width: channels of the pixel features.
        dilations: of the convolutions on the deepest stage.

    Attributes:
        stride: pixels of the image per pixel feature.
    """

    def __init__(self, backbone: nn.Module, width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone.to(memory_format=torch.channels_last)
        *finer, deepest = backbone.feature_info.channels()
        self.width, self.stride = width, int(backbone.feature_info.reduction()[0])
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in finer)
        self.pyramid = nn.ModuleList(
            nn.Conv2d(deepest, width, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        self.output = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Pixel features (B, width, h, w) of normalised images (B, 3, H, W); h is H / ``stride``, rounded up."""
        *finer, deepest = self.backbone(images.contiguous(memory_format=torch.channels_last))
        features = torch.stack([convolution(deepest) for convolution in self.pyramid]).sum(0)
        for stage, lateral in zip(reversed(finer), reversed(self.lateral), strict=True):
            above = F.interpolate(features, stage.shape[-2:], mode="bilinear", align_corners=False)
            features = lateral(stage) + above
        return self.output(features)

    def size(self, image: Sequence[int]) -> tuple[int, int]:
        """The resolution (h, w) of the features of images of size (H, W)."""
        height, width = (-(-side // self.stride) for side in image)
        return height, width
