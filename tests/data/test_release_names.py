"""Prepared datasets under the class names that the authors' release evaluates with."""

from __future__ import annotations

from pathlib import Path

import pytest
import real_layouts
import torch

from deop.data.card import DatasetCard, LabelledClass
from deop.data.prepare import prepare
from deop.data.release_names import link_dataset, release_names
from deop.data.segmentation import SegmentationDataset
from deop.errors import ConfigError, DeopError, validated
from deop.settings.datasets import dataset_kinds, dataset_settings

# What the release calls some of the classes that ``cleaned`` calls otherwise, by label.
RELEASED = {
    "coco_stuff": (
        real_layouts.write_coco_stuff,
        {},
        {84: "building-other", 133: "playingfield", 160: "wall-concrete"},
    ),
    "pascal_voc": (
        real_layouts.write_pascal_voc,
        {},
        {10: "diningtable", 15: "pottedplant", 19: "tvmonitor"},
    ),
    "pascal_context": (
        real_layouts.write_pascal_context,
        {"classes": 59},
        {39: "pottedplant", 49: "diningtable", 54: "tvmonitor"},
    ),
    "ade20k": (
        real_layouts.write_ade20k,
        {},
        {1: "building", 6: "road, route", 8: "window", 89: "tv", 113: "falls", 138: "trash can"},
    ),
    "ade20k_full": (
        real_layouts.write_ade20k_full,
        {},
        {1: "building, edifice", 846: "adding machine, totalizer, totaliser"},
    ),
}


@pytest.mark.parametrize("names", ["cleaned", "original"])
@pytest.mark.parametrize("kind", RELEASED)
def test_a_dataset_is_read_under_the_releases_names_whatever_its_own(tmp_path: Path, kind, names):
    write, more, released = RELEASED[kind]
    write(tmp_path / "raw")
    values = {"kind": kind, "names": names, "splits": ["val"], "complete": False, **more}
    settings = validated(dataset_settings(kind), values, "dataset")
    card = prepare(tmp_path / "data", kind, settings, tmp_path / "raw")
    assert card.spelling == names
    named = release_names(card)
    assert {label: named.names[label] for label in released} == released
    assert named.spelling == ("detectron2" if kind == "ade20k" else "original")
    assert (named == card) == (names == "original" and kind != "ade20k")
    link_dataset(tmp_path / "data", named, tmp_path / "renamed")
    own, renamed = (
        SegmentationDataset(tmp_path / folder, "val").check_labels() for folder in ("data", "renamed")
    )
    assert renamed.names == named.names and renamed.card.unseen == own.card.unseen
    assert len(renamed) == len(own) > 0
    for index in range(len(own)):
        assert torch.equal(renamed[index].image, own[index].image)
        assert torch.equal(renamed[index].label, own[index].label)
    own.entries[0].label.unlink()
    with pytest.raises(DeopError, match=f"not as they were prepared.*remove {tmp_path / 'data'} "):
        renamed.check_labels()


def test_a_dataset_of_ones_own_keeps_its_names():
    """Even one whose ids are those of PASCAL VOC."""
    classes = tuple(
        LabelledClass(name=f"thing {value}", kind="thing", raw_id=value) for value in range(1, 21)
    )
    card = DatasetCard(name="mine", classes=classes, image_root="/images")
    assert release_names(card) == card


@pytest.mark.parametrize("kind", sorted(set(dataset_kinds()) - {"ade20k", "emoji_scenes", "folder"}))
def test_detectron2s_names_are_ade20ks_alone(kind):
    with pytest.raises(
        ConfigError, match=r"names: unknown value 'detectron2'; valid: 'cleaned' or 'original'"
    ):
        validated(
            dataset_settings(kind),
            {"kind": kind, "names": "detectron2", "classes": 59},
            "config.yaml",
            ("names",),
        )
