"""Images and their label maps, paired by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from deop.errors import DeopError


class Pair(NamedTuple):
    """An image and its label map; ``key`` is their common name, unique in the split."""

    key: str
    image: Path
    label: Path


def few(names: Collection[str], most: int = 3) -> str:
    """The first few of many names, and how many more there are, for error messages."""
    shown = ", ".join(sorted(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def need_folder(folder: Path) -> None:
    """Raises ``DeopError`` if there is no such folder."""
    if not folder.is_dir():
        raise DeopError(
            f"{folder}: no such folder (is data.root right, and has everything been downloaded and unpacked there?)"
        )


def pair_up(
    images: dict[str, Path],
    labels: dict[str, Path],
    folders: tuple[Path, Path],
    *,
    wanted: Iterable[str] | None = None,
    published: int | None = None,
    complete: bool = True,
    remedy: str = "download or unpack again",
) -> list[Pair]:
    """The pairs of a split, in order of their keys.

    Args:
        images, labels: path by key.
        folders: where the two lie, to name in errors.
        wanted: keys of the split; None for all that exist.
        published: how many pairs the dataset's owners count.
        complete: if false, keys without an image or a label map are left out, and the number is not checked.
        remedy: what an error about missing files says to do.

    Raises:
        DeopError: an image or label map that is missing, another number than the published one, or none at all.
    """
    keys = set(images) | set(labels) if wanted is None else set(wanted)
    if complete:
        for what, there, folder in (("image", images, folders[0]), ("label map", labels, folders[1])):
            if missing := keys - there.keys():
                raise DeopError(
                    f"{folder}: holds {len(keys) - len(missing):,} of {len(keys):,} {what}s; "
                    f"none for {few(missing)} ({remedy})"
                )
        if published not in (None, len(keys)):
            raise DeopError(
                f"{folders[0]}: holds {len(keys):,} images of this split, which has {published:,} (download or "
                "unpack again; `complete: false` in the dataset's settings takes those that are there)"
            )
    keys &= images.keys() & labels.keys()
    if not keys:
        raise DeopError(f"{folders[0]}: holds no image that has a label map in {folders[1]}")
    return [Pair(key, images[key], labels[key]) for key in sorted(keys)]
