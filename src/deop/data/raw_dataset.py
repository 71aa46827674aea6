"""A dataset in its original form, as readers return it: everything needed to prepare it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deop.data.card import DatasetCard, LabelledClass
from deop.data.class_lists import labelled_classes
from deop.data.pairs import Pair, need_folder, pair_up
from deop.errors import DeopError
from deop.settings.datasets import RealDataset

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class RawDataset:
    """A dataset as its owners publish it; all files exist when this is made.

    classes: in label order, each with the ``raw_id`` that label maps have for it.
    ignored: ids in label maps that are no class; any other id is an error.
    raw_ignore: which of them stands for "no class" when label maps are converted back.
    image_root: folder that all images are below; absolute, so that a prepared dataset can be read from anywhere.
    splits: the pairs of each split, in order of their keys.
    read: reads a label map (H, W) of original ids from its path; a function that can be pickled.
    upright: images that have to be turned before they are shown (EXIF) are refused. Published datasets label pixels as
        they are stored.
    """

    classes: tuple[LabelledClass, ...]
    ignored: frozenset[int]
    raw_ignore: int | None
    image_root: Path
    splits: dict[str, list[Pair]]
    read: Callable[[Path], np.ndarray]
    upright: bool = False


@dataclass(frozen=True)
class SceneGenerator:
    """A dataset that is generated.

    images: how many images all splits have together.
    write: writes the prepared dataset; called with its folder and name, the number of processes (``workers``), and a
        function (``progress``) to be called with the number of images that were just written.
    """

    images: int
    write: Callable[..., DatasetCard]


@dataclass(frozen=True)
class SplitFiles:
    """Where the files of one split are.

    images, labels: path by key.
    folders: where the two lie, to name in errors.
    published: how many images the dataset's owners count.
    listed: keys of the split; None for all that exist.
    """

    images: dict[str, Path]
    labels: dict[str, Path]
    folders: tuple[Path, Path]
    published: int
    listed: set[str] | None = None


def published_dataset(
    settings: RealDataset,
    root: Path,
    class_list: str,
    splits: Callable[[str], SplitFiles],
    *,
    ids: range,
    void: int,
    read: Callable[[Path], np.ndarray],
) -> RawDataset:
    """A public dataset with one of the bundled class lists.

    Args:
        settings: say which splits are wanted, under which class names, and whether all images have to be there.
        root: the data root.
        class_list: name of a file in ``data/classes``.
        splits: the files of a split by its name, ``"train"`` or ``"val"``.
        ids: what label maps may hold besides ``void``; ids without a class are ignored.
        void: the id of pixels without a class.
        read: see :class:`RawDataset`.

    Raises:
        DeopError: files that are missing.
    """
    classes = labelled_classes(class_list, settings.names)
    found = {split: splits(split) for split in settings.splits}
    return RawDataset(
        classes=classes,
        ignored=frozenset(ids) - {entry.raw_id for entry in classes} | {void},
        raw_ignore=void,
        image_root=root,
        splits={
            split: pair_up(
                files.images,
                files.labels,
                files.folders,
                wanted=files.listed,
                published=files.published,
                complete=settings.complete,
            )
            for split, files in found.items()
        },
        read=read,
    )


def files(folder: Path, suffix: str) -> dict[str, Path]:
    """The files of a folder with a suffix, by their names without it.

    Raises:
        DeopError: no such folder.
    """
    need_folder(folder)
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return {
        name.removesuffix(suffix): folder / name
        for name in names
        if name.endswith(suffix) and not name.startswith(".")
    }


def read_list(path: Path) -> set[str]:
    """The first word of each line of a split list.

    Raises:
        DeopError: no such file.
    """
    if not path.is_file():
        raise DeopError(f"{path}: no such file (the list of a split's images)")
    return {words[0] for line in path.read_text(encoding="utf-8").splitlines() if (words := line.split())}
