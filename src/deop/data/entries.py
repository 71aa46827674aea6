"""The lines of a split file, kept in arrays: a million images take a quarter of a gigabyte.

As objects, they take four times that, and a forked process of a loader copies each object that it touches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from deop.errors import DeopError

COLUMNS = ("image", "label", "classes", "crc32", "image_crc32")


@dataclass(frozen=True)
class Entry:
    """One line of a split file, with the CRC-32 of both files; None before it is known."""

    image: Path
    label: Path
    classes: tuple[int, ...]
    crc32: int | None = None
    image_crc32: int | None = None


class LabelSets(Sequence):
    """For each image, the labels of the classes in it, ascending.

    Args:
        labels: those of all images, one after another.
        counts: how many of them each image has.
    """

    def __init__(self, labels: np.ndarray, counts: np.ndarray) -> None:
        self.labels, self.counts = labels, counts
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: int) -> tuple[int, ...]:
        end = self._ends[index]
        return tuple(self.labels[end - self.counts[index] : end].tolist())

    def only(self, labels: Sequence[int]) -> LabelSets:
        """Without all labels but these, which become 0, 1, ... in their order."""
        largest = max(max(labels, default=0), self.labels.max(initial=0))
        new = np.full(largest + 1, -1, self.labels.dtype)
        new[labels] = np.arange(len(labels))
        renumbered = new[self.labels]
        counts = np.bincount(self._images()[renumbered >= 0], minlength=len(self))
        return LabelSets(renumbered[renumbered >= 0], counts)

    def of(self, images: np.ndarray) -> LabelSets:
        """Those of the images that a mask (N,) selects."""
        return LabelSets(self.labels[images[self._images()]], self.counts[images])

    def _images(self) -> np.ndarray:
        """The image of each label."""
        return np.repeat(np.arange(len(self)), self.counts)


@dataclass(frozen=True, eq=False)
class Entries(Sequence):
    """The lines of a split file.

    images, labels: paths below ``image_root`` and ``root``, UTF-8.
    classes: of each image.
    crc32, image_crc32: of label maps and images.
    """

    image_root: Path
    root: Path
    images: np.ndarray
    labels: np.ndarray
    classes: LabelSets
    crc32: np.ndarray
    image_crc32: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Entry:
        return Entry(
            self.image_root / self.images[index].decode(),
            self.root / self.labels[index].decode(),
            self.classes[index],
            int(self.crc32[index]),
            int(self.image_crc32[index]),
        )

    def having(self, labels: Sequence[int]) -> tuple[Entries, LabelSets]:
        """The images with any of these labels, their classes renumbered, and the classes that they had before."""
        kept = self.classes.only(labels)
        images = kept.counts > 0
        columns = (getattr(self, name)[images] for name in ("images", "labels"))
        sums = (getattr(self, name)[images] for name in ("crc32", "image_crc32"))
        entries = Entries(self.image_root, self.root, *columns, kept.of(images), *sums)
        return entries, self.classes.of(images)


def read_split(path: Path, image_root: Path | None) -> Entries:
    """The lines of a split file, whose images lie below ``image_root`` (None: beside it).

    Raises:
        DeopError: no such file, or one that is not as it was written.
    """
    if not path.is_file():
        raise DeopError(f"{path}: no such split")
    remedy = f"remove {path.parent} to have it prepared again"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # no CSV, or not UTF-8
        raise DeopError(f"{path}: cannot be read as CSV ({error}); {remedy}") from None
    if missing := set(COLUMNS) - set(table.columns):
        raise DeopError(f"{path}: has no column {', '.join(sorted(missing))}; {remedy}")
    try:
        return Entries(
            path.parent if image_root is None else image_root,
            path.parent,
            _encoded(table["image"]),
            _encoded(table["label"]),
            _label_sets(table["classes"]),
            _checksums(table["crc32"]),
            _checksums(table["image_crc32"]),
        )
    except ValueError as error:
        raise DeopError(f"{path}: {error}; {remedy}") from None


def _encoded(texts: Iterable[str]) -> np.ndarray:
    return np.array([text.encode() for text in texts], dtype=bytes)


def _label_sets(texts: pd.Series) -> LabelSets:
    wrong = ~texts.str.fullmatch(r"(\d+( \d+)*)?")
    if wrong.any():
        raise ValueError(f"classes {texts[wrong].iloc[0]!r} are no label ids with spaces between them")
    labels = np.fromstring(" ".join(texts), dtype=np.int64, sep=" ")
    counts = np.where(texts == "", 0, texts.str.count(" ") + 1)
    if labels.max(initial=0) > np.iinfo(np.uint16).max:
        raise ValueError(f"label id {labels.max()} is larger than any")
    return LabelSets(labels.astype(np.int32), counts)


def _checksums(texts: pd.Series) -> np.ndarray:
    wrong = ~texts.str.fullmatch("[0-9a-f]{8}")
    if wrong.any():
        raise ValueError(f"checksum {texts[wrong].iloc[0]!r} is not one of eight hexadecimal digits")
    return np.frombuffer(bytes.fromhex("".join(texts)), ">u4").astype(np.uint32)
