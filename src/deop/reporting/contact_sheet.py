"""A picture of a dataset: some of its images beside their label maps, with the classes named."""

from __future__ import annotations

import colorsys
from itertools import islice

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deop.data.segmentation import IGNORE, SegmentationDataset

_LINE, _MARGIN = 13, 6  # pixels
_TILE = (96, 192)  # side of a tile in pixels, at least and at most


def class_colours(count: int) -> np.ndarray:
    """RGB colours (count, 3) uint8; classes that are neighbours in label order differ strongly in hue."""
    golden = 0.61803398875
    return np.array(
        [
            [round(255 * c) for c in colorsys.hsv_to_rgb(i * golden % 1, 0.55 + 0.4 * (i % 2), 0.95)]
            for i in range(count)
        ],
        np.uint8,
    ).reshape(-1, 3)


def paint_labels(image: np.ndarray, label: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Labels (H, W) painted over an image (H, W, 3) uint8; pixels without a class keep a dimmed image."""
    painted = np.where(label[..., None] == IGNORE, image // 3, colours[label] * 0.65 + image * 0.35)
    return painted.astype(np.uint8)


def contact_sheet(dataset: SegmentationDataset, *, images: int, columns: int = 6) -> Image.Image:
    """The first images of a dataset, each with its labels painted over and its classes listed (unseen in red).

    Images are scaled to fit a square tile, whose side is the first image's longer side, within bounds.
    """
    font = ImageFont.load_default(11)
    colours = class_colours(len(dataset.card.classes))
    unseen = set(dataset.card.unseen)
    count = min(images, len(dataset))
    side = max(dataset[0].image.shape[1:]) if count else 0
    tile = min(max(side, _TILE[0]), _TILE[1])
    most = max((len(entry.classes) for entry in islice(dataset.entries, count)), default=0)
    cell = (2 * tile + _MARGIN, tile + most * _LINE + _MARGIN)
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * cell[0] + _MARGIN, rows * cell[1] + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for index in range(count):
        sample = dataset[index]
        image = sample.image.permute(1, 2, 0).numpy()
        painted = paint_labels(image, sample.label.numpy(), colours)
        left, top = _MARGIN + index % columns * cell[0], _MARGIN + index // columns * cell[1]
        for offset, picture in enumerate((image, painted)):
            shrink = tile / max(picture.shape[:2])
            size = tuple(max(1, round(length * shrink)) for length in picture.shape[1::-1])
            small = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
            sheet.paste(small, (left + offset * tile, top + tile - size[1]))
        for line, label in enumerate(dataset.entries[index].classes):
            y = top + tile + line * _LINE
            pen.rectangle([left, y + 3, left + 8, y + 11], fill=tuple(colours[label]))
            pen.text(
                (left + 12, y),
                dataset.card.names[label],
                "crimson" if label in unseen else "black",
                font=font,
            )
    return sheet
