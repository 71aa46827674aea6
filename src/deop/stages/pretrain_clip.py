"""Stage ``pretrain_clip``: the mini CLIP, trained contrastively on captioned scenes (mini profile only).

It replaces web-scale pre-training: names and pictures of every concept in both artists' styles, with image-level
supervision only, no masks and no validation scene.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deop.data.emoji.artwork import concepts
from deop.data.emoji.captioned import CaptionedScenes
from deop.evaluation.clip_accuracy import clip_accuracy
from deop.jobs.artifacts import PROVENANCE, WEIGHTS, artifact
from deop.jobs.job import Job
from deop.models.clip import load_clip
from deop.models.clip_build import has_quick_gelu
from deop.models.weight_files import checked_weights
from deop.settings.pretraining import PretrainClip
from deop.training.pretrain import half_precision, pretrain
from deop.utils.files import write_json

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
    """Copies the text tower of the bundled model ``source``, that is all but its image tower, into ``model``.

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

    A round after the first starts from the weights of its input ``clip``; its provenance includes that of the rounds
    before it.
    """
    settings = PretrainClip.model_validate(job.settings["pretrain_clip"])
    torch.manual_seed(job.seed)
    earlier = Path(job.inputs["clip"]) if "clip" in job.inputs else None
    model = open_clip.create_model(settings.model, force_patch_dropout=settings.patch_dropout)
    if earlier is not None:
        model.load_state_dict(load_file(checked_weights(earlier)))
    elif settings.text_from is not None:
        _take_text_tower(model, settings.text_from)
    started_from = None if earlier is None else json.loads((earlier / PROVENANCE).read_text())
    tokenizer = open_clip.get_tokenizer(settings.model)
    steps = settings.images // settings.batch_size
    scenes = CaptionedScenes(
        image_size=settings.image_size,
        batch_size=settings.batch_size,
        objects=settings.objects,
        steps=steps,
        seed=job.seed,
        common=settings.common,
        common_share=settings.common_share,
        textures=settings.textures,
    )
    seen = {"images_seen": steps * settings.batch_size, "steps": steps}
    with artifact(job, **seen, started_from=started_from) as workspace:
        step = ContrastiveStep(model, tokenizer)
        pretrain(step, scenes, settings, job, workspace, betas=(0.9, 0.98), eps=1e-6)
        save_file(half_precision(model), workspace.path / WEIGHTS)
        # Measured on the written weights, which are in half precision.
        weights_file = str(workspace.path / WEIGHTS)
        clip = load_clip(settings.model, weights_file, quick_gelu=has_quick_gelu(settings.model))
        vocabularies = {"all": tuple(concept.name for concept in concepts())}
        if settings.common:
            vocabularies["common"] = settings.common
        accuracy = {
            name: clip_accuracy(clip, things, image_size=settings.image_size, scenes=settings.accuracy_scenes)
            for name, things in vocabularies.items()
        }
        write_json(workspace.path / "accuracy.json", accuracy)
