"""One's own dataset: folders of images and label maps, described in YAML alone (docs/own-dataset.md)."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from deop.data.raw import Pair, Source, few, need_folder, pair_up, read_index_image
from deop.data.segmentation import LabelledClass
from deop.dataset_settings import Folder, FolderClass, FolderSplit, check_classes
from deop.errors import DeopError, validated


def _classes(settings: Folder, top: Path) -> tuple[LabelledClass, ...]:
    """The classes of the settings, or of the CSV file that they name."""
    entries = settings.classes
    if isinstance(entries, str):
        path = top / entries
        if not path.is_file():
            raise DeopError(f"{path}: no such file (classes of a folder dataset)")
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
        rows = [{key: value for key, value in line.items() if value} for line in lines]
        entries = tuple(
            validated(FolderClass, row, f"{path}, line {number}") for number, row in enumerate(rows, start=2)
        )
        if not entries:
            raise DeopError(
                f"{path}: holds no class; it has a line each, below the heading id,name,kind,unseen"
            )
        try:
            check_classes(entries, settings.ignore)
        except ValueError as error:
            raise DeopError(f"{path}: {error}") from None
    return tuple(
        LabelledClass(name=entry.name, kind=entry.kind, unseen=entry.unseen, raw_id=entry.id)
        for entry in entries
    )


def _stem(name: str, suffixes: tuple[str, ...]) -> str | None:
    """The name without the longest of the suffixes that it has; None if it has none."""
    fitting = [suffix for suffix in suffixes if name.lower().endswith(suffix.lower())]
    return name[: -len(max(fitting, key=len))] if fitting else None


def _below(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """All files below a folder with one of the suffixes, by path below it without the suffix."""
    need_folder(folder)
    found: dict[str, Path] = {}
    for place, _, names in os.walk(folder, followlinks=True):
        for name in sorted(names):
            stem = _stem(name, suffixes)
            if stem is None or name.startswith("."):
                continue
            path = Path(place, name)
            key = (path.relative_to(folder).parent / stem).as_posix()
            if key in found:
                raise DeopError(f"{path}: has the same name as {found[key]}, but for the suffix; remove one")
            found[key] = path
    return found


def _listed(path: Path, suffixes: tuple[str, ...]) -> list[str]:
    """The keys in a list file, with or without the suffix of an image."""
    if not path.is_file():
        raise DeopError(f"{path}: no such file (the list of a split's images)")
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    return [_stem(line, suffixes) or line for line in lines if line]


def _split(settings: Folder, top: Path, split: FolderSplit) -> list[Pair]:
    folders = (top / split.images, top / split.labels)
    images = _below(folders[0], settings.image_suffixes)
    labels = _below(folders[1], settings.label_suffixes)
    if same := {key for key, path in images.items() if labels.get(key) == path}:
        raise DeopError(
            f"{folders[0]}: {few(same)} would be image and label map at once; "
            "give image_suffixes and label_suffixes that tell them apart"
        )
    wanted = None if split.list is None else _listed(top / split.list, settings.image_suffixes)
    return pair_up(images, labels, folders, wanted=wanted)


def source(settings: Folder, root: Path) -> Source:
    """The dataset below ``settings.root``, or below ``root`` if that is None."""
    top = root if settings.root is None else Path(os.path.abspath(settings.root))
    need_folder(top)
    return Source(
        classes=_classes(settings, top),
        ignored=frozenset(settings.ignore),
        raw_ignore=settings.ignore[0] if settings.ignore else None,
        image_root=top,
        splits={name: _split(settings, top, split) for name, split in settings.splits.items()},
        read=read_index_image,
    )
