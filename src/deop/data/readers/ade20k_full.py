"""All of ADE20K (release of January 2021), with the 847 classes of MaskFormer.

Before it scores, MaskFormer shrinks images whose shorter side is above 512 pixels, and their label maps with them. Here
both stay as they are.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from deop.data.pairs import need_folder
from deop.data.raw_dataset import RawDataset, SplitFiles, published_dataset
from deop.errors import DeopError
from deop.settings.datasets import RealDataset, dataset

_PUBLISHED = {"train": 25_574, "val": 2_000}
_FOLDERS = {"train": "training", "val": "validation"}


class Ade20kFull(RealDataset):
    """All of ADE20K (release of January 2021), with the 847 classes of earlier work."""

    TITLE = "ADE20K (2021_17_01)"

    def sources(self) -> tuple[str, ...]:
        return ("ade20k_full",)


def read_object_map(path: Path) -> np.ndarray:
    """Object ids (H, W) of a ``_seg.png``: red holds the hundreds, in tens, green the rest (blue tells instances)."""
    with Image.open(path) as image:
        if image.mode not in ("RGB", "RGBA"):
            raise DeopError(f"{path}: is a picture of mode {image.mode}; ADE20K's label maps are RGB")
        channels = np.asarray(image)
    return channels[..., 0].astype(np.uint16) // 10 * 256 + channels[..., 1]


@dataset(Ade20kFull)
def open_dataset(settings: Ade20kFull, root: Path) -> RawDataset:
    """The dataset below ``root``, in ``ADE20K_2021_17_01/images/ADE``."""

    def split_files(split: str) -> SplitFiles:
        folder = root / "ADE20K_2021_17_01" / "images" / "ADE" / _FOLDERS[split]
        images, labels = _scenes(folder)
        return SplitFiles(images, labels, (folder, folder), _PUBLISHED[split])

    return published_dataset(
        settings, root, "ade20k_847", split_files, ids=range(3_689), void=0, read=read_object_map
    )


def _scenes(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and label maps in the folders of scenes; those of single instances are skipped."""
    need_folder(folder)
    images, labels = {}, {}
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith("ADE_")]
        for name in names:
            if name.endswith(".jpg"):
                images[name.removesuffix(".jpg")] = Path(place, name)
            elif name.endswith("_seg.png"):
                labels[name.removesuffix("_seg.png")] = Path(place, name)
    return images, labels
