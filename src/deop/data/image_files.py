"""Users' own images: decoded from any common format, and batched by size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


class LoadedImage(NamedTuple):
    """The image at an index of a list, (3, H, W) uint8 RGB; or None and the reason why it cannot be read."""

    index: int
    image: Tensor | None
    problem: str


def load_image(index: int, path: Path) -> LoadedImage:
    """The image in a file, as :func:`read_image` reads it; an unreadable file raises no error."""
    try:
        return LoadedImage(index, read_image(path), "")
    except Exception as error:  # of a damaged file: OSError, SyntaxError, ValueError, struct.error, ...
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return LoadedImage(index, None, reason or type(error).__name__)


def read_image(source: Path | IO[bytes] | Image.Image) -> Tensor:
    """Reads an image (3, H, W) uint8 RGB, rotated according to its EXIF data.

    Greyscale, palette and CMYK images become RGB, 16-bit greyscale keeps its higher 8 bits, floating point numbers in
    [0, 1] become 8 bits, and alpha is ignored: transparent pixels keep the colour stored in the file. An animation
    gives its first frame.

    Raises:
        OSError, or another error of PIL: a missing or damaged file.
    """
    image = source.copy() if isinstance(source, Image.Image) else Image.open(source)
    with image:
        ImageOps.exif_transpose(image, in_place=True)
        return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB, as :func:`read_image` describes.

    Raises:
        ValueError: integers of more than 16 bits, or floating point numbers outside [0, 1].
    """
    if image.mode.startswith("I"):  # PIL would cut values off at 255
        values = np.asarray(image)
        if values.size and not 0 <= values.min() <= values.max() < 2**16:
            raise ValueError(f"values from {values.min()} to {values.max()}; valid: 8 or 16 bits")
        of_16_bits = image.mode != "I" or values.max(initial=0) > 255
        image = Image.fromarray((values >> 8 if of_16_bits else values).astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image)
        if values.size and not 0 <= values.min() <= values.max() <= 1:
            raise ValueError(
                f"values from {values.min():g} to {values.max():g}; valid: floating point in [0, 1]"
            )
        image = Image.fromarray((255 * values).round().astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns when converting directly to RGB
    return image.convert("RGB")


def batches_of_one_size(images: Iterable[LoadedImage], batch_size: int) -> Iterator[list[LoadedImage]]:
    """Batches of consecutive images of equal size, at most ``batch_size`` each; the order is kept."""
    batch: list[LoadedImage] = []
    for loaded in images:
        if batch and loaded.image.shape != batch[0].image.shape:
            yield batch
            batch = []
        batch.append(loaded)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch
