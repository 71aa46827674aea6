"""Stage ``pretrain_backbone``: the proposal network's backbone, trained to name single emoji (mini profile only).

It replaces ImageNet: the paper's proposal network starts from a backbone that was trained to classify images of single
objects (section 5).
"""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from deop.data.emoji.artwork import concepts
from deop.data.emoji.captioned import CaptionedScenes
from deop.jobs.artifacts import WEIGHTS, artifact
from deop.jobs.job import Job
from deop.methods.base import IMAGENET_MEAN, IMAGENET_STD, normalise
from deop.settings.pretraining import PretrainBackbone
from deop.training.pretrain import half_precision, pretrain
from deop.utils.files import write_json
from deop.utils.progress import progress_bar

_SEED = 0xACC  # of images that training does not draw


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
    """Trains the backbone of ``job.settings["pretrain_backbone"]`` and writes its weights (fp16), no classifier."""
    settings = PretrainBackbone.model_validate(job.settings["pretrain_backbone"])
    torch.manual_seed(job.seed)
    classifier = timm.create_model(
        settings.backbone, num_classes=len(concepts()), **settings.backbone_args
    ).to(memory_format=torch.channels_last)
    steps = settings.images // settings.batch_size
    batches = NamedObjects(settings, steps=steps, seed=job.seed)
    with artifact(job, steps=steps, images_seen=steps * settings.batch_size) as workspace:
        pretrain(ClassificationStep(classifier), batches, settings, job, workspace)
        weights = half_precision(classifier)
        backbone = {name: value for name, value in weights.items() if not name.startswith("fc.")}
        save_file(backbone, workspace.path / WEIGHTS)
        accuracy = _accuracy(classifier.eval().cpu(), settings)
        write_json(workspace.path / "accuracy.json", {"classes": len(concepts()), "top 1": accuracy})


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
