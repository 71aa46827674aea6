"""A small dataset in folders, as docs/own-dataset.md describes its park: drawn scenes, their label maps, two lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

BENCH, LAWN, PATH, FOUNTAIN = 1, 2, 5, 7
COLOURS = {
    0: (20, 20, 20),
    BENCH: (120, 70, 30),
    LAWN: (60, 150, 60),
    PATH: (190, 180, 160),
    FOUNTAIN: (80, 120, 220),
}


def draw(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """An image and its label map of ``size`` (height, width): a path across a lawn, a bench, at times a fountain."""
    height, width = size
    ids = np.full(size, LAWN, np.uint8)
    top = int(rng.integers(height // 2, height - 12))
    ids[top : top + 10] = PATH
    for thing in (BENCH, FOUNTAIN):
        row, column = rng.integers(0, height // 2 - 4), rng.integers(0, width - 20)
        if thing == BENCH or rng.random() < 0.5:
            ids[row : row + 16, column : column + 18] = thing
    ids[:2] = 0
    noise = rng.integers(-12, 12, (*size, 3))
    colours = np.zeros((256, 3), int)
    colours[list(COLOURS)] = list(COLOURS.values())
    image = np.clip(colours[ids] + noise, 0, 255).astype(np.uint8)
    ids[-1] = 255
    return Image.fromarray(image), Image.fromarray(ids)


def write_park(top: Path, train: int = 6, val: int = 4) -> None:
    """Writes the park below ``top``; images are of two sizes."""
    rng = np.random.default_rng(0)
    names = [f"{2023 + index % 2}/img_{index:04d}" for index in range(train + val)]
    for index, name in enumerate(names):
        image, label = draw(rng, (64, 80) if index % 3 else (72, 64))
        for path, picture in ((f"photos/{name}.jpg", image), (f"masks/{name}_mask.png", label)):
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            picture.save(top / path)
    (top / "training.txt").write_text("\n".join(names[:train]) + "\n")
    (top / "validation.txt").write_text("\n".join(names[train:]) + "\n")
