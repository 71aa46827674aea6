"""Stage ``pretrain_clip``: trains the mini CLIP contrastively on captioned scenes (mini profile only).

It stands in for web-scale pre-training. The scenes show every concept in both artists' styles, with captions as the
only supervision: there are no masks, and no scene of the validation set.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from deop.data.emoji.artwork import concepts
from deop.data.emoji.captioned import CaptionedScenes
from deop.evaluation.clip_accuracy import clip_accuracy
from deop.jobs.integrity import PROVENANCE, WEIGHTS
from deop.jobs.job import Job
from deop.models.clip import load_clip
from deop.models.clip_build import has_quick_gelu
from deop.models.clip_growth import grow_from, start_from
from deop.models.weight_files import checked_weights
from deop.settings.pretraining import PretrainClip
from deop.training.pretraining import pretrain

_MAX_LOGIT_SCALE = math.log(100)  # as CLIP does


class ContrastiveStep(nn.Module):
    """A CLIP and its contrastive loss on a batch of :class:`CaptionedScenes`.

    With ``lock_text``, nothing but the image tower and the logit scale learns, and each caption is encoded once.
    """

    def __init__(
        self, model: nn.Module, tokenize: Callable[[list[str]], Tensor], *, lock_text: bool = False
    ) -> None:
        super().__init__()
        self.model, self.tokenize, self.lock_text = model, tokenize, lock_text
        if lock_text:
            model.lock_text_tower()
        self._encoded: dict[str, Tensor] = {}
        mean, std = model.visual.image_mean, model.visual.image_std
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        images = self.model.encode_image((batch["image"] - self.mean) / self.std, normalize=True).float()
        texts = self._encode(batch["caption"]).float()
        return {
            "contrastive": contrastive_loss(self.model.logit_scale.exp() * images @ texts.T, batch["match"])
        }

    def _encode(self, captions: list[str]) -> Tensor:
        """Text embeddings (T, D), L2-normalised."""
        if not self.lock_text:
            return self.model.encode_text(self.tokenize(captions).to(self.mean.device), normalize=True)
        if new := [caption for caption in captions if caption not in self._encoded]:
            with torch.no_grad():
                encoded = self.model.encode_text(self.tokenize(new).to(self.mean.device), normalize=True)
            self._encoded.update(zip(new, encoded, strict=True))
        return torch.stack([self._encoded[caption] for caption in captions])


def contrastive_loss(logits: Tensor, match: Tensor) -> Tensor:
    """CLIP's symmetric InfoNCE loss, where an image may have several captions and a caption several images.

    Every matching pair is contrasted with the captions that do not belong to its image, and with the images that do not
    belong to its caption. With one caption per image it is CLIP's loss.

    Args:
        logits: (B, T), of images and captions.
        match: (B, T) bool, at least one of which is true.
    """
    others = logits.masked_fill(match, torch.finfo(logits.dtype).min)
    per_image = F.softplus(others.logsumexp(1, keepdim=True) - logits)
    per_caption = F.softplus(others.logsumexp(0, keepdim=True) - logits)
    return (per_image[match].mean() + per_caption[match].mean()) / 2


def run(job: Job) -> None:
    """Trains the model of ``job.settings["pretrain_clip"]`` and writes ``model.safetensors`` (fp16).

    Rounds after the first start from the weights of the input ``clip``. Their provenance includes that of the rounds
    before.
    """
    settings = PretrainClip.model_validate(job.settings["pretrain_clip"])
    torch.manual_seed(job.seed)
    earlier = Path(job.inputs["clip"]) if "clip" in job.inputs else None
    model = open_clip.create_model(settings.model, force_patch_dropout=settings.patch_dropout)
    if earlier is not None:
        start_from(model, load_file(checked_weights(earlier)), settings.fresh_layers)
    elif settings.grown_from is not None:
        grow_from(model, load_clip(settings.grown_from, "bundled").model.state_dict())
    size = model.visual.image_size[0]
    scenes = CaptionedScenes(
        image_size=size,
        batch_size=settings.batch_size,
        objects=settings.objects,
        steps=settings.images // settings.batch_size,
        seed=job.seed,
        scenes=settings.scenes,
        common=settings.common,
        common_share=settings.common_share,
        textures=settings.textures,
    )

    def accuracy(folder: Path) -> dict[str, dict]:
        # Of the weights that were written, in half precision, and not of those in memory.
        clip = load_clip(settings.model, str(folder / WEIGHTS), quick_gelu=has_quick_gelu(settings.model))
        vocabularies = {"all": tuple(concept.name for concept in concepts())}
        if settings.common:
            vocabularies["common"] = settings.common
        return {
            name: clip_accuracy(clip, things, image_size=size, scenes=settings.accuracy_scenes)
            for name, things in vocabularies.items()
        }

    pretrain(
        ContrastiveStep(model, open_clip.get_tokenizer(settings.model), lock_text=settings.lock_text),
        scenes,
        settings,
        job,
        network=model,
        accuracy=accuracy,
        betas=(0.9, 0.98),  # this and eps as CLIP's vision transformers were trained
        eps=1e-6,
        started_from=None if earlier is None else json.loads((earlier / PROVENANCE).read_text()),
    )
