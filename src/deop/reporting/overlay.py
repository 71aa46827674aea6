"""Label colours over an image, with a legend."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageDraw

from deop.reporting.contact_sheet import paint_labels
from deop.reporting.legend_font import legend_font

_TEXT = (10, 40)  # pixels, at least and at most
_STRIP = 256  # rows painted at a time, because painting takes fifty times the memory of the labels
_LONGEST = 2048
"""Pixels of the longer side of a picture; larger ones are scaled down, so that the legend can be read beside them."""
_DISTINCT = 96
"""Colours that are chosen to differ; of more classes, some share one."""


def overlay(image: np.ndarray, label: np.ndarray, names: list[str]) -> Image.Image:
    """Label colours over an image, with a legend on the right: the classes that occur, largest first.

    The picture has the image's height, or more where the legend needs it. Its longer side has 2048 pixels at most,
    without the legend.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) indices into ``names``.
    """
    pixels = pixels_of(label, len(names))
    shown = [index for index in np.argsort(-pixels, kind="stable") if pixels[index]]
    image, label = _within(image, label)
    height, width = label.shape
    colours = legend_colours(len(names))
    painted = np.concatenate(
        [
            paint_labels(image[top : top + _STRIP], label[top : top + _STRIP], colours)
            for top in range(0, height, _STRIP)
        ]
    )
    text = min(max(min(height, width) // 24, _TEXT[0]), _TEXT[1])
    if len(image) < _TEXT[1]:  # a strip: its legend is taller than it in any case
        text = max(text, 14)
    fonts, gap = {index: legend_font(text, names[index]) for index in shown}, text // 2
    longest = max(font.getlength(names[index]) for index, font in fonts.items())
    size = (width + round(longest) + text + 3 * gap, max(height, len(shown) * (text + gap) + gap))
    picture = Image.new("RGB", size, "white")
    picture.paste(Image.fromarray(painted), (0, 0))
    pen = ImageDraw.Draw(picture)
    for line, index in enumerate(shown):
        left, top = width + gap, gap + line * (text + gap)
        pen.rectangle([left, top, left + text, top + text], fill=tuple(map(int, colours[index])))
        pen.text((left + text + gap, top + text // 2), names[index], "black", font=fonts[index], anchor="lm")
    return picture


def pixels_of(label: np.ndarray, count: int) -> np.ndarray:
    """How many pixels of a label map (H, W) each of ``count`` classes has; in strips, as counting widens labels."""
    strips = range(0, len(label), _STRIP)
    return sum(np.bincount(label[top : top + _STRIP].ravel(), minlength=count) for top in strips)


def _within(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image and its labels, scaled down to the size of the picture if they are larger."""
    height, width = label.shape
    scale = _LONGEST / max(height, width)
    if scale >= 1:
        return image, label
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, label.shape, strict=True)
    )
    small = Image.fromarray(image).resize(size[::-1], Image.Resampling.BOX)
    return np.asarray(small), label[rows[:, None], columns]


def legend_colours(count: int) -> np.ndarray:
    """RGB colours (count, 3) uint8 that differ, the first ones most; a class has the same in any picture."""
    chosen = _distinct_colours()
    return chosen[np.arange(count) % len(chosen)]


@functools.cache
def _distinct_colours() -> np.ndarray:
    """Each colour is, of a grid of colours that are neither pale nor dark, the one farthest from those before it.

    Distances are those of CIELAB.
    """
    steps = np.linspace(0, 255, 12).round()
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = _cielab(grid)
    usable = (lab[:, 0] > 30) & (lab[:, 0] < 88) & (np.hypot(lab[:, 1], lab[:, 2]) > 25)
    grid, lab = grid[usable], lab[usable]
    chosen = [int(np.abs(grid - (230, 30, 30)).sum(1).argmin())]  # red first
    distance = np.full(len(grid), np.inf)
    while len(chosen) < _DISTINCT:
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return grid[chosen].astype(np.uint8)


def _cielab(rgb: np.ndarray) -> np.ndarray:
    """sRGB colours (K, 3) in [0, 255] in CIELAB (IEC 61966-2-1, white D65)."""
    linear = np.where(rgb / 255 <= 0.04045, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / (0.9505, 1.0, 1.089)
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack(
        [116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], 1
    )
