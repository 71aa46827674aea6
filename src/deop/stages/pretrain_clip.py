"""Stage ``pretrain_clip``: trains the mini CLIP contrastively on captioned scenes (mini profile only).

It stands in for web-scale pre-training. The scenes show every concept in both artists' styles, with captions as the
only supervision: there are no masks, and no scene of the validation set.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import load_file
from torch import Tensor, nn

from deop.data.emoji.artwork import concepts
from deop.data.emoji.captioned import CaptionedScenes
from deop.evaluation.clip_accuracy import clip_accuracy
from deop.jobs.artifacts import PROVENANCE, WEIGHTS
from deop.jobs.job import Job
from deop.models.clip import load_clip
from deop.models.clip_build import has_quick_gelu
from deop.models.weight_files import checked_weights
from deop.settings.pretraining import PretrainClip
from deop.training.pretraining import pretrain

_MAX_LOGIT_SCALE = math.log(100)  # as CLIP does


class ContrastiveStep(nn.Module):
    """A CLIP and its contrastive loss on a batch of :class:`CaptionedScenes`."""

    def __init__(self, model: nn.Module, tokenize) -> None:
        super().__init__()
        self.model, self.tokenize, self.loss = model, tokenize, ClipLoss()
        mean, std = model.visual.image_mean, model.visual.image_std
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        images = (batch["image"] - self.mean) / self.std
        tokens = self.tokenize(batch["caption"]).to(images.device)
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        image, text, scale = self.model(images, tokens)
        return {"contrastive": self.loss(image.float(), text.float(), scale.float())}


def _take_text_tower(model: nn.Module, source: str) -> None:
    """Copies the text tower of the bundled model ``source`` (everything but its image tower) into ``model``.

    Raises:
        ValueError: the text tower of ``source`` is of another size.
    """
    weights = load_clip(source, "bundled").model.state_dict()
    text = {name: value for name, value in weights.items() if not name.startswith("visual.")}
    own = model.state_dict()
    if wrong := [name for name, value in text.items() if name not in own or own[name].shape != value.shape]:
        raise ValueError(
            f"pretrain_clip.text_from: the text tower of {source!r} does not fit: {', '.join(wrong[:5])}"
        )
    model.load_state_dict(text, strict=False)


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
        model.load_state_dict(load_file(checked_weights(earlier)))
    elif settings.text_from is not None:
        _take_text_tower(model, settings.text_from)
    scenes = CaptionedScenes(
        image_size=settings.image_size,
        batch_size=settings.batch_size,
        objects=settings.objects,
        steps=settings.images // settings.batch_size,
        seed=job.seed,
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
            name: clip_accuracy(clip, things, image_size=settings.image_size, scenes=settings.accuracy_scenes)
            for name, things in vocabularies.items()
        }

    pretrain(
        ContrastiveStep(model, open_clip.get_tokenizer(settings.model)),
        scenes,
        settings,
        job,
        network=model,
        accuracy=accuracy,
        betas=(0.9, 0.98),  # this and eps as CLIP's vision transformers were trained
        eps=1e-6,
        started_from=None if earlier is None else json.loads((earlier / PROVENANCE).read_text()),
    )
