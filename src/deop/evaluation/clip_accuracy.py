"""Zero-shot accuracy of a mini CLIP on new objects, on crops of new scenes, and on their regions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deop.data.emoji.artwork import STYLES
from deop.data.emoji.dataset import draw_scene, plan_split
from deop.data.emoji.settings import EmojiScenes
from deop.data.emoji.textures import texture_names
from deop.methods.base import normalise
from deop.models.anchors import mask_pool
from deop.models.clip import DenseCLIP
from deop.models.crops import crop_segment
from deop.models.severance import Severance
from deop.settings.datasets import Vocabulary

_SEED = 0xACC  # of scenes that neither pre-training nor any dataset draws
_BATCH = 64
_ALONE_SIZE = (0.45, 1.0)  # of the image side, as in pre-training
SEVERANCES = {
    "plain": Severance(),
    "last layer": Severance("gps", {-1: 1.0}),
    "last two layers": Severance("gps", {-2: 1.0, -1: 1.0}),
    "last three layers": Severance("gps", {-3: 1.0, -2: 1.0, -1: 1.0}),
}
Scenes = list[tuple[Tensor, Tensor]]


@torch.inference_mode()
def clip_accuracy(
    clip: DenseCLIP, things: tuple[str, ...], *, image_size: int, scene_size: int = 96, scenes: int = 200
) -> dict:
    """Accuracies in [0, 1] by style, with the names of ``things`` and of all textures as classes.

    ``objects``: top-1 and top-5 accuracy on images of one emoji at the size of pre-training. ``crops``: accuracy on
    things in scenes, cropped by their true masks (as in multi-pass systems). ``regions``: accuracy of the mean patch
    feature under each true mask in scenes of ``scene_size`` pixels, by the severed layers, for things and stuff.
    """
    names = [*things, *texture_names()]
    text = clip.encode_text(names, "{}.")
    results = {}
    for style in STYLES:
        alone = _draw(style, things, image_size, scenes, objects=(1, 1), object_size=_ALONE_SIZE)
        fresh = _draw(style, things, scene_size, scenes)
        results[style] = {
            "objects": _objects(clip, text, alone, len(things)),
            "crops": _crops(clip, text, fresh, len(things), image_size),
            "regions": {
                kind: _regions(clip, text, fresh, len(things), severance)
                for kind, severance in SEVERANCES.items()
            },
        }
    return {"vocabulary": len(names), **results}


def _draw(style: str, things: tuple[str, ...], size: int, count: int, **more) -> Scenes:
    """Images (3, S, S) in [0, 1] and label maps (S, S), things first in the label order."""
    settings = EmojiScenes(
        style=style,
        vocabulary=Vocabulary(things=things, stuff=texture_names()),
        train=0,
        val=count,
        image_size=size,
        seed=_SEED,
        **more,
    )
    scenes = [draw_scene(settings, "val", i, *s) for i, s in enumerate(plan_split(settings, "val"))]
    return [
        (torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255, torch.from_numpy(label))
        for image, label in scenes
    ]


def _pooled(clip: DenseCLIP, images: list[Tensor]) -> Tensor:
    """Image embeddings (B, D), L2-normalised."""
    batches = torch.stack(images).split(_BATCH)
    pooled = [clip.visual(normalise(batch, clip.mean, clip.std)).pooled for batch in batches]
    return F.normalize(torch.cat(pooled), dim=-1)


def _objects(clip: DenseCLIP, text: Tensor, scenes: Scenes, things: int) -> dict[str, float]:
    """Top 1 and top 5 accuracy among the things' names."""
    truth = torch.tensor([int(label[label < things][0]) for _, label in scenes])
    ranked = (_pooled(clip, [image for image, _ in scenes]) @ text[:things].T).topk(min(5, things)).indices
    right = ranked == truth[:, None]
    return {"top 1": right[:, 0].float().mean().item(), "top 5": right.any(1).float().mean().item()}


def _crops(clip: DenseCLIP, text: Tensor, scenes: Scenes, things: int, size: int) -> float:
    fill = torch.tensor(clip.mean)
    cut = [
        (crop_segment(image, label == thing, size, fill), int(thing))
        for image, label in scenes
        for thing in label[label < things].unique()
    ]
    found = (_pooled(clip, [crop for crop, _ in cut]) @ text.T).argmax(1)
    return (found == torch.tensor([thing for _, thing in cut])).float().mean().item()


def _regions(
    clip: DenseCLIP, text: Tensor, scenes: Scenes, things: int, severance: Severance
) -> dict[str, float]:
    correct: dict[bool, list[bool]] = {True: [], False: []}
    for image, label in scenes:
        patches = clip.visual(normalise(image[None], clip.mean, clip.std), severance=severance).patches
        features = F.normalize(patches, dim=1)
        classes = label.unique()
        masks = F.adaptive_avg_pool2d((label == classes[:, None, None]).float()[None], features.shape[-2:])
        found = (mask_pool(features, masks)[0] @ text.T).argmax(1)
        for predicted, true in zip(found.tolist(), classes.tolist(), strict=True):
            correct[true < things].append(predicted == true)
    return {
        "things": sum(correct[True]) / len(correct[True]),
        "stuff": sum(correct[False]) / len(correct[False]),
    }
