"""PASCAL Context: the images of VOC 2010 with every pixel labelled, with one of 459 names, of which 59 are frequent.

Of the 59, the label maps are the same: what has another of the 459 names, earlier work takes for background.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deop.data.readers.base import Source, files, read_list, read_mat
from deop.data.readers.class_table import labelled_classes, read_table
from deop.data.readers.pairs import pair_up
from deop.errors import DeopError
from deop.settings.datasets import PascalContext

_PUBLISHED = {"train": 4_998, "val": 5_105}
_IDS = range(1, 460)
_VOID = 0
# A list that differs in more names than this is another list; in fewer, another spelling.
_MOST_DIFFERENT = 20


def read_label(path: Path) -> np.ndarray:
    """Ids (H, W) of a MATLAB file."""
    return read_mat(path)["LabelMap"]


def _check_list(path: Path) -> None:
    """Compares the list of labels that came with the maps to ours, letter by letter of each name."""
    if not path.is_file():
        raise DeopError(f"{path}: no such file (PASCAL Context's list of 459 labels)")
    lines = [line.partition(":") for line in path.read_text(encoding="utf-8").splitlines() if ":" in line]
    theirs = {number.strip(): "".join(name.split()) for number, _, name in lines}
    ours = {str(row.raw_id): "".join(row.original.split()) for row in read_table("pascal_context_459")}
    different = [number for number in ours if theirs.get(number) != ours[number]]
    if len(different) > _MOST_DIFFERENT or theirs.keys() != ours.keys():
        first = different[0] if different else min(theirs.keys() - ours.keys())
        raise DeopError(
            f"{path}: is not the list of 459 labels that this dataset is known by: "
            f"label {first} is {theirs.get(first, 'missing')!r}, not {ours.get(first, 'there')!r}"
        )


def source(settings: PascalContext, root: Path) -> Source:
    """The dataset below ``root``: ``VOCdevkit/VOC2010`` and ``pascal_context``."""
    voc, context = root / "VOCdevkit" / "VOC2010", root / "pascal_context"
    folders = (voc / "JPEGImages", context / "trainval")
    images, labels = files(folders[0], ".jpg"), files(folders[1], ".mat")
    _check_list(context / "labels.txt")
    classes = labelled_classes(f"pascal_context_{settings.classes}", settings.names)
    return Source(
        classes=classes,
        ignored=frozenset(_IDS) - {entry.raw_id for entry in classes} | {_VOID},
        raw_ignore=_VOID,
        image_root=root,
        splits={
            split: pair_up(
                images,
                labels,
                folders,
                wanted=read_list(voc / "ImageSets" / "Main" / f"{split}.txt"),
                published=_PUBLISHED[split],
                complete=settings.complete,
            )
            for split in settings.splits
        },
        read=read_label,
    )
