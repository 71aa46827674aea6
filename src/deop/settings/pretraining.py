"""Settings of the stages that pre-train the mini profile's replacements of OpenAI's CLIP and ImageNet's backbone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from deop.settings.base import Fraction, NotNegative, Positive, Settings, Whole


class PretrainClip(Settings):
    """Contrastive pre-training of the mini CLIP on generated scenes and captions, of its own image size.

    ``scenes`` are simple, with one caption that names what is shown, or cluttered, with a caption for each name
    (:data:`deop.data.emoji.captioned.SCENES`). ``textures`` is the number of pictures of each texture and style, parts
    of which the scenes show. ``common_share`` is the share of emoji that are drawn from those in ``common``.
    ``accuracy_scenes`` is the number of new scenes on which the accuracy of the finished CLIP is measured.

    ``grown_from`` names a model with bundled weights: the first round starts from them, instead of random ones, with
    layers added to the image tower. ``lock_text`` keeps the text tower as it is. Of the weights that a later round
    starts from, the last ``fresh_layers`` layers of the image tower, its last norm and its projection are initialised
    anew.
    """

    model: str
    grown_from: str | None = None
    lock_text: bool = False
    fresh_layers: Whole = 0
    scenes: Literal["simple", "cluttered"] = "simple"
    images: Positive
    batch_size: Positive = 256
    lr: NotNegative = 1e-3
    weight_decay: NotNegative = 0.1
    warmup_images: Whole = 20_000
    patch_dropout: Fraction = 0.5
    objects: tuple[Positive, Positive] = (1, 3)
    common: tuple[str, ...] = ()
    common_share: Fraction = 0.0
    textures: Positive = 16
    accuracy_scenes: Positive = 200


class PretrainBackbone(Settings):
    """Pre-training of the proposal network's backbone to classify single emoji, instead of ImageNet (mini profile)."""

    backbone: str
    backbone_args: Annotated[dict, Field(default_factory=dict)]
    image_size: Positive = 64
    images: Positive
    batch_size: Positive = 128
    lr: NotNegative = 2e-3
    weight_decay: NotNegative = 0.05
    warmup_images: Whole = 10_000
    textures: Positive = 16
