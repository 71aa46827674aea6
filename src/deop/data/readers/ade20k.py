"""ADE20K: the 150 classes of the scene parsing challenge of 2016, and the whole dataset, of which 847 classes.

The 847 are those of MaskFormer. Before it scores, MaskFormer shrinks images of that release whose shorter side is above
512 pixels, and their label maps with them; here both stay as they are.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from deop.data.readers.base import Source, files, read_index_image
from deop.data.readers.class_table import labelled_classes
from deop.data.readers.pairs import need_folder, pair_up
from deop.errors import DeopError
from deop.settings.datasets import Ade20k, Ade20kFull

_PUBLISHED = {"train": 20_210, "val": 2_000}
_PUBLISHED_FULL = {"train": 25_574, "val": 2_000}
_FOLDERS = {"train": "training", "val": "validation"}
_OBJECTS = range(3_689)  # of the release of January 2021; 0 is no object
_VOID = 0


def source(settings: Ade20k, root: Path) -> Source:
    """The challenge's dataset below ``root``, in ``ADEChallengeData2016``."""
    top = root / "ADEChallengeData2016"
    splits = {}
    for split in settings.splits:
        images, labels = (top / part / _FOLDERS[split] for part in ("images", "annotations"))
        splits[split] = pair_up(
            files(images, ".jpg"),
            files(labels, ".png"),
            (images, labels),
            published=_PUBLISHED[split],
            complete=settings.complete,
        )
    return Source(
        classes=labelled_classes("ade20k_150", settings.names),
        ignored=frozenset({_VOID}),
        raw_ignore=_VOID,
        image_root=root,
        splits=splits,
        read=read_index_image,
    )


def read_object_map(path: Path) -> np.ndarray:
    """Object ids (H, W) of a ``_seg.png``: red has the hundreds, in tens, green the rest (blue tells instances)."""
    with Image.open(path) as image:
        if image.mode not in ("RGB", "RGBA"):
            raise DeopError(f"{path}: is a picture of mode {image.mode}; ADE20K's label maps are RGB")
        channels = np.asarray(image)
    return channels[..., 0].astype(np.uint16) // 10 * 256 + channels[..., 1]


def _scenes(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and label maps in the folders of scenes, passing over those of single instances."""
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


def source_full(settings: Ade20kFull, root: Path) -> Source:
    """The whole dataset below ``root``, in ``ADE20K_2021_17_01/images/ADE``."""
    classes = labelled_classes("ade20k_847", settings.names)
    splits = {}
    for split in settings.splits:
        folder = root / "ADE20K_2021_17_01" / "images" / "ADE" / _FOLDERS[split]
        images, labels = _scenes(folder)
        splits[split] = pair_up(
            images,
            labels,
            (folder, folder),
            published=_PUBLISHED_FULL[split],
            complete=settings.complete,
        )
    return Source(
        classes=classes,
        ignored=frozenset(_OBJECTS) - {entry.raw_id for entry in classes},
        raw_ignore=_VOID,
        image_root=root,
        splits=splits,
        read=read_object_map,
    )
