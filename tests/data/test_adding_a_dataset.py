"""docs/adding-a-dataset.md as it is printed: one file and some YAML make a dataset, and a plan of its table."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from deop.data.segmentation import HIDDEN, IGNORE, SegmentationDataset
from deop.errors import DeopError
from deop.jobs.plan import Plan
from deop.settings.files import merged, read_profile
from deop.stages import prepare_data

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/adding-a-dataset.md"
SIDE = 48


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.S)[1]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where the workflow runs: the page's module in a package of one's own, and four images of two cities."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "my_lab_of_streets").mkdir()
    (tmp_path / "my_lab_of_streets/__init__.py").touch()
    (tmp_path / "my_lab_of_streets/streets.py").write_text(block("python"))
    generator = np.random.default_rng(0)
    for split, names in (("train", ("oslo_1", "oslo_2", "rome_1")), ("val", ("oslo_3",))):
        place = tmp_path / "data/raw/streets" / split
        place.mkdir(parents=True)
        for name in names:
            pixels = generator.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{name}.jpg")
            label = np.zeros((SIDE, SIDE), np.uint8)
            label[10:], label[20:30], label[40:] = 7, 26, 33
            Image.fromarray(label).save(place / f"{name}_ids.png")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(root: Path, **settings: object) -> Plan:
    values = yaml.safe_load(block("yaml").replace("kind: streets", "kind: my_lab_of_streets.streets"))
    values["datasets"]["streets"] |= settings
    return Plan(merged(read_profile(root, ROOT / "config/tiny.yaml"), values), root)


def test_one_file_and_yaml_make_a_dataset_and_its_table(folder):
    plan = planned(folder)
    assert plan.tables["streets"].output == "results/streets.json"
    job = next(job for job in plan.jobs.values() if job.output.startswith("data/streets-"))
    prepare_data.run(job)
    seen = SegmentationDataset(job.output, "train", seen_only=True)
    assert len(seen) == 3 and seen.names == ["road", "car"]
    label = seen[0].label
    assert label[:10].unique().tolist() == [IGNORE] and label[40:].unique().tolist() == [HIDDEN]
    assert (label[25] == 1).all() and (label[35] == 0).all()
    assert SegmentationDataset(job.output, "val").names == ["road", "car", "bicycle"]
    # A setting of its own, which is checked like any other and is another dataset.
    other = next(
        job for job in planned(folder, city="oslo").jobs.values() if job.output.startswith("data/streets-")
    )
    assert other.key != job.key
    prepare_data.run(other)
    assert len(SegmentationDataset(other.output, "train")) == 2
    with pytest.raises(DeopError, match=r"datasets\.streets: unknown key 'town'; valid: .*city"):
        planned(folder, town="oslo")


def test_a_label_map_with_an_unknown_value_is_named(folder):
    path = folder / "data/raw/streets/train/rome_1_ids.png"
    Image.fromarray(np.full((SIDE, SIDE), 8, np.uint8)).save(path)
    job = next(job for job in planned(folder).jobs.values() if job.output.startswith("data/streets-"))
    with pytest.raises(DeopError, match=r"rome_1_ids\.png: holds id 8, which is neither a class nor ignored"):
        prepare_data.run(job)
