"""A prepared dataset under the class names that the authors' release evaluates with."""

from __future__ import annotations

import shutil
from pathlib import Path

from deop.data.card import DatasetCard
from deop.data.class_lists import find_class_list, labelled_classes
from deop.data.segmentation import write_card
from deop.settings.datasets import Spelling

_SPELLINGS: dict[str, Spelling] = {"ade20k_150": "detectron2"}


def release_names(card: DatasetCard) -> DatasetCard:
    """The card with the release's class names: detectron2's for ADE20K's 150 classes, else those of the owners.

    A dataset whose class list is not one of ``data/classes`` keeps its names.
    """
    name = find_class_list(card.classes)
    if name is None:
        return card
    spelling = _SPELLINGS.get(name, "original")
    classes = tuple(
        own.model_copy(update={"name": named.name})
        for own, named in zip(card.classes, labelled_classes(name, spelling), strict=True)
    )
    return card.model_copy(update={"classes": classes, "spelling": spelling})


def link_dataset(data: Path, card: DatasetCard, output: Path) -> None:
    """Makes ``output``, the prepared dataset ``data`` with another card; its label maps are linked, not copied."""
    output.mkdir()
    for split in data.glob("*.csv"):
        shutil.copyfile(split, output / split.name)
    (output / "labels").symlink_to((data / "labels").resolve(), target_is_directory=True)
    write_card(output, card)
