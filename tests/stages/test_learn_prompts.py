"""Offline prompt learning: what CLIP is shown of the segments that the prompt is learned on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from deop.data.card import DatasetCard, LabelledClass
from deop.data.segmentation import Entry, SegmentationDataset, write_card, write_label_map, write_split
from deop.stages.learn_prompts import embed_segments

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RED, GREEN = (240, 10, 20), (0, 200, 40)
SIZE = 12


@pytest.fixture
def dataset(tmp_path: Path) -> SegmentationDataset:
    """One image: a red diamond of class 1 on green of class 0; the diamond's box is rows 2 to 8, columns 3 to 9."""
    label = torch.zeros(16, 14, dtype=torch.long)
    for y in range(16):
        for x in range(14):
            label[y, x] = int(abs(y - 5) + abs(x - 6) <= 3)
    image = torch.tensor([GREEN, RED], dtype=torch.uint8)[label]
    entry = Entry(tmp_path / "0.png", tmp_path / "labels.png", (0, 1))
    Image.fromarray(image.numpy()).save(entry.image)
    write_label_map(entry.label, label.numpy(), 255)
    classes = tuple(LabelledClass(name=name, kind="stuff") for name in ("grass", "kite"))
    write_card(tmp_path, DatasetCard(name="drawn", classes=classes))
    write_split(tmp_path, "train", [entry])
    return SegmentationDataset(tmp_path, "train")


def shown(dataset: SegmentationDataset, fill: str) -> torch.Tensor:
    """The normalised crop (3, SIZE, SIZE) of the diamond that CLIP is given."""
    seen = []

    def visual(images):
        seen.append(images)
        return SimpleNamespace(pooled=torch.ones(len(images), 2))

    clip = SimpleNamespace(mean=MEAN, std=STD, visual=visual)
    embed_segments(clip, dataset, [(0, 1)], SIZE, fill, torch.device("cpu"))
    return seen[0][0]


def test_the_release_fills_after_resizing_and_normalising(dataset):
    """The ground has the mean as its normalised value, a lighter grey, and nothing of it gets into the segment."""
    crop = shown(dataset, "release")
    # the pixels whose centres lie in the diamond, which fills its box of 7 x 7
    places = [abs(int((at + 0.5) * 7 / SIZE) - 3) for at in range(SIZE)]
    inside = torch.tensor([[down + across <= 3 for across in places] for down in places])
    torch.testing.assert_close(crop[:, ~inside], torch.tensor(MEAN)[:, None].expand(3, int((~inside).sum())))
    # Red at its middle; at its edges red and green, since the image is resized before anything hides the green.
    colours = (crop[:, inside] * torch.tensor(STD)[:, None] + torch.tensor(MEAN)[:, None]).double()
    red, green = (torch.tensor(colour, dtype=torch.float64)[:, None] / 255 for colour in (RED, GREEN))
    share = ((colours - green) * (red - green)).sum(0) / ((red - green) ** 2).sum()
    torch.testing.assert_close(colours, green + share * (red - green), atol=0.02, rtol=0)
    assert share.min() < 0.7 and share.max() > 0.99 and not (crop[:, inside] == crop[:, :1, 0]).all(0).any()


def test_by_default_the_ground_has_the_mean_colour(dataset):
    """Which normalisation takes to zero."""
    crop = shown(dataset, "mean")
    torch.testing.assert_close(crop[:, [0, 0, -1, -1], [0, -1, 0, -1]], torch.zeros(3, 4), atol=1e-5, rtol=0)
    assert (shown(dataset, "release")[:, 0, 0] - crop[:, 0, 0]).min() > 0.4
