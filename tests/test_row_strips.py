"""Maps resized strip by strip against PyTorch's resizing of the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deop.models.row_strips import resized_strips

SIZES = [(96, 131), (24, 32), (17, 9), (25, 640), (1, 1)]  # larger, as it is, smaller, of another shape


@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("size", SIZES)
def test_bands_are_the_whole_resized_at_once(size, rows):
    maps = torch.randn(2, 3, 24, 32) * 5
    strips = list(resized_strips(maps, size, rows))
    assert [strip.shape[2] for strip in strips[:-1]] == [min(rows, size[0])] * (len(strips) - 1)
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(torch.cat(strips, dim=2), expected, atol=1e-4, rtol=1e-4)
