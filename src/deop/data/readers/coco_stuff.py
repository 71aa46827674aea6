"""COCO-Stuff 164k: the images of COCO 2017 and the label maps of ``stuffthingmaps``.

Ids are those of COCO-Stuff's ``labels.txt`` less one, 0 to 181, and 255 where there is none. Eleven of the 182 were
never annotated; earlier work reads them as no class, and so is done here.
"""

from __future__ import annotations

from pathlib import Path

from deop.data.readers.base import Source, files, read_index_image
from deop.data.readers.class_table import labelled_classes
from deop.data.readers.pairs import pair_up
from deop.settings.datasets import CocoStuff

_PUBLISHED = {"train": 118_287, "val": 5_000}
_IDS = range(182)
_VOID = 255


def source(settings: CocoStuff, root: Path) -> Source:
    """The dataset below ``root``: ``coco/{train,val}2017`` and ``coco/stuffthingmaps/{train,val}2017``."""
    classes = labelled_classes("coco_stuff", settings.names)
    splits = {}
    for split in settings.splits:
        images = root / "coco" / f"{split}2017"
        labels = root / "coco" / "stuffthingmaps" / f"{split}2017"
        splits[split] = pair_up(
            files(images, ".jpg"),
            files(labels, ".png"),
            (images, labels),
            published=_PUBLISHED[split],
            complete=settings.complete,
        )
    return Source(
        classes=classes,
        ignored=frozenset(_IDS) - {entry.raw_id for entry in classes} | {_VOID},
        raw_ignore=_VOID,
        image_root=root,
        splits=splits,
        read=read_index_image,
    )
