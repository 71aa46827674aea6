"""Users' own images: found in folders, decoded from any common format, and batched by size."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from deop.errors import DeopError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class LoadedImage(NamedTuple):
    """The image at an index of a list, (3, H, W) uint8 RGB; or None and the reason why it cannot be read."""

    index: int
    image: Tensor | None
    problem: str


class ImageFiles(torch.utils.data.Dataset):
    """Images of a list of files, read by :func:`read_image`; an unreadable file raises no error."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> LoadedImage:
        try:
            return LoadedImage(index, read_image(self.paths[index]), "")
        except Exception as error:  # of a damaged file: OSError, SyntaxError, ValueError, struct.error, ...
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return LoadedImage(index, None, reason or type(error).__name__)


def read_image(path: Path) -> Tensor:
    """Reads an image (3, H, W) uint8 RGB, rotated according to its EXIF data.

    Greyscale, palette and CMYK images become RGB, 16-bit greyscale keeps its higher 8 bits, and alpha is ignored:
    transparent pixels keep the colour stored in the file. An animation gives its first frame.

    Raises:
        OSError, or another error of PIL: a missing or damaged file.
    """
    with Image.open(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # PIL would cut values off at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # PIL warns when converting directly to RGB
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


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


def find_images(given: Sequence[Path], output: Path) -> dict[Path, Path]:
    """The images among files and below folders, by where below ``output`` the label map of each goes, sorted.

    That is the path below the folder that was given, or the name of the file that was given, with the suffix .png.
    Hidden files are no images, nor is what lies in ``output``.

    Raises:
        DeopError: no such path, a file that is no image by its suffix, a folder without images or in
            ``output``, or two images with one place.
    """
    found: dict[Path, Path] = {}
    for place in given:
        for path, relative in _images_at(place, output):
            target = relative.with_suffix(".png")
            other = found.setdefault(target, path)
            if os.path.realpath(other) != os.path.realpath(path):
                raise DeopError(
                    f"{other} and {path} would both be written to {output / target}; rename one, or segment them into "
                    "folders of their own"
                )
    return dict(sorted(found.items()))


def _images_at(place: Path, output: Path) -> Iterator[tuple[Path, Path]]:
    """Images at or below a path, each with its path relative to it."""
    valid = ", ".join(SUFFIXES)
    if place.is_dir():
        if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(output)):
            raise DeopError(f"{place} lies in the output folder {output}; name a folder outside the images")
        empty = True
        for path in _below(place, os.path.realpath(output)):
            empty = False
            yield path, path.relative_to(place)
        if empty:
            raise DeopError(f"{place} has no image in it or below; valid: {valid}")
    elif not place.exists():
        raise DeopError(f"{place} is not there; valid: image files, and folders with images in or below them")
    elif place.suffix.lower() not in SUFFIXES:
        raise DeopError(f"{place} is no image by its name; valid: {valid}")
    else:
        yield place, Path(place.name)


def _below(folder: Path, left_out: str) -> Iterator[Path]:
    """The images in a folder and below, links followed; ``left_out`` is the real path of a folder not to look in."""

    def unreadable(error: OSError) -> None:
        raise DeopError(f"{error.filename} cannot be read: {error.strerror}")

    visited = {left_out}  # a link to a parent folder would cause an endless loop
    for place, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        real = os.path.realpath(place)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(place, name)
