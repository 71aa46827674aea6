"""Images resized for CLIP: sides, aspect ratio, and pixels as Pillow computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from deop.data.transforms import resize_short_side


@pytest.mark.parametrize("short_side", [24, 64, 97])
@pytest.mark.parametrize("size", [(64, 90), (91, 40), (51, 51), (33, 200)])
def test_pixels_are_pillows(size, short_side):
    """Whose bilinear filter is widened where an image shrinks, in floating point too."""
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    resized = resize_short_side(images, short_side)
    height, width = resized.shape[-2:]
    for image, got in zip(images.flatten(0, 1), resized.flatten(0, 1), strict=True):
        expected = Image.fromarray(image.numpy()).resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(got.numpy(), np.asarray(expected), atol=2e-4)


def test_the_shorter_side_is_exact_and_the_longer_one_nearest():
    """At every size that images of the datasets come in, without a pixel of the whole image computed."""
    for short_side in (96, 512, 518, 640):
        for height in range(short_side // 2, 3 * short_side, 61):
            for width in range(short_side // 2, 3 * short_side, 47):
                images = torch.empty(1, 1, height, width, device="meta")
                got = resize_short_side(images, short_side).shape[-2:]
                exact = [side * short_side / min(height, width) for side in (height, width)]
                assert min(got) == short_side
                assert all(abs(side - true) <= 0.5 + 1e-6 for side, true in zip(got, exact, strict=True))


def test_an_image_of_that_size_is_left_alone():
    images = torch.rand(1, 3, 40, 30)
    assert torch.equal(resize_short_side(images, 30), images)
