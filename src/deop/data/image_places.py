"""Users' own images, found among files and in folders, and where their results go. Without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from deop.errors import DeopError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
OVERLAY = ".overlay.jpg"


def find_images(given: Sequence[Path], output: Path) -> dict[Path, Path]:
    """The images among files and below folders, by where below ``output`` the label map of each goes, sorted.

    That is the path below the folder that was given, or the name of the file that was given, with the suffix .png.
    Hidden files are no images, nor are results of earlier calls (:func:`is_result`) and what lies in ``output``,
    unless that is the folder of the images itself.

    Raises:
        DeopError: no such path, a file that is no image by its suffix, a folder without images, or two images
            with one place.
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
        real, left_out = os.path.realpath(place), os.path.realpath(output)
        within = Path(real).is_relative_to(left_out)
        empty = True
        for path in _below(place, "" if within else left_out):
            empty = False
            yield path, path.relative_to(place)
        if empty:
            raise DeopError(f"{place} has no image in it or below; valid: {valid}")
    elif not place.exists():
        raise DeopError(f"{place} is not there; valid: image files, and folders with images in or below them")
    elif place.suffix.lower() not in SUFFIXES:
        raise DeopError(f"{place} is no image by its name; valid: {valid}")
    elif not is_result(place):
        yield place, Path(place.name)


def is_result(path: Path) -> bool:
    """Whether a file is a result of this package: ``x.overlay.jpg``, or the ``x.png`` beside one."""
    if path.name.endswith(OVERLAY):
        return True
    return path.suffix == ".png" and path.with_name(path.stem + OVERLAY).exists()


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
            path = Path(place, name)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and not is_result(path):
                yield path
