"""What readers of real datasets have in common: a dataset in its original form, and what a label map holds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deop.data.readers.pairs import Pair, need_folder
from deop.data.segmentation import LabelledClass
from deop.errors import DeopError

# Grey PNGs of fewer than 8 bits come out of Pillow stretched to 0..255, by these factors.
_STRETCHED = {"L;2": 85, "L;4": 17}
_ONE_ID_A_PIXEL = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")


@dataclass(frozen=True)
class Source:
    """A dataset in the form that its owners publish, all of whose files are known to be there.

    classes: in label order, each with the ``raw_id`` that label maps have for it.
    ignored: ids in label maps that are no class; any other id is an error.
    raw_ignore: which of them stands for "no class" when label maps are turned back.
    image_root: folder that all images are below; absolute, so that a prepared dataset can be read from anywhere.
    splits: the pairs of each split, in order of their keys.
    read: label map (H, W) of ids as the owners write them, from its path; a function that can be pickled.
    """

    classes: tuple[LabelledClass, ...]
    ignored: frozenset[int]
    raw_ignore: int | None
    image_root: Path
    splits: dict[str, list[Pair]]
    read: Callable[[Path], np.ndarray]


def files(folder: Path, suffix: str) -> dict[str, Path]:
    """The files of a folder with this suffix, by name without it."""
    need_folder(folder)
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return {
        name.removesuffix(suffix): folder / name
        for name in names
        if name.endswith(suffix) and not name.startswith(".")
    }


def read_list(path: Path) -> list[str]:
    """The first word of each line of a split list."""
    if not path.is_file():
        raise DeopError(f"{path}: no such file (the list of a split's images)")
    return [words[0] for line in path.read_text(encoding="utf-8").splitlines() if (words := line.split())]


def read_index_image(path: Path) -> np.ndarray:
    """A label map (H, W) with one id a pixel: grey or palette, 8 bit or 16, PNG or whatever else Pillow reads."""
    with Image.open(path) as image:
        if image.mode not in _ONE_ID_A_PIXEL:
            raise DeopError(
                f"{path}: is a picture of mode {image.mode}; a label map has one id a pixel, grey or with a palette"
            )
        coding = image.tile[0][3] if image.tile else None
        ids = np.asarray(image)
    return ids // _STRETCHED.get(coding, 1) if isinstance(coding, str) else ids


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file; structures as arrays with fields, without dimensions of length one."""
    from scipy.io import loadmat  # only two of the datasets need it

    return loadmat(path, squeeze_me=True)
