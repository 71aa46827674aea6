"""Upsampling in row strips, to bound memory: maps at image size that are too large to be held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP_BYTES = 64 * 2**20
"""Memory in bytes for everything that is computed for one strip."""


def rows_within_budget(values_a_row: int, budget: int | None = None) -> int:
    """The number of rows in a strip, if each row takes ``values_a_row`` 32-bit values; at least one.

    ``budget`` is in bytes, :data:`STRIP_BYTES` if None.
    """
    return max(1, (budget or STRIP_BYTES) // (4 * values_a_row))


def resized_strips(
    maps: Tensor, size: tuple[int, int], rows: int, of_rows: Callable[[Tensor], Tensor] | None = None
) -> Iterator[Tensor]:
    """Maps (B, N, h, w) resized to ``size`` (H, W), as strips (B, N, <= rows, W) from top to bottom.

    Concatenated, the strips equal ``F.interpolate(maps, size, mode="bilinear", align_corners=False)`` up to rounding.
    Bilinear weights are those of rows times those of columns, so the rows of a strip are interpolated first and its
    columns after.

    Args:
        maps: (B, N, h, w).
        size: (H, W) in pixels.
        rows: rows of a strip; the last strip may have fewer.
        of_rows: computes what is resized in place of ``maps``. It is given the rows (B, N, r, w) that a strip needs and
            returns (B, any, r, w), each pixel from the maps at that pixel alone.
    """
    height, width = size
    given = maps.shape[-2]
    # Pixel centres. Above the first row of ``maps`` and below the last, those rows are repeated.
    centres = (torch.arange(height, device=maps.device) + 0.5) * (given / height) - 0.5
    centres = centres.clamp(0, given - 1)
    above = centres.long()
    below = (above + 1).clamp(max=given - 1)
    weights = (centres - above).to(maps.dtype)[:, None]
    for strip in torch.arange(height, device=maps.device).split(rows):
        upper, lower = above[strip], below[strip]
        needed = maps
        if of_rows is not None:
            first, last = int(upper[0]), int(lower[-1])
            needed = of_rows(maps[:, :, first : last + 1])
            upper, lower = upper - first, lower - first
        resized = needed[:, :, upper].lerp(needed[:, :, lower], weights[strip])
        yield F.interpolate(resized, (len(strip), width), mode="bilinear", align_corners=False)
