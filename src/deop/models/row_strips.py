"""Upsampling in row strips to bound memory: maps at image size, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP_BYTES = 64 * 2**20
"""Memory for everything that is computed of one strip."""


def rows_within_budget(values_a_row: int, budget: int | None = None) -> int:
    """How many rows a strip has if so many 32-bit values are held per row; at least one.

    ``budget`` is in bytes, :data:`STRIP_BYTES` if None.
    """
    return max(1, (budget or STRIP_BYTES) // (4 * values_a_row))


def resized_strips(
    maps: Tensor, size: tuple[int, int], rows: int, of_rows: Callable[[Tensor], Tensor] | None = None
) -> Iterator[Tensor]:
    """Maps (B, N, h, w) resized to ``size`` (H, W), as strips (B, N, <= rows, W) from top to bottom.

    Together the strips are ``F.interpolate(maps, size, mode="bilinear", align_corners=False)``. Bilinear weights are
    those of rows times those of columns, so the rows of a strip are interpolated first and its columns after.

    Args:
        rows: of a strip; the last one may have fewer.
        of_rows: a function of each pixel of the maps alone, whose values are resized instead: it is given the rows
            (B, N, r, w) that a strip needs, and returns (B, any, r, w).
    """
    height, width = size
    given = maps.shape[-2]
    # Pixel centres; above the first and below the last row of ``maps``, those rows themselves.
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
