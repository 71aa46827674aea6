"""Training augmentation: image and label map stay together, and what is drawn has the distributions of the settings."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from deop.data.segmentation import HIDDEN, IGNORE, Sample
from deop.data.transforms import Augment
from deop.settings.schedule import Augmentation

HEIGHT, WIDTH, BLOCK, LEVELS = 48, 60, 6, 4
DRAWS = 200


def coded() -> Sample:
    """An image whose red and green are the place of each pixel, ``LEVELS`` a pixel, and a label map of blocks.

    Some blocks have no class, or a hidden one.
    """
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    image = torch.stack([LEVELS * x, LEVELS * y, torch.full_like(x, 200)]).to(torch.uint8)
    return Sample(image, block_label(y + 0.5, x + 0.5))


def block_label(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The label at a place of the image, in pixels from its upper left corner."""
    down, across = (y / BLOCK).floor().long(), (x / BLOCK).floor().long()
    label = down * (WIDTH // BLOCK) + across
    return torch.where(label % 7 == 3, IGNORE, torch.where(label % 7 == 5, HIDDEN, label))


class Place(NamedTuple):
    """Where in the image each pixel of an output comes from (y, x), and which pixels are of the image at all."""

    y: torch.Tensor
    x: torch.Tensor
    inside: torch.Tensor


def place(image: torch.Tensor) -> Place:
    red, green, blue = image.float()
    return Place(green / LEVELS + 0.5, red / LEVELS + 0.5, blue == 200)


class Drawn(NamedTuple):
    """What one augmentation did: size of the resized image (pixels), window's corner in it, and the flip."""

    height: float
    width: float
    top: float
    left: float
    flipped: bool


def measured(image: torch.Tensor) -> Drawn:
    """Read off the places of the pixels, where they are exact: resizing blurs the image's edges."""
    at = place(image)
    good = at.inside & (at.y > 3) & (at.y < HEIGHT - 3) & (at.x > 3) & (at.x < WIDTH - 3)
    rows, columns = good.any(1).nonzero()[:, 0], good.any(0).nonzero()[:, 0]
    y = ((at.y * good).sum(1) / good.sum(1))[rows]
    x = ((at.x * good).sum(0) / good.sum(0))[columns]
    down, top = np.polyfit(rows + 0.5, y, 1)
    across, left = np.polyfit(columns + 0.5, x, 1)
    flipped = across < 0
    if flipped:
        left += across * image.shape[-1]
    return Drawn(HEIGHT / down, WIDTH / abs(across), top / down, left / abs(across), bool(flipped))


def uniform(values: list[float], low: float, high: float) -> bool:
    """Whether values may be drawn evenly from [low, high]: Kolmogorov and Smirnov's test at 0.1 %."""
    ordered = (np.sort(values) - low) / (high - low)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return max(np.abs(ordered - steps[1:]).max(), np.abs(ordered - steps[:-1]).max()) < 1.95 / math.sqrt(
        len(ordered)
    )


@pytest.mark.parametrize("crop", [24, 40, 48])
def test_every_pixel_keeps_the_label_of_its_place(crop):
    """To a quarter of a pixel of the image, whatever is drawn; padding has no class and the mean colour."""
    sample, augment = coded(), Augment(Augmentation(crop=crop, scale=(0.5, 1.5), colour_jitter=0.0))
    kept, classes = 0, set()
    for _ in range(60):
        image, label = augment(sample)
        assert image.shape == (3, crop, crop) and label.shape == (crop, crop)
        assert image.dtype == torch.uint8 and label.dtype == torch.int64
        at = place(image)
        off = [(value % BLOCK - BLOCK / 2).abs() for value in (at.y, at.x)]
        sure = at.inside & (torch.maximum(*off) < BLOCK / 2 - 0.25)
        assert torch.equal(label[sure], block_label(at.y, at.x)[sure])
        assert (image[:, ~at.inside] == 127).all() and (label[~at.inside] == IGNORE).all()
        kept += int(sure.sum())
        classes |= set(label.unique().tolist())
    assert kept > 0.5 * crop * crop * 60
    assert classes == set(sample.label.unique().tolist())  # with IGNORE and HIDDEN


@pytest.mark.parametrize("scale", [(0.5, 1.5), (1.0, 2.0)])
def test_scales_windows_and_flips_are_drawn_evenly(scale):
    crop = 32
    augment = Augment(Augmentation(crop=crop, scale=scale, flip=0.25, colour_jitter=0.0))
    drawn = [measured(augment(coded()).image) for _ in range(DRAWS)]
    sizes = [one.height for one in drawn]
    low, high = (factor * crop for factor in scale)
    assert low - 0.3 < min(sizes) and max(sizes) < high + 0.3
    assert uniform(sizes, low - 0.5, high + 0.5)
    # one factor for both sides, to the nearest pixel
    off = [one.width - one.height * WIDTH / HEIGHT for one in drawn]
    assert max(map(abs, off)) < 1 and abs(np.mean(off)) < 0.15
    larger = [one for one in drawn if one.height > crop + 4]
    assert all(-0.3 < one.top < one.height - crop + 0.3 for one in larger)
    assert all(-0.3 < one.left < one.width - crop + 0.3 for one in larger)
    assert uniform([(one.top + 0.5) / (one.height - crop + 1) for one in larger], 0, 1)
    assert uniform([(one.left + 0.5) / (one.width - crop + 1) for one in larger], 0, 1)
    # four standard deviations of a binomial distribution
    flips = sum(one.flipped for one in drawn)
    assert abs(flips - 0.25 * DRAWS) < 4 * math.sqrt(DRAWS * 0.25 * 0.75)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flips_can_be_had_always_and_never(flip):
    augment = Augment(Augmentation(crop=32, flip=flip, colour_jitter=0.0))
    assert {measured(augment(coded()).image).flipped for _ in range(30)} == {bool(flip)}


def test_a_small_image_is_whole_and_surrounded_by_padding():
    """Anywhere in the crop, every pixel of it once."""
    augment = Augment(Augmentation(crop=90, scale=(HEIGHT / 90, HEIGHT / 90), flip=0.0, colour_jitter=0.0))
    sample, corners = coded(), set()
    for _ in range(40):
        image, label = augment(sample)
        inside = place(image).inside
        top, left = (int(inside.any(axis).nonzero()[0]) for axis in (1, 0))
        window = slice(top, top + HEIGHT), slice(left, left + WIDTH)
        assert int(inside.sum()) == HEIGHT * WIDTH
        assert torch.equal(image[:, *window], sample.image) and torch.equal(label[window], sample.label)
        corners.add((top, left))
    assert len(corners) > 20


def test_colour_jitter_changes_its_share_of_the_images_and_no_label():
    sample = Sample(torch.randint(30, 220, (3, 16, 16), dtype=torch.uint8), torch.randint(0, 3, (16, 16)))
    for share in (0.0, 0.3, 1.0):
        augment = Augment(Augmentation(crop=16, scale=(1.0, 1.0), flip=0.0, colour_jitter=share))
        outputs = [augment(sample) for _ in range(DRAWS)]
        changed = sum(not torch.equal(image, sample.image) for image, _ in outputs) / DRAWS
        # Each of its five parts is drawn at one half, so that one jitter in 32 changes nothing.
        assert changed == pytest.approx(share * 31 / 32, abs=4 * math.sqrt(0.25 / DRAWS) if share else 0)
        assert all(torch.equal(label, sample.label) for _, label in outputs)
