"""What per-pixel systems share: pixel features of a pre-trained backbone, and embeddings of class names."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deop.methods.base import IMAGENET_MEAN, IMAGENET_STD, PixelOutput, Segmenter, normalise
from deop.methods.builder import Builder
from deop.models.clip import DenseCLIP
from deop.models.dense import DenseFeatures
from deop.models.losses import labels_at
from deop.models.prompts import template_embeddings
from deop.models.word_vectors import WordVectors
from deop.settings.per_pixel import PerPixelSettings, Round
from deop.settings.templates import templates_of
from deop.utils.timing import part


class DenseSegmenter(Segmenter):
    """A system that classifies every pixel, without proposals. CLIP never sees the image: ``passes`` are 0.

    Args:
        backbone: as :func:`deop.models.backbones.timm_features` makes it.
        settings: of the system.
        clip: embeds class names where ``settings`` name no word vectors; only its text encoder is used.
        seen_names: the classes that training shows.
        class_names: all classes of the dataset that it is trained on.
    """

    def __init__(
        self,
        backbone: nn.Module,
        settings: PerPixelSettings,
        *,
        clip: DenseCLIP | None = None,
        seen_names: tuple[str, ...] = (),
        class_names: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.settings = settings
        self.seen_names, self.class_names = seen_names, class_names
        self.features = DenseFeatures(backbone, settings.width, settings.dilations)
        self._embed: Callable[[list[str]], Tensor]
        if settings.word_vectors:
            self._embed = WordVectors(settings.word_vectors)
            self.embed_dim = self._embed.width
        else:
            assert clip is not None
            self.clip = clip
            self._embed = lambda names: template_embeddings(clip, names, templates_of(settings.templates))
            self.embed_dim = clip.embed_dim
        self._embedded: tuple[tuple, Tensor | None] = ((), None)

    @classmethod
    def build(cls, builder: Builder) -> DenseSegmenter:
        return cls(
            builder.backbone(),
            builder.settings,
            clip=builder.clip if "clip" in builder.settings.parts else None,
            seen_names=builder.seen_names,
            class_names=builder.class_names,
        )

    @abstractmethod
    def pixel_scores(self, images: Tensor, names: list[str]) -> Tensor:
        """Class scores (B, C, h, w) of normalised images (B, 3, H, W)."""

    def forward(self, images: Tensor, names: list[str]) -> PixelOutput:
        passes = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return PixelOutput(self.pixel_scores(normalised(images), names), passes)

    def pixel_features(self, images: Tensor) -> Tensor:
        """Features (B, width, h, w) of images (B, 3, H, W) in [0, 1]."""
        return self.features(normalised(images))

    def embeddings(self, names: list[str]) -> Tensor:
        """Embeddings (C, D) of class names, L2-normalised; kept for as long as the names stay the same.

        Raises:
            ClassNameError: a name that the text encoder or the word vectors cannot embed.
        """
        device = next(self.features.parameters()).device
        key = (*names, device)
        if self._embedded[0] != key:
            # Made in inference mode, they could not be used in training afterwards.
            with part("text"), torch.inference_mode(False), torch.no_grad():
                self._embedded = (key, self._embed(names).to(device).float())
        embedded = self._embedded[1]
        assert embedded is not None
        return embedded

    def embed(self, names: list[str]) -> None:
        self.embeddings(names)

    def coarse(self, labels: Tensor) -> Tensor:
        """Labels (B, H, W) at the resolution of the features, (B, h, w)."""
        return labels_at(labels, self.features.size(labels.shape[-2:]))

    def denominators(self, labels: Tensor) -> dict[str, Tensor]:
        return {"pixels": (self.coarse(labels) >= 0).sum()}

    def lr_factors(self, schedule: Round) -> dict[str, float]:
        """The backbone is pre-trained, and learns more slowly."""
        return {"features.backbone.": schedule.backbone_lr_factor}

    def trained_state(self) -> dict[str, Tensor]:
        """All of the features: batch norms that are frozen learn nothing, but are not those of a new network."""
        return super().trained_state() | self.features.state_dict(prefix="features.")


def normalised(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] as the backbone takes them."""
    return normalise(images, IMAGENET_MEAN, IMAGENET_STD)


def pixel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of scores (B, C, h, w) over the labelled pixels of labels (B, h, w); 0 without any."""
    labelled = labels >= 0
    summed = F.cross_entropy(scores.float(), labels.where(labelled, -100), ignore_index=-100, reduction="sum")
    return summed / labelled.sum().clamp(min=1)
