"""Which reader reads which kind of dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deop.data.readers import ade20k, coco_stuff, folder, pascal_context, pascal_voc
from deop.data.readers.base import Source
from deop.settings.base import Settings

READERS: dict[str, Callable[..., Source]] = {
    "coco_stuff": coco_stuff.source,
    "pascal_voc": pascal_voc.source,
    "pascal_context": pascal_context.source,
    "ade20k": ade20k.source,
    "ade20k_full": ade20k.source_full,
    "folder": folder.source,
}
"""A function of the dataset's settings and of the data root, by the settings' ``kind``."""


def open_source(settings: Settings, root: Path) -> Source:
    """The dataset in its original form; ``DeopError`` if files of it are missing."""
    return READERS[settings.kind](settings, root)
