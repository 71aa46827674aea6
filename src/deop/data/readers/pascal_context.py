"""PASCAL Context: the images of VOC 2010 with every pixel labelled, with one of 459 names, of which 59 are frequent.

The 59 have the same label maps; as in earlier work, the other names are background.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from deop.data.class_lists import read_class_list
from deop.data.label_maps import read_mat
from deop.data.raw_dataset import RawDataset, SplitFiles, files, published_dataset, read_list
from deop.errors import DeopError
from deop.settings.datasets import RealDataset, dataset

_PUBLISHED = {"train": 4_998, "val": 5_105}
# A list that differs in more names than this is another list; in fewer, another spelling.
_MOST_DIFFERENT = 20


class PascalContext(RealDataset):
    """PASCAL Context: all ``classes`` of 459, or the 59 frequent ones."""

    TITLE = "PASCAL Context"

    classes: Literal[59, 459]

    def sources(self) -> tuple[str, ...]:
        return ("voc2010", "pascal_context", "pascal_context_labels")


def read_label(path: Path) -> np.ndarray:
    """Ids (H, W) of a MATLAB file."""
    return read_mat(path)["LabelMap"]


def _check_list(path: Path) -> None:
    """Compares the list of labels that came with the maps with ours, ignoring spaces.

    Raises:
        DeopError: no list, or another one.
    """
    if not path.is_file():
        raise DeopError(f"{path}: no such file (PASCAL Context's list of 459 labels)")
    lines = [line.partition(":") for line in path.read_text(encoding="utf-8").splitlines() if ":" in line]
    theirs = {number.strip(): "".join(name.split()) for number, _, name in lines}
    ours = {str(row.raw_id): "".join(row.original.split()) for row in read_class_list("pascal_context_459")}
    different = [number for number in ours if theirs.get(number) != ours[number]]
    if len(different) > _MOST_DIFFERENT or theirs.keys() != ours.keys():
        first = different[0] if different else min(theirs.keys() - ours.keys())
        raise DeopError(
            f"{path}: is not the list of 459 labels that this dataset is known by: "
            f"label {first} is {theirs.get(first, 'missing')!r}, not {ours.get(first, 'there')!r}"
        )


@dataset(PascalContext)
def open_dataset(settings: PascalContext, root: Path) -> RawDataset:
    """The dataset below ``root``: ``VOCdevkit/VOC2010`` and ``pascal_context``."""
    voc, context = root / "VOCdevkit" / "VOC2010", root / "pascal_context"
    folders = (voc / "JPEGImages", context / "trainval")
    images, labels = files(folders[0], ".jpg"), files(folders[1], ".mat")
    _check_list(context / "labels.txt")

    def split_files(split: str) -> SplitFiles:
        listed = read_list(voc / "ImageSets" / "Main" / f"{split}.txt")
        return SplitFiles(images, labels, folders, _PUBLISHED[split], listed)

    class_list = f"pascal_context_{settings.classes}"
    return published_dataset(
        settings, root, class_list, split_files, ids=range(1, 460), void=0, read=read_label
    )
