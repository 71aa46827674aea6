"""Composition of EmojiScenes pictures: emoji pasted on stuff textures, with exact masks.

One batched compositor serves the labelled datasets (:mod:`deop.data.emoji.dataset`) and the stream of scene and
caption pairs that pre-trains the mini CLIP (:mod:`deop.data.emoji.captioned`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deop.data.emoji.artwork import draw

# An emoji reduced more than about twofold by bilinear sampling would alias: each is kept at two sizes.
SPRITE_SIZES = (64, 32)


@functools.cache
def sprite(name: str, style: str, size: int) -> Tensor:
    """(4, size, size) float in [0, 1]: RGB premultiplied by alpha, and alpha."""
    rgba = torch.from_numpy(draw(name, style, size).copy()).permute(2, 0, 1).float() / 255
    rgba[:3] *= rgba[3:]
    return rgba


@dataclass(frozen=True)
class Placement:
    """Where and how one emoji is pasted. Lengths are fractions of the image side, ``angle`` is in radians."""

    centre: tuple[float, float]
    size: float
    angle: float
    flip: bool
    brightness: float


def random_placement(rng: np.random.Generator, centre: tuple[float, float], size: float) -> Placement:
    """Rotation up to 30 degrees, half of all flipped, brightness within 20 %."""
    angle = rng.uniform(-np.pi / 6, np.pi / 6)
    return Placement(centre, size, angle, bool(rng.random() < 0.5), rng.uniform(0.8, 1.2))


def spread_centres(
    rng: np.random.Generator, sizes: list[float], tries: int = 12
) -> list[tuple[float, float]]:
    """A centre (y, x) for every object: of some random places, the one that overlaps the earlier ones least."""
    centres: list[tuple[float, float]] = []
    for index, size in enumerate(sizes):
        # Centres keep most of the object inside the image.
        margin = 0.4 * size
        candidates = rng.uniform(margin, 1 - margin, (tries, 2))
        if index:
            placed = np.array(centres)
            gap = np.hypot(*(candidates[:, None] - placed[None]).transpose(2, 0, 1))
            clearance = (gap - 0.45 * (np.array(sizes[:index]) + size)).min(1)
            # Capped, so that some objects still touch or overlap: scenes should not look like grids.
            best = candidates[np.minimum(clearance, rng.uniform(-0.15, 0.05)).argmax()]
        else:
            best = candidates[0]
        centres.append((float(best[0]), float(best[1])))
    return centres


def _affine(placement: Placement) -> list[list[float]]:
    """The 2 x 3 matrix from output to sprite coordinates (both in [-1, 1]) for ``affine_grid``."""
    cos, sin = np.cos(placement.angle) / placement.size, np.sin(placement.angle) / placement.size
    mirror = -1.0 if placement.flip else 1.0
    y, x = (2 * c - 1 for c in placement.centre)
    return [
        [mirror * cos, mirror * sin, -mirror * (cos * x + sin * y)],
        [-sin, cos, sin * x - cos * y],
    ]


def compose(
    backgrounds: Tensor, objects: list[list[tuple[str, Placement]]], style: list[str], detail: int = 1
) -> tuple[Tensor, Tensor]:
    """Pastes emoji on backgrounds, first object lowest.

    Args:
        backgrounds: (B, 3, S, S) float in [0, 1].
        objects: for each of the B images its emoji names and placements, bottom to top.
        style: the artist of each image.
        detail: how many times finer than :data:`SPRITE_SIZES` emoji are drawn.

    Returns:
        images (B, 3, S, S) float in [0, 1] and owner (B, S, S) int64: the index in ``objects[b]`` of the emoji
        that covers a pixel by more than half, -1 where the background shows.
    """
    batch, _, side, _ = backgrounds.shape
    images = backgrounds.clone()
    owner = torch.full((batch, side, side), -1, dtype=torch.int64)
    for layer in range(max((len(entry) for entry in objects), default=0)):
        large, small = (size * detail for size in SPRITE_SIZES)
        for sprite_size in (large, small):
            chosen = [
                index
                for index, entry in enumerate(objects)
                if layer < len(entry)
                and (entry[layer][1].size * side < 0.6 * large) == (sprite_size == small)
            ]
            if not chosen:
                continue
            names = [objects[index][layer][0] for index in chosen]
            placements = [objects[index][layer][1] for index in chosen]
            sources = torch.stack(
                [sprite(name, style[index], sprite_size) for name, index in zip(names, chosen, strict=True)]
            )
            matrix = torch.tensor([_affine(placement) for placement in placements], dtype=torch.float32)
            grid = F.affine_grid(matrix, [len(chosen), 4, side, side], align_corners=False)
            pasted = F.grid_sample(sources, grid, mode="bilinear", align_corners=False)
            brightness = torch.tensor([placement.brightness for placement in placements]).view(-1, 1, 1, 1)
            alpha = pasted[:, 3:]
            colour = torch.minimum(pasted[:, :3] * brightness, alpha)
            images[chosen] = images[chosen] * (1 - alpha) + colour
            owner[chosen] = torch.where(alpha[:, 0] > 0.5, layer, owner[chosen])
    return images, owner


def split_mask(rng: np.random.Generator, side: int) -> Tensor:
    """(S, S) bool: the upper part of an image cut by a sloping, waving line at a third to two thirds of its height."""
    x = np.linspace(0, 1, side, dtype=np.float32)
    slope, height = rng.uniform(-0.3, 0.3), rng.uniform(0.33, 0.67)
    line = height + slope * (x - 0.5) + 0.03 * np.sin(2 * np.pi * (rng.uniform(1, 3) * x + rng.random()))
    return torch.from_numpy(np.linspace(0, 1, side, dtype=np.float32)[:, None] < line[None])
