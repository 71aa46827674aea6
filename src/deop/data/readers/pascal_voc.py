"""PASCAL VOC 2012, trained on with the masks of SBD (Semantic Boundaries Dataset) beside its own.

The training set of 10,582 images is VOC's of 1,464 and all images of SBD that are not in VOC's validation set. VOC's
mask is used where VOC has one, SBD's otherwise. Background (0) and the borders of objects (255) are no class.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deop.data.readers.base import Source, files, read_index_image, read_list, read_mat
from deop.data.readers.class_table import labelled_classes
from deop.data.readers.pairs import pair_up
from deop.settings.datasets import PascalVoc

_PUBLISHED = {"train": 10_582, "val": 1_449}
_BACKGROUND, _BORDER = 0, 255


def read_label(path: Path) -> np.ndarray:
    """Ids (H, W) of a PNG of VOC, or of a MATLAB file of SBD."""
    if path.suffix == ".mat":
        return np.asarray(read_mat(path)["GTcls"]["Segmentation"].item())
    return read_index_image(path)


def source(settings: PascalVoc, root: Path) -> Source:
    """The dataset below ``root``: ``VOCdevkit/VOC2012`` and, to train on, ``benchmark_RELEASE/dataset``."""
    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    lists = voc / "ImageSets" / "Segmentation"
    folders = (voc / "JPEGImages", voc / "SegmentationClass")
    images, masks = files(folders[0], ".jpg"), files(folders[1], ".png")
    val = set(read_list(lists / "val.txt"))
    splits = {}
    for split in settings.splits:
        wanted, labels, where = val, masks, folders
        if split == "train":
            more = {key for part in ("train", "val") for key in read_list(sbd / f"{part}.txt")} - val
            wanted = more | set(read_list(lists / "train.txt"))
            labels = files(sbd / "cls", ".mat") | masks
            if more - masks.keys():
                where = (folders[0], sbd / "cls")
        splits[split] = pair_up(
            images,
            labels,
            where,
            wanted=wanted,
            published=_PUBLISHED[split],
            complete=settings.complete,
        )
    return Source(
        classes=labelled_classes("pascal_voc", settings.names),
        ignored=frozenset({_BACKGROUND, _BORDER}),
        raw_ignore=_BORDER,
        image_root=root,
        splits=splits,
        read=read_label,
    )
