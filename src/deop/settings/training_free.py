"""Settings of the training-free form of DeOP: :mod:`deop.methods.training_free`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from deop.settings.base import AboveZero, Positive
from deop.settings.clip_layers import check_severed_layers
from deop.settings.methods import MethodSettings, SeveranceSettings
from deop.settings.templates import Templates, describe_templates


class TrainingFreeSettings(MethodSettings):
    """DeOP without anything learned: proposals, one severed pass of CLIP, mask pooling, prompt templates.

    proposals: ``none`` gives every pixel the classes of CLIP's patches, ``slic`` pools them over ``superpixels``
        superpixels (scikit-image), and anything else is the name or folder of a MaskFormer, Mask2Former or SAM of
        transformers, such as ``facebook/maskformer-resnet101-coco-stuff``. Its masks are used, its classes are not.
    logit_scale: factor of the cosines; None is the CLIP's own, 100 for OpenAI's.
    """

    method: Literal["training_free"] = "training_free"
    proposals: str = Field("none", min_length=1)
    superpixels: Positive = 150
    severance: SeveranceSettings = SeveranceSettings(kind="gps", alpha={-1: 1})
    templates: Templates = ("a photo of a {}.",)
    logit_scale: AboveZero | None = None

    @model_validator(mode="after")
    def _masks_for_guided_severance(self) -> TrainingFreeSettings:
        if self.proposals == "none" and self.severance.kind in ("mps", "mask_sum"):
            raise ValueError(
                f"severance kind {self.severance.kind!r} is guided by masks, and proposals 'none' has none; valid: "
                "proposals 'slic' or the name of a MaskFormer, Mask2Former or SAM"
            )
        return self

    def check_clip(self, model: str, place: str) -> None:
        check_severed_layers(self.severance.alpha, model, place)

    @property
    def described_prompts(self) -> str:
        return describe_templates(self.templates)


SETTINGS = TrainingFreeSettings
