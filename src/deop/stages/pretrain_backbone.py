"""Stage ``pretrain_backbone``: trains the proposal network's backbone to classify single emoji (mini profile only).

It stands in for ImageNet: the paper's proposal network starts from a backbone that learned to classify images of one
object each (details in section 5), which the masks of the datasets cannot teach.
"""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deop.data.emoji.artwork import concepts
from deop.data.emoji.captioned import CaptionedScenes
from deop.jobs.job import Job
from deop.methods.base import IMAGENET_MEAN, IMAGENET_STD, normalise
from deop.settings.pretraining import PretrainBackbone
from deop.training.pretraining import pretrain
from deop.utils.progress import progress_bar

_SEED = 0xACC  # of the images for the accuracy, which training does not draw


class NamedObjects(torch.utils.data.Dataset):
    """Batches by step number of fresh images of one emoji each: ``image`` (B, 3, S, S) in [0, 1] and ``label`` (B,)."""

    def __init__(self, settings: PretrainBackbone, *, steps: int, seed: int) -> None:
        self.scenes = CaptionedScenes(
            image_size=settings.image_size,
            batch_size=settings.batch_size,
            objects=(1, 1),
            steps=steps,
            seed=seed,
            textures=settings.textures,
        )
        self.index = {concept.name: position for position, concept in enumerate(concepts())}

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        images, shown = self.scenes.scenes(step)
        named = [position for position, names in enumerate(shown) if names]  # the others are textures alone
        labels = torch.tensor([self.index[shown[position][0]] for position in named])
        return {"image": images[named], "label": labels}


class ClassificationStep(nn.Module):
    """A classifier and its cross-entropy on a batch of :class:`NamedObjects`."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.classifier(normalise(batch["image"], IMAGENET_MEAN, IMAGENET_STD))
        return {"cross_entropy": F.cross_entropy(logits.float(), batch["label"])}


def run(job: Job) -> None:
    """Trains the backbone of ``job.settings["pretrain_backbone"]`` and writes its weights (fp16), but no classifier."""
    settings = PretrainBackbone.model_validate(job.settings["pretrain_backbone"])
    torch.manual_seed(job.seed)
    classifier = timm.create_model(
        settings.backbone, num_classes=len(concepts()), **settings.backbone_args
    ).to(memory_format=torch.channels_last)
    pretrain(
        ClassificationStep(classifier),
        NamedObjects(settings, steps=settings.images // settings.batch_size, seed=job.seed),
        settings,
        job,
        network=classifier,
        accuracy=lambda _: {
            "classes": len(concepts()),
            "top 1": _accuracy(classifier.eval().cpu(), settings),
        },
        without=("fc.",),
    )


@torch.inference_mode()
def _accuracy(classifier: nn.Module, settings: PretrainBackbone, batches: int = 8) -> float:
    """Top-1 accuracy on fresh images."""
    fresh = NamedObjects(settings, steps=batches, seed=_SEED)
    right = []
    for step in progress_bar(range(batches), desc="accuracy"):
        batch = fresh[step]
        logits = classifier(normalise(batch["image"], IMAGENET_MEAN, IMAGENET_STD))
        right.append(logits.argmax(1) == batch["label"])
    return torch.cat(right).float().mean().item()
