"""One's own dataset: folders of images and label maps, described in YAML alone (docs/own-dataset.md)."""

from __future__ import annotations

from pathlib import Path

from deop.data.readers.base import Source, read_index_image
from deop.data.readers.folder_files import find_pairs, read_classes, top_folder
from deop.data.segmentation import LabelledClass
from deop.settings.datasets import Folder


def source(settings: Folder, root: Path) -> Source:
    """The dataset below ``settings.root``, or below ``root`` if that is None.

    Raises:
        DeopError: files that are missing, by key and path.
    """
    top = top_folder(settings, root)
    splits = find_pairs(settings, top)
    classes = tuple(
        LabelledClass(name=entry.name, kind=entry.kind, unseen=entry.unseen, raw_id=entry.id)
        for entry in read_classes(settings, top)
    )
    return Source(
        classes=classes,
        ignored=frozenset(settings.ignore),
        raw_ignore=settings.ignore[0] if settings.ignore else None,
        image_root=top,
        splits=splits,
        read=read_index_image,
    )
