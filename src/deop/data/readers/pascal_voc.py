"""PASCAL VOC 2012, with the training masks of SBD (Semantic Boundaries Dataset) beside its own.

The training set of 10,582 images is VOC's of 1,464 and all images of SBD that are not in VOC's validation set. VOC's
mask is used where VOC has one, SBD's otherwise. Background (0) and the borders of objects (255) are no classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deop.data.label_maps import read_index_image, read_mat
from deop.data.raw_dataset import RawDataset, SplitFiles, files, published_dataset, read_list
from deop.settings.datasets import RealDataset, dataset

_PUBLISHED = {"train": 10_582, "val": 1_449}


class PascalVoc(RealDataset):
    """PASCAL VOC 2012 with the training masks of SBD: 20 classes, 5 of them unseen (section 5)."""

    TITLE = "PASCAL VOC 2012"

    def sources(self) -> tuple[str, ...]:
        return ("voc2012", *(["sbd"] if "train" in self.splits else []))


def read_label(path: Path) -> np.ndarray:
    """Ids (H, W) of a PNG of VOC, or of a MATLAB file of SBD."""
    if path.suffix == ".mat":
        return np.asarray(read_mat(path)["GTcls"]["Segmentation"].item())
    return read_index_image(path)


@dataset(PascalVoc)
def open_dataset(settings: PascalVoc, root: Path) -> RawDataset:
    """The dataset below ``root``: ``VOCdevkit/VOC2012`` and, to train on, ``benchmark_RELEASE/dataset``."""
    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    lists = voc / "ImageSets" / "Segmentation"
    folders = (voc / "JPEGImages", voc / "SegmentationClass")
    images, masks = files(folders[0], ".jpg"), files(folders[1], ".png")
    val = read_list(lists / "val.txt")

    def split_files(split: str) -> SplitFiles:
        if split == "val":
            return SplitFiles(images, masks, folders, _PUBLISHED[split], val)
        of_sbd = (read_list(sbd / "train.txt") | read_list(sbd / "val.txt")) - val
        where = (folders[0], sbd / "cls") if of_sbd - masks.keys() else folders
        labels = files(sbd / "cls", ".mat") | masks
        return SplitFiles(images, labels, where, _PUBLISHED[split], of_sbd | read_list(lists / "train.txt"))

    # Id 0 is the background, 255 the borders of objects.
    return published_dataset(
        settings, root, "pascal_voc", split_files, ids=range(21), void=255, read=read_label
    )
