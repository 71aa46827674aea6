"""The catalogue of downloads, and the counting of what it says there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deop.data.downloads.sources import CATALOGUE, count, differences, find_entry
from deop.data.readers.ade20k import Ade20k
from deop.data.readers.ade20k_full import Ade20kFull
from deop.data.readers.coco_stuff import CocoStuff
from deop.data.readers.pascal_context import PascalContext
from deop.data.readers.pascal_voc import PascalVoc
from deop.errors import ConfigError

NAMES = list(yaml.safe_load(CATALOGUE.read_text()))


def test_every_source_of_a_dataset_is_in_the_catalogue_and_nothing_else_is() -> None:
    datasets = (
        CocoStuff(kind="coco_stuff"),
        PascalVoc(kind="pascal_voc"),
        PascalContext(kind="pascal_context", classes=59),
        Ade20k(kind="ade20k"),
        Ade20kFull(kind="ade20k_full"),
    )
    assert {name for dataset in datasets for name in dataset.sources()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_valid_and_can_be_had(name: str) -> None:
    entry = find_entry(name)
    assert entry.urls or entry.how_to_get
    assert str(entry.folder) != "."


def test_folder_is_what_all_files_lie_in() -> None:
    folders = {
        name: str(find_entry(name).folder)
        for name in ("coco_stuffthingmaps", "voc2012", "ade20k_full", "sbd")
    }
    assert folders == {
        "coco_stuffthingmaps": "coco/stuffthingmaps",
        "voc2012": "VOCdevkit/VOC2012",
        "ade20k_full": "ADE20K_2021_17_01",
        "sbd": "benchmark_RELEASE/dataset",
    }


def test_configuration_changes_fields_of_an_entry() -> None:
    entry = find_entry("ade20k", {"urls": ["http://localhost:1/x.zip"], "bytes": 5, "hash": None})
    assert (entry.urls, entry.bytes, entry.hash) == (("http://localhost:1/x.zip",), 5, None)
    assert entry.holds == find_entry("ade20k").holds


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ade", {}, r"config: data.sources: unknown source 'ade'; valid: .*ade20k_full"),
        ("ade20k", {"size": 5}, r"data.sources.ade20k: unknown key 'size'; valid: .*bytes"),
        ("ade20k", {"hash": "sha256:1"}, r"data.sources.ade20k.hash: .*\(got 'sha256:1'\)"),
        (
            "ade20k",
            {"into": "../elsewhere"},
            r"data.sources.ade20k.into: is a path that leads out of the data root",
        ),
        ("ade20k", {"archive": "a/b.zip"}, r"data.sources.ade20k.archive: .*\(got 'a/b.zip'\)"),
    ],
)
def test_bad_configuration_is_named(name: str, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_entry(name, changes)


def test_counts_go_by_folder_level_and_leave_out_hidden_files(tmp_path: Path) -> None:
    for path in (
        "a/1.jpg",
        "a/2.jpg",
        "a/._2.jpg",
        "a/3.png",
        "a/deep/4.jpg",
        "b/x/5.jpg",
        "b/y/6.jpg",
        ".b/z/7.jpg",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "a/folder.jpg").mkdir()
    (tmp_path / "c").symlink_to(tmp_path / "a")
    (tmp_path / "a/broken.jpg").symlink_to(tmp_path / "gone")
    holds = {"a/*.jpg": 2, "*/*/*.jpg": 4, "a/3.png": 1, "c/1.jpg": 1, "none/*": 1}
    assert count(holds, tmp_path) == {"a/*.jpg": 2, "*/*/*.jpg": 4, "a/3.png": 1, "c/1.jpg": 1, "none/*": 0}
    assert differences(holds, count(holds, tmp_path)) == "none/*: 0 of 1 files"


def test_catalogue_is_light_to_import() -> None:
    heavy = {"torch", "numpy", "requests"}
    code = f"import sys, deop.data.downloads.sources; sys.exit(not {heavy}.isdisjoint(sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)
