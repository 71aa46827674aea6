"""DeOP without training: proposals of others or none, one severed pass of CLIP, mask pooling, prompt templates.

This is the paper's Baseline (section 3.1) with patch severance (section 4.1), without the proposals and prompts that
the paper trains. With proposals ``none``, classes are those of patches, upsampled.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deop.methods.base import PixelOutput, normalise, to_multiple
from deop.methods.builder import Builder
from deop.methods.masks import MaskOrPixelSegmenter, Regions, SegmenterOutput
from deop.models.anchors import mask_pool
from deop.models.clip import DenseCLIP
from deop.models.foreign_proposals import Proposer, make_proposer
from deop.models.prompts import template_embeddings
from deop.models.severance import Severance
from deop.settings.methods import method
from deop.settings.templates import Templates, templates_of
from deop.settings.training_free import TrainingFreeSettings
from deop.utils.precision import in_float32

_MOST_KEPT = 10_000
"""Embedded names after which all are dropped, so that a page that is asked for years does not fill the memory."""


@method(TrainingFreeSettings)
class TrainingFree(MaskOrPixelSegmenter):
    """A frozen CLIP with proposals that were not trained here, or none.

    Args:
        clip: the frozen CLIP.
        settings: proposals, severance and templates.
        proposer: makes the masks, None for classes per patch.
    """

    compiled_methods = ("encode",)

    def __init__(self, clip: DenseCLIP, settings: TrainingFreeSettings, proposer: Proposer | None) -> None:
        super().__init__()
        self.clip, self.settings = clip, settings
        # Not a submodule: its weights have a public source, so a system's folder refers to them by name.
        self._proposer = (proposer,)
        self.severance = Severance(**dict(settings.severance))
        self.severance.attentions(clip.layers)  # fails here on a layer that CLIP does not have
        self.logit_scale = settings.logit_scale or clip.logit_scale
        self.proposals = None
        self.templates = settings.templates
        self._text: dict[tuple[str, Templates, torch.device], Tensor] = {}

    @classmethod
    def build(cls, builder: Builder) -> TrainingFree:
        settings = builder.settings
        return cls(
            builder.clip, settings, make_proposer(settings.proposals, superpixels=settings.superpixels)
        )

    def encode_images(self, images: Tensor) -> Regions | Tensor:
        """Regions with their embeddings; without proposals, patch features (B, D, h, w), L2-normalised."""
        inputs = normalise(to_multiple(images, self.clip.patch_size), self.clip.mean, self.clip.std)
        (proposer,) = self._proposer
        if proposer is None:
            return F.normalize(self.encode(inputs, None).float(), dim=1)
        mask_logits = proposer(images)
        grid = [side // self.clip.patch_size for side in inputs.shape[-2:]]
        masks = F.interpolate(
            mask_logits.sigmoid(), grid, mode="bilinear", align_corners=False, antialias=True
        )
        features = F.normalize(self.encode(inputs, masks).float(), dim=1)
        embeddings = F.normalize(mask_pool(features, masks), dim=-1)
        passes = torch.ones(len(images), dtype=torch.int64, device=images.device)
        return Regions(mask_logits, embeddings, masks[:, :, None], passes)

    def encode(self, inputs: Tensor, masks: Tensor | None) -> Tensor:
        """CLIP's patch features (B, D, h, w) of normalised images, in one pass."""
        return self.clip.visual(inputs, severance=self.severance, masks=masks).patches

    def score(self, encoded: Regions | Tensor, names: list[str]) -> PixelOutput | SegmenterOutput:
        return self.classify(encoded, self.text_features(names))

    def classify(self, encoded: Regions | Tensor, text: Tensor) -> PixelOutput | SegmenterOutput:
        """As :meth:`score`, of class embeddings (C, D)."""
        text = text.float()
        if isinstance(encoded, Tensor):
            with in_float32(text.device):
                logits = self.logit_scale * torch.einsum("bdhw,cd->bchw", encoded.float(), text)
            return PixelOutput(logits, torch.ones(len(encoded), dtype=torch.int64, device=encoded.device))
        with in_float32(text.device):
            logits = self.logit_scale * encoded.embeddings.float() @ text.T
        return SegmenterOutput(encoded.mask_logits, F.pad(logits, (0, 1), value=-torch.inf), *encoded[2:])

    def forward(self, images: Tensor, names: list[str]) -> PixelOutput | SegmenterOutput:
        return self.score(self.encode_images(images), names)

    def text_features(self, names: list[str]) -> Tensor:
        """Embeddings (C, D) of names in ``templates``, L2-normalised; each name is embedded once."""
        templates, device = self.templates, self.clip.device
        if len(self._text) > _MOST_KEPT:
            self._text.clear()
        new = [name for name in dict.fromkeys(names) if (name, templates, device) not in self._text]
        if new:
            embedded = template_embeddings(self.clip, new, templates_of(templates)).float()
            self._text.update(zip(((name, templates, device) for name in new), embedded))
        return torch.stack([self._text[name, templates, device] for name in names])

    def embed(self, names: list[str]) -> None:
        self.text_features(names)
