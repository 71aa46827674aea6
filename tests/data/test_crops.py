"""Crops as the released systems cut them, against the same recipes written out step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deop.models.crops import crop_segments, roi_align_segments

SIZE = 8
FILL = torch.tensor([0.48, 0.46, 0.41])


def cubic(distance: float, a: float = -0.75) -> float:
    """Keys' kernel with the slope that torch has."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def bicubic_weights(length: int, size: int) -> np.ndarray:
    """(size, length): four taps around each output pixel's centre, at the edges those of the last pixel."""
    weights = np.zeros((size, length))
    for out in range(size):
        centre = (out + 0.5) * length / size - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[out, min(max(tap, 0), length - 1)] += cubic(centre - tap)
    return weights


def simbaseline_crop(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Box of the mask, last row and column included; filled with the mean; four-tap bicubic; no clamp."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    filled = np.where(mask, image, FILL.numpy()[:, None, None])[:, *box]
    down, across = bicubic_weights(filled.shape[1], SIZE), bicubic_weights(filled.shape[2], SIZE)
    return np.einsum("ih,jw,chw->cij", down, across, filled)


def bilinear(channel: np.ndarray, y: float, x: float) -> float:
    height, width = channel.shape
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    dy, dx = y - top, x - left
    (a, b), (c, d) = channel[top : top + 2, left : left + 2]
    return (1 - dy) * ((1 - dx) * a + dx * b) + dy * ((1 - dx) * c + dx * d)


def zegformer_crop(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """RoIAlign, half-pixel aligned, of the filled image; the box ends at the last row's and column's index.

    A box of no area becomes the whole image. A bin is the mean of as many samples as it has image pixels a side,
    rounded up.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    if (bottom - top) * (right - left) == 0:
        top, bottom, left, right = 0, mask.shape[0], 0, mask.shape[1]
    filled = np.where(mask, image, FILL.numpy()[:, None, None])
    high, wide = (bottom - top) / SIZE, (right - left) / SIZE
    crop = np.empty((3, SIZE, SIZE))
    for c, i, j in np.ndindex(crop.shape):
        samples = [
            bilinear(
                filled[c],
                top - 0.5 + (i + (p + 0.5) / math.ceil(high)) * high,
                left - 0.5 + (j + (q + 0.5) / math.ceil(wide)) * wide,
            )
            for p in range(math.ceil(high))
            for q in range(math.ceil(wide))
        ]
        crop[c, i, j] = sum(samples) / len(samples)
    return crop


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(3, 31, 42, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def masks() -> torch.Tensor:
    """Larger than the crop, smaller than it, at the image's edges, one row, one pixel, everything."""
    masks = torch.zeros(6, 31, 42, dtype=torch.bool)
    masks[0, 2:29, 5:40] = torch.rand(27, 35, generator=torch.Generator().manual_seed(5)) > 0.4
    masks[1, 10:14, 20:25] = True
    masks[1, 10, 20] = False
    masks[2, 25:, 30:] = True
    masks[3, 17, 3:20] = True
    masks[4, 0, 41] = True
    masks[5] = True
    return masks


def test_simbaselines_release_neither_antialiases_nor_clamps(image, masks):
    image = (image > 0.5).float()  # bicubic overshoots at its edges
    crops = crop_segments(image, masks, SIZE, FILL, antialias=False)
    expected = np.stack([simbaseline_crop(image.numpy(), mask) for mask in masks.numpy()])
    np.testing.assert_allclose(crops.numpy(), expected, atol=1e-5)
    assert crops.min() < -0.05 and crops.max() > 1.05


def test_zegformers_release_aligns_a_box_without_its_last_row_and_column(image, masks):
    crops = roi_align_segments(image, masks, SIZE, FILL)
    expected = np.stack([zegformer_crop(image.numpy(), mask) for mask in masks.numpy()])
    np.testing.assert_allclose(crops.numpy(), expected, atol=1e-5)
    assert roi_align_segments(image, masks[:0], SIZE, FILL).shape == (0, 3, SIZE, SIZE)
