"""Zero-shot accuracy of a CLIP that answers as it is told: every number is known beforehand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deop.data.emoji.textures import texture_names
from deop.evaluation import clip_accuracy as module
from deop.models.severance import Severance

THINGS = ("dog", "cow", "key", "bus", "cup", "hat")
NAMES = [*THINGS, *texture_names()]
GRASS, SKY = len(THINGS), len(THINGS) + 1
SIZE = 16
# What the CLIP takes each class for, best first; of what is not here it is right.
ANSWERS = {1: [0, 1], 2: [0, 1, 3, 4, 2], 3: [0, 1, 2, 4, 5, 3]}
LONE = [0, 1, 2, 3, 4, 5, 0, 1]  # the thing of each image
SCENES = [(0, 1, GRASS), (4, 5, SKY), (2, 0, GRASS), (4, 3, SKY)]  # two things on a ground


def colours(label: torch.Tensor) -> torch.Tensor:
    """The grey level, of 256, that stands for each class."""
    return 4 * (label + 1)


class Told:
    """Reads classes from grey levels; everything in OpenMoji's style, which is darker by one level, looks like a dog.

    Its patches are the pixels of 2 x 2. Unless the last layer is severed, those of the ground take it for a dog.
    """

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def encode_text(self, names: list[str], template: str) -> torch.Tensor:
        assert names == NAMES and template == "{}."
        return torch.eye(len(names))

    def visual(self, images: torch.Tensor, severance: Severance | None = None):
        assert images.dtype == torch.float32 and images.max() <= 1
        grey = (images[:, 0] * 255).round().long()
        answers = [[self._answer(int(level)) for level in image[::2, ::2].flatten()] for image in grey]
        side = grey.shape[-1] // 2
        severed = severance is not None and 1.0 in severance.alpha.values()
        patches = torch.stack([self._features(row, severed) for row in answers]).transpose(1, 2)
        return SimpleNamespace(
            pooled=torch.stack([self._pooled(row) for row in answers]),
            patches=patches.reshape(len(images), len(NAMES), side, side),
        )

    @staticmethod
    def _answer(level: int) -> list[int]:
        """Classes by rank; none where there is only fill."""
        if level == 0:
            return []
        label = level // 4 - 1 if level % 4 == 0 else 0
        return ANSWERS.get(label, [label])

    @staticmethod
    def _features(answers: list[list[int]], severed: bool) -> torch.Tensor:
        first = [answer[0] if answer and (severed or answer[0] < GRASS) else 0 for answer in answers]
        return F.one_hot(torch.tensor(first), len(NAMES)).float()

    @staticmethod
    def _pooled(answers: list[list[int]]) -> torch.Tensor:
        """The most frequent answer among things, else of all."""
        given = [tuple(answer) for answer in answers if answer]
        given = [answer for answer in given if answer[0] < GRASS] or given
        embedding = torch.full((len(NAMES),), 0.01)
        for rank, label in enumerate(max(set(given), key=given.count)):
            embedding[label] = 1 - 0.1 * rank
        return embedding


def draw(settings, split, index, things, stuff) -> tuple[np.ndarray, np.ndarray]:
    """One thing on grass, or two on the ground of ``SCENES``, by index."""
    assert settings.vocabulary.names == tuple(NAMES)
    if settings.objects == (1, 1):
        label = torch.full((SIZE, SIZE), GRASS)
        label[4:12, 4:12] = LONE[index]
    else:
        first, second, ground = SCENES[index % len(SCENES)]
        label = torch.full((SIZE, SIZE), ground)
        label[2:8, 2:8], label[8:14, 8:14] = first, second
    grey = colours(label) - (1 if settings.style == "openmoji" else 0)
    return grey[..., None].expand(-1, -1, 3).to(torch.uint8).numpy(), label.numpy()


@pytest.fixture
def accuracy(monkeypatch) -> dict:
    monkeypatch.setattr(module, "draw_scene", draw)
    return module.clip_accuracy(Told(), THINGS, image_size=8, scene_size=SIZE, scenes=len(LONE))


def test_objects_are_ranked_among_the_things(accuracy):
    """Dogs, cups and hats are right at once; cows at the second guess, keys at the fifth, buses at the sixth."""
    assert accuracy["vocabulary"] == len(NAMES)
    assert accuracy["twemoji"]["objects"] == pytest.approx({"top 1": 4 / 8, "top 5": 7 / 8})


def test_crops_are_single_things_of_scenes(accuracy):
    """Of the eight things in four scenes, each shown twice, one cow, one key and one bus are not named."""
    assert accuracy["twemoji"]["crops"] == pytest.approx(5 / 8)


def test_regions_are_told_apart_by_what_is_severed(accuracy):
    regions = accuracy["twemoji"]["regions"]
    assert list(regions) == ["plain", "last layer", "last two layers", "last three layers"]
    assert regions["plain"] == pytest.approx({"things": 5 / 8, "stuff": 0.0})
    for name in list(regions)[1:]:
        assert regions[name] == pytest.approx({"things": 5 / 8, "stuff": 1.0})


def test_styles_are_measured_apart(accuracy):
    """In OpenMoji's style all are dogs: two of eight things alone are, and two of eight in the scenes."""
    assert accuracy["openmoji"]["objects"]["top 1"] == pytest.approx(2 / 8)
    assert accuracy["openmoji"]["crops"] == pytest.approx(2 / 8)
