"""Custom datasets: folders of images and label maps, described in YAML alone (docs/own-dataset.md)."""

from __future__ import annotations

import csv
import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from deop.data.card import LabelledClass
from deop.data.label_maps import read_index_image
from deop.data.pairs import Pair, few, pair_up
from deop.data.raw_dataset import RawDataset
from deop.errors import DeopError, validated
from deop.settings.base import Settings
from deop.settings.datasets import DatasetSettings, dataset


class FolderClass(Settings):
    """One class of a dataset in folders; ``id`` is its value in the label maps."""

    id: Annotated[int, Field(ge=0, le=65535)]
    name: Annotated[str, Field(min_length=1)]
    kind: Literal["thing", "stuff"] = "stuff"
    unseen: bool = False


class FolderSplit(Settings):
    """Where a split lies, relative to the dataset's ``root``.

    An image and its label map have the same path below their folders, except for the suffix. ``list`` names a text file
    with one such path a line, without suffix, for a split that is a part of what the folders hold.
    """

    images: str
    labels: str
    list: str | None = None


class Folder(DatasetSettings):
    """One's own dataset (docs/own-dataset.md): folders of images and of label maps with one id per pixel.

    ``root`` None is ``data.root``. ``classes`` are in label order, in place or as the path of a CSV file below ``root``
    with the columns id, name and, optionally, kind and unseen. ``ignore`` are ids that are no class.
    """

    root: str | None = None
    splits: Annotated[dict[Literal["train", "val"], FolderSplit], Field(min_length=1)]
    classes: str | Annotated[tuple[FolderClass, ...], Field(min_length=1)]
    ignore: tuple[Annotated[int, Field(ge=0, le=65535)], ...] = (255,)
    image_suffixes: Annotated[tuple[str, ...], Field(min_length=1)] = (".jpg", ".jpeg", ".png")
    label_suffixes: Annotated[tuple[str, ...], Field(min_length=1)] = (".png", ".tif", ".tiff")

    @model_validator(mode="after")
    def _consistent(self) -> Folder:
        if not isinstance(self.classes, str):
            check_classes(self.classes, self.ignore)
        return self

    def top(self, data_root: Path, start: Path) -> Path:
        """The folder that the dataset lies in: its own ``root``, or that of all data; relative to ``start``."""
        return start / (data_root if self.root is None else self.root)

    def contents(self, data_root: Path, start: Path) -> dict[str, Any]:
        """Classes, ignored ids, and a digest of each split: all that the dataset is, wherever it lies.

        The digest is of the names and sizes of the images and label maps that the split consists of, so it follows a
        list file as well. Images are not read, which would take minutes for a large dataset.
        """
        top = self.top(data_root, start)
        pairs = find_pairs(self, top)
        return {
            "classes": [entry.model_dump(mode="json") for entry in read_classes(self, top)],
            "ignore": list(self.ignore),
            "splits": {
                split: {"images": len(found), "sha256": _digest(found)} for split, found in pairs.items()
            },
        }

    def folders(self, data_root: Path, start: Path) -> list[Path]:
        top, splits = self.top(data_root, start), [split for _, split in sorted(self.splits.items())]
        return [(top / folder).resolve() for split in splits for folder in (split.images, split.labels)]


@dataset(Folder)
def open_dataset(settings: Folder, root: Path) -> RawDataset:
    """The dataset below ``settings.root``, or below ``root`` if that is None.

    Raises:
        DeopError: files that are missing, by key and path.
    """
    top = Path(os.path.abspath(settings.top(root, Path())))
    splits = find_pairs(settings, top)
    classes = tuple(
        LabelledClass(name=entry.name, kind=entry.kind, unseen=entry.unseen, raw_id=entry.id)
        for entry in read_classes(settings, top)
    )
    return RawDataset(
        classes=classes,
        ignored=frozenset(settings.ignore),
        raw_ignore=settings.ignore[0] if settings.ignore else None,
        image_root=top,
        splits=splits,
        read=read_index_image,
        upright=True,
    )


def check_classes(classes: tuple[FolderClass, ...], ignore: tuple[int, ...]) -> None:
    """Raises ``ValueError`` for an id or a name that two classes have, and for an id both a class and ignored."""
    ids = [entry.id for entry in classes]
    names = [" ".join(entry.name.split()).casefold() for entry in classes]  # as systems compare names in use
    for what, values in (("id", ids), ("name", names)):
        if repeated := sorted({value for value in values if values.count(value) > 1}):
            raise ValueError(f"two classes have the {what} {', '.join(map(str, repeated))}")
    if both := sorted({entry.id for entry in classes} & set(ignore)):
        raise ValueError(f"ids that are a class and in ignore: {', '.join(map(str, both))}")


def read_classes(settings: Folder, top: Path) -> tuple[FolderClass, ...]:
    """The classes of the settings, or of the CSV file below ``top`` that they name.

    Raises:
        DeopError: a CSV file that is missing or has an invalid class; the message begins with the key.
    """
    if not isinstance(settings.classes, str):
        return settings.classes
    path = top / settings.classes
    if not path.is_file():
        raise DeopError(f"classes: {path}: no such file")
    lines = list(csv.DictReader(_text(path, "classes").splitlines()))
    rows = [{key: value for key, value in line.items() if value} for line in lines]
    entries = tuple(
        validated(FolderClass, row, f"classes: {path}, line {number}")
        for number, row in enumerate(rows, start=2)
    )
    if not entries:
        raise DeopError(
            f"classes: {path}: holds no class; it has a line each, below the heading id,name,kind,unseen"
        )
    try:
        check_classes(entries, settings.ignore)
    except ValueError as error:
        raise DeopError(f"classes: {path}: {error}") from None
    return entries


def find_pairs(settings: Folder, top: Path) -> dict[str, list[Pair]]:
    """The images and label maps of each split below ``top``, in order of their keys.

    Raises:
        DeopError: a folder, list file, image or label map that is missing, or files that cannot be told apart; the
            message begins with the key.
    """
    if not top.is_dir():
        raise DeopError(f"root: {top}: no such folder")
    return {name: _split(settings, top, f"splits.{name}", split) for name, split in settings.splits.items()}


def _digest(pairs: list[Pair]) -> str:
    digest = hashlib.sha256()
    for key, image, label in pairs:
        digest.update(f"{key}\t{image.stat().st_size}\t{label.stat().st_size}\n".encode())
    return digest.hexdigest()


def _split(settings: Folder, top: Path, key: str, split: FolderSplit) -> list[Pair]:
    folders = (top / split.images, top / split.labels)
    images = _below(folders[0], settings.image_suffixes, f"{key}.images")
    labels = _below(folders[1], settings.label_suffixes, f"{key}.labels")
    if same := {name for name, path in images.items() if labels.get(name) == path}:
        raise DeopError(
            f"{key}: {folders[0]}: {few(same)} would be image and label map at once; "
            "give image_suffixes and label_suffixes that tell them apart"
        )
    wanted = None if split.list is None else _listed(top / split.list, settings.image_suffixes, f"{key}.list")
    if split.list is None:
        remedy = "every image needs a label map, and every label map an image"
    else:
        remedy = f"add it, or take it out of {top / split.list}"
    try:
        return pair_up(images, labels, folders, wanted=wanted, remedy=remedy)
    except DeopError as error:
        raise DeopError(f"{key}: {error}") from None


def _below(folder: Path, suffixes: tuple[str, ...], key: str) -> dict[str, Path]:
    """All files below a folder with one of the suffixes, by path below it without the suffix."""
    if not folder.is_dir():
        raise DeopError(f"{key}: {folder}: no such folder")
    found: dict[str, Path] = {}
    for place, _, names in os.walk(folder, followlinks=True):
        parent = Path(place).relative_to(folder).as_posix()
        for name in sorted(names):
            stem = _stem(name, suffixes)
            if stem is None or name.startswith("."):
                continue
            path = Path(place, name)
            if not path.exists():
                raise DeopError(f"{key}: {path}: a link to a file that is not there")
            below = stem if parent == "." else f"{parent}/{stem}"
            if below in found:
                raise DeopError(
                    f"{key}: {path}: has the same name as {found[below]}, but for the suffix; remove one"
                )
            found[below] = path
    return found


def _stem(name: str, suffixes: tuple[str, ...]) -> str | None:
    """The name without the longest of the suffixes that it has; None if it has none."""
    fitting = [suffix for suffix in suffixes if name.lower().endswith(suffix.lower())]
    return name[: -len(max(fitting, key=len))] if fitting else None


def _listed(path: Path, suffixes: tuple[str, ...], key: str) -> list[str]:
    """The names in a list file, with or without the suffix of an image."""
    if not path.is_file():
        raise DeopError(f"{key}: {path}: no such file")
    lines = [line.strip() for line in _text(path, key).splitlines()]
    return [_stem(line, suffixes) or line for line in lines if line]


def _text(path: Path, key: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DeopError(f"{key}: {path}: is not a text in UTF-8") from None
