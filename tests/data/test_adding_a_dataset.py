"""docs/adding-a-dataset.md as it is printed: one file and some YAML take a new kind of dataset to the label maps."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from deop.data.segmentation import IGNORE, SegmentationDataset
from deop.errors import ConfigError
from deop.jobs.plan import Plan
from deop.settings.datasets import DATASETS, dataset_settings
from deop.stages import prepare_data

PAGE = Path(__file__).parents[2] / "docs/adding-a-dataset.md"
SIZE = (40, 24)


def block(language: str) -> str:
    """The first code block of a language."""
    return re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.S)[1]


def rectangle(name: str, left: int, top: int, right: int, bottom: int) -> dict:
    return {"class": name, "corners": [[left, top], [right, top], [right, bottom], [left, bottom]]}


@pytest.fixture
def streets(tmp_path: Path, monkeypatch) -> Iterator[dict]:
    """The entry of the dataset in a configuration; its reader is in a package of one's own."""
    for split, count in (("train", 3), ("val", 2)):
        folder = tmp_path / "raw/streets" / split
        folder.mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", SIZE, "grey").save(folder / f"{index}.jpg")
            shapes = [rectangle("road", 0, 12, 39, 23), rectangle("bicycle", 4 + index, 8, 9 + index, 17)]
            values = {"width": SIZE[0], "height": SIZE[1], "shapes": shapes}
            (folder / f"{index}.json").write_text(json.dumps(values))
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab/__init__.py").touch()
    (tmp_path / "my_lab/streets.py").write_text(block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    entry = yaml.safe_load(block("yaml"))["datasets"]["streets"]
    yield entry | {"kind": f"my_lab.{entry['kind']}"}
    DATASETS.pop("my_lab.streets", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


def test_one_file_and_yaml_take_a_dataset_to_label_maps_and_to_a_plan(tmp_path, root, config, streets):
    changed = config | {"datasets": config["datasets"] | {"streets": streets}}
    changed["data"] = {"root": str(tmp_path / "raw")}
    before, plan = Plan(config, root), Plan(changed, root)
    new = Counter(stage for stage, key in plan.jobs.keys() - before.jobs.keys())
    assert new["prepare_data"] == new["table"] == 1 and new["evaluate"] == 3

    (job,) = [job for job in plan.jobs.values() if job.output.startswith("data/streets-")]
    job = job.model_copy(update={"output": str(tmp_path / "data/streets-0123")})
    prepare_data.run(job)
    dataset = SegmentationDataset(job.output, "val")
    assert len(SegmentationDataset(job.output, "train")) == 3 and len(dataset) == 2
    assert dataset.names == ["road", "building", "car", "bicycle"] and dataset.card.unseen == [3]
    expected = np.full(SIZE[::-1], IGNORE)
    expected[12:24] = 0
    expected[8:18, 5:11] = 3  # of the second image
    assert np.array_equal(dataset[1].label.numpy(), expected)
    assert (Path(job.output) / "contact_sheet.png").exists()


def test_what_is_wrong_with_the_entry_is_named(root, config, streets):
    for changes, message in (
        (
            {"split_folder": True},
            r"datasets.streets: unknown key 'split_folder'; valid: kind, split_folders, splits",
        ),
        (
            {"kind": "my_lab.street"},
            r"datasets.streets.kind: unknown kind of dataset 'my_lab.street'; valid: ade20k, ",
        ),
        (
            {"kind": "street"},
            r"datasets.streets.kind: unknown kind of dataset 'street'; valid: ade20k, ade20k_full",
        ),
    ):
        entry = streets | changes
        with pytest.raises(ConfigError, match=message):
            Plan(config | {"datasets": config["datasets"] | {"streets": entry}}, root)


def test_a_module_without_a_dataset_is_named(tmp_path, streets):
    (tmp_path / "my_lab/empty.py").touch()
    with pytest.raises(
        ConfigError, match=r"kind: module my_lab.empty registers no dataset; see docs/adding-a-dat"
    ):
        dataset_settings("my_lab.empty")
