"""The one segmentation dataset that everything reads: a prepared folder of images and label maps.

Layout of a prepared dataset::

    dataset.json            classes in label order (name, thing or stuff, unseen), the label map's ignore value
    train.csv, val.csv      image, label: paths inside the folder; classes: label ids present, separated by spaces;
                            crc32, image_crc32: of the label map's and the image's file (hexadecimal)
    images/, labels/        JPEG images; PNG label maps, 8 bit (ignore 255) or 16 bit (ignore 65535)

The images of a real dataset stay where they are: its card has an ``image_root``, which paths of images are relative to.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from deop.data.card import DatasetCard
from deop.data.entries import COLUMNS, Entry, read_split
from deop.data.image_files import to_rgb
from deop.errors import DeopError

IGNORE = -1
"""What label maps hold in memory where a pixel has no class; on disk it is the largest value of the map's depth."""
HIDDEN = -2
"""What label maps hold in training where a pixel has a class, but an unseen one."""


class Sample(NamedTuple):
    """image (3, H, W) uint8 RGB; label (H, W) int64, :data:`IGNORE` where there is no class, or :data:`HIDDEN`."""

    image: Tensor
    label: Tensor


def write_label_map(path: Path, label: np.ndarray, ignore: int) -> None:
    """Writes (H, W) label ids, :data:`IGNORE` included, as an 8- or 16-bit PNG."""
    depth = np.uint8 if ignore == 255 else np.uint16
    Image.fromarray(np.where(label == IGNORE, ignore, label).astype(depth)).save(path, optimize=False)


class SegmentationDataset(torch.utils.data.Dataset):
    """Images and label maps of one split.

    Args:
        root: a prepared dataset.
        split: ``"train"`` or ``"val"``.
        seen_only: for training: all unseen classes become :data:`HIDDEN`, seen classes are renumbered 0, 1, ... in
            label order, and images without a seen pixel are left out.
        keep_bytes: memory for decoded samples, so that a small dataset is read only once.

    Attributes:
        captioned: by image, the labels of all classes in it, unseen ones too: what a caption names.

    Raises:
        DeopError: a folder, card or split file that is missing or malformed; images that are no longer where they were.
    """

    def __init__(self, root: Path | str, split: str, *, seen_only: bool = False, keep_bytes: int = 0) -> None:
        self.root, self.split = Path(root), split
        self._kept: dict[int, Sample] = {}
        self._room = keep_bytes
        self.card = read_card(self.root)
        image_root = self.card.image_root
        entries = read_split(self.root / f"{split}.csv", None if image_root is None else Path(image_root))
        if len(entries) and not entries[0].image.is_file():
            raise self._missing(entries[0].image)
        self._lookup: Tensor | None = None
        self.captioned: Sequence[tuple[int, ...]] = entries.classes
        if seen_only:
            entries, self.captioned = entries.having(self.card.seen)
            self._lookup = torch.full((len(self.card.classes) + 1,), HIDDEN, dtype=torch.int64)
            self._lookup[IGNORE] = IGNORE  # the last entry
            self._lookup[self.card.seen] = torch.arange(len(self.card.seen))
        self.entries: Sequence[Entry] = entries
        self.names = [self.card.names[index] for index in self.card.seen] if seen_only else self.card.names

    def __len__(self) -> int:
        return len(self.entries)

    def image_name(self, index: int) -> str:
        """The path of an image below the folder of the images: of the dataset, or of its owners (``image_root``)."""
        root = self.root if self.card.image_root is None else Path(self.card.image_root)
        return self.entries[index].image.relative_to(root).as_posix()

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, from the header of its label map."""
        with Image.open(self.entries[index].label) as label:
            return label.height, label.width

    def check_labels(self) -> SegmentationDataset:
        """Returns itself if no label map has changed since it was written.

        Raises:
            DeopError: label maps that were changed, damaged or removed since, by name.
        """
        found = _checksums([entry.label for entry in self.entries])
        wrong = [
            str(entry.label) for entry, crc32 in zip(self.entries, found, strict=True) if crc32 != entry.crc32
        ]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            labels = self.root / "labels"
            # A link leads to the dataset that another one shares the label maps of.
            prepared = labels.resolve().parent if labels.is_symlink() else self.root
            raise DeopError(
                f"label maps that are not as they were prepared: {', '.join(wrong[:5])}{more}; remove {prepared} "
                "to have it prepared again"
            )
        return self

    def __getitem__(self, index: int) -> Sample:
        if index in self._kept:
            image, label = self._kept[index]
            return Sample(image.clone(), label.long())
        sample = self._read(index)
        kept = Sample(sample.image.clone(), sample.label.int())  # the caller may modify what it gets
        size = kept.image.nbytes + kept.label.nbytes
        if size <= self._room:
            self._kept[index] = kept
            self._room -= size
        return sample

    def read_ahead(self) -> None:
        """Reads samples into memory until there is no more room."""
        for index in range(len(self)):
            self[index]
            if index not in self._kept:
                return

    def _read(self, index: int) -> Sample:
        entry = self.entries[index]
        image = self._decode(entry.image, entry.image_crc32, rgb=True)
        label = torch.from_numpy(self._decode(entry.label, entry.crc32).astype(np.int64))
        if image.shape[:2] != tuple(label.shape):
            raise DeopError(f"{entry.label}: is {tuple(label.shape)} pixels, its image is {image.shape[:2]}")
        label[label == self.card.ignore] = IGNORE
        if (largest := int(label.max())) >= len(self.card.classes):
            raise DeopError(
                f"{entry.label}: holds label {largest}; {self.root} has {len(self.card.classes)} classes"
            )
        if self._lookup is not None:
            label = self._lookup[label]
        return Sample(torch.from_numpy(image.copy()).permute(2, 0, 1), label)

    def _decode(self, path: Path, crc32: int | None, *, rgb: bool = False) -> np.ndarray:
        """The pixels of an image or label map, whose file has to be what it was when the dataset was prepared."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise self._missing(path) from None
        except OSError as error:
            raise DeopError(f"{path}: cannot be read ({error.strerror})") from None
        if crc32 is not None and zlib.crc32(content) != crc32:
            raise DeopError(
                f"{path}: is not as it was when {self.root} was prepared (it has another CRC-32); put the right file "
                f"back, or remove {self.root} to have it prepared again"
            )
        try:
            with Image.open(io.BytesIO(content)) as image:
                return np.asarray(to_rgb(image) if rgb else image)
        except Exception as error:  # of a damaged file: OSError, SyntaxError, ValueError, struct.error, ...
            raise DeopError(f"{path}: cannot be read as an image ({error})") from None

    def _missing(self, image: Path) -> DeopError:
        return DeopError(
            f"{image}: no such image; {self.root / f'{self.split}.csv'} lists it "
            f"(remove {self.root} to have it prepared again if its images were moved)"
        )


def read_card(root: Path) -> DatasetCard:
    """The card of a prepared dataset; ``DeopError`` if the folder holds none."""
    path = Path(root) / "dataset.json"
    if not path.is_file():
        raise DeopError(
            f"{path}: no such file; a prepared dataset has one (make it with `deop prepare-data`)"
        )
    try:
        return DatasetCard.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise DeopError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _checksums(paths: Sequence[Path]) -> list[int | None]:
    """CRC-32 of files, None for missing ones; read in threads."""

    def checksum(path: Path) -> int | None:
        return zlib.crc32(path.read_bytes()) if path.is_file() else None

    with ThreadPoolExecutor() as pool:
        return list(pool.map(checksum, paths))


def write_card(root: Path, card: DatasetCard) -> None:
    """Writes ``dataset.json``, without optional values that are None."""
    values = card.model_dump()
    for part in (values, *values["classes"]):
        for key in ("image_root", "raw_ignore", "images", "raw_id", "spelling"):
            if part.get(key) is None:
                part.pop(key, None)
    (root / "dataset.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def write_split(root: Path, split: str, entries: list[Entry], image_root: Path | None = None) -> None:
    """Writes a split file: images relative to ``image_root`` (None: ``root``), label maps relative to ``root``."""
    labels, images = (_checksums([getattr(entry, kind) for entry in entries]) for kind in ("label", "image"))
    rows = [
        (
            Path(os.path.relpath(entry.image, image_root or root)).as_posix(),
            entry.label.relative_to(root).as_posix(),
            " ".join(map(str, entry.classes)),
            f"{label:08x}",
            f"{image:08x}",
        )
        for entry, label, image in zip(entries, labels, images, strict=True)
    ]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(root / f"{split}.csv", index=False)


def restore_raw(label: np.ndarray, card: DatasetCard) -> np.ndarray:
    """(H, W) label ids, :data:`IGNORE` included, converted back to the original ids; uint16.

    If the original label maps have several values for pixels without a class, as VOC has, they come back as one.

    Raises:
        DeopError: a dataset without original ids.
    """
    raw = [entry.raw_id for entry in card.classes]
    if card.raw_ignore is None or None in raw:
        raise DeopError(f"dataset {card.name}: its card has no original ids to go back to")
    return np.array([*raw, card.raw_ignore], np.uint16)[label]  # IGNORE is the last entry
