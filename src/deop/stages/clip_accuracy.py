"""How well a mini CLIP has learned: zero-shot accuracy on fresh objects and on regions of fresh scenes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deop.anchors import mask_pool
from deop.clip import DenseCLIP
from deop.data.captioned import CaptionedScenes
from deop.data.emoji import STYLES, concepts
from deop.data.emoji_scenes import draw_scene, plan_split
from deop.data.textures import texture_names
from deop.methods.base import normalise
from deop.settings import EmojiScenes, Vocabulary
from deop.severance import Severance

_SEED = 0xACC  # of scenes that neither pre-training nor any dataset draws
SEVERANCES = {
    "plain": Severance(),
    "last layer severed": Severance("gps", {-1: 1.0}),
    "last two layers severed": Severance("gps", {-2: 1.0, -1: 1.0}),
}


@torch.inference_mode()
def clip_accuracy(clip: DenseCLIP, *, image_size: int, scene_size: int = 96, scenes: int = 200) -> dict:
    """Top-1 accuracies among the names of all concepts and textures, as fractions in [0, 1].

    ``objects``: single emoji at the size of pre-training, by style. ``regions``: true regions of labelled scenes
    of ``scene_size`` pixels, mean patch feature under the mask, by style, severance, and thing or stuff.
    """
    names = [*(concept.name for concept in concepts()), *texture_names()]
    text = clip.encode_text(names, "{}.")
    return {
        "vocabulary": len(names),
        "objects": _objects(clip, text, names, image_size, scenes),
        "regions": {style: _regions(clip, text, style, scene_size, scenes) for style in STYLES},
    }


def _objects(clip: DenseCLIP, text: Tensor, names: list[str], image_size: int, count: int) -> float:
    batch = CaptionedScenes(
        image_size=image_size, batch_size=count, objects=(1, 1), steps=1, seed=_SEED, textures=2
    )
    images, shown = batch.scenes(0)
    alone = [index for index, things in enumerate(shown) if things]
    pooled = F.normalize(clip.visual(normalise(images[alone], clip.mean, clip.std)).pooled, dim=-1)
    truth = torch.tensor([names.index(shown[index][0]) for index in alone])
    return ((pooled @ text.T).argmax(1) == truth).float().mean().item()


def _regions(clip: DenseCLIP, text: Tensor, style: str, size: int, count: int) -> dict[str, dict[str, float]]:
    things = tuple(concept.name for concept in concepts())
    settings = EmojiScenes(
        style=style,
        vocabulary=Vocabulary(things=things, stuff=texture_names()),
        train=0,
        val=count,
        image_size=size,
        seed=_SEED,
    )
    scenes = [draw_scene(settings, "val", i, *s) for i, s in enumerate(plan_split(settings, "val"))]
    results = {}
    for kind, severance in SEVERANCES.items():
        correct: dict[bool, list[bool]] = {True: [], False: []}
        for image, label in scenes:
            pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
            patches = clip.visual(normalise(pixels, clip.mean, clip.std), severance=severance).patches
            features = F.normalize(patches, dim=1)
            truth = torch.from_numpy(label)
            classes = truth.unique()
            masks = (truth == classes[:, None, None]).float()[None]
            masks = F.adaptive_avg_pool2d(masks, features.shape[-2:])
            found = (mask_pool(features, masks)[0] @ text.T).argmax(1)
            for predicted, true in zip(found.tolist(), classes.tolist(), strict=True):
                correct[true < len(things)].append(predicted == true)
        results[kind] = {
            "things": sum(correct[True]) / len(correct[True]),
            "stuff": sum(correct[False]) / len(correct[False]),
        }
    return results
