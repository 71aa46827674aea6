"""Label maps in COCO's results format for stuff segmentation, which pycocotools reads (``COCO.loadRes``).

A results file is one JSON list of ``{"image_id", "category_id", "segmentation"}``: of each image, one entry a class
that occurs in it, with the class's pixels as a compressed run-length encoding (https://cocodataset.org/#format-results,
Stuff Segmentation).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from pycocotools import mask


def image_ids(paths: Sequence[Path]) -> list[int]:
    """The ids of images by their files: the number that a name ends with, as COCO names its images.

    If a name has none, or two have the same (``2007_000032``, ``2008_000032``), all ids are places in the list, from 1.
    """
    numbers = [re.search(r"\d+$", path.stem) for path in paths]
    ids = [int(number.group()) for number in numbers if number]
    return ids if len(set(ids)) == len(paths) else list(range(1, len(paths) + 1))


def entries(label_map: np.ndarray, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The results of one image: an entry for every class of a label map (H, W), by ascending label.

    Args:
        label_map: class indices; negative ones are of no class and stay out.
        category_ids: the dataset's own id of each class.
    """
    found = []
    for label in np.unique(label_map[label_map >= 0]).tolist():
        encoded = mask.encode(np.asfortranarray(label_map == label, np.uint8))
        segmentation = {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}
        found.append({"image_id": image_id, "category_id": category_ids[label], "segmentation": segmentation})
    return found


def write_results(groups: Iterable[list[dict[str, Any]]], file: TextIO) -> None:
    """Writes groups of entries as one JSON list, one entry per line; only one group is in memory at a time."""
    separator = "[\n"
    for entry in (entry for group in groups for entry in group):
        file.write(separator + json.dumps(entry))
        separator = ",\n"
    file.write("[]\n" if separator == "[\n" else "\n]\n")
