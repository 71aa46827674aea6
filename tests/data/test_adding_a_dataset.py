"""docs/adding-a-dataset.md as it is printed: one file and some YAML make a dataset and its table."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
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


def block(language: str, page: Path = PAGE) -> str:
    """The first code block of a language."""
    return re.search(rf"```{language}\n(.*?)```", page.read_text(), re.S)[1]


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


def configuration() -> dict:
    """The page's, with the kind by its whole name, since its module is not one of this package's."""
    return yaml.safe_load(block("yaml").replace("kind: streets", "kind: my_lab_of_streets.streets"))


def planned(root: Path, **settings: object) -> Plan:
    values = configuration()
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


@pytest.mark.slow
def test_the_workflow_evaluates_a_method_on_it(folder):
    """The training-free method of docs/adding-a-method.md, so that nothing has to be trained."""
    for name in ("Snakefile", "workflow", "profiles", "environment.yml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    code = block("python", ROOT / "docs/adding-a-method.md")
    name = '"my_lab_of_streets.dense_clip"'
    (folder / "my_lab_of_streets/dense_clip.py").write_text(code.replace('"dense_clip"', name))
    values = configuration() | {
        "clip": {"retrain": False},
        "experiments": {"dense_clip": {"method": "my_lab_of_streets.dense_clip"}},
        "tables": {
            "streets": {
                "caption": "Streets",
                "rows": [{"label": "Plain CLIP", "experiment": "dense_clip"}],
                "metrics": ["pAcc", "hIoU"],
                "datasets": ["streets"],
            }
        },
    }
    (folder / "config/streets.yaml").write_text(yaml.safe_dump(values))
    tools = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
    }
    profiles = ["config/tiny.yaml", "config/streets.yaml"]
    done = subprocess.run(
        ["snakemake", "--cores", "2", "results/streets.csv", "--configfile", *profiles],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    table = pd.read_csv(folder / "results/streets.csv", index_col="method")
    [path] = (folder / "results/evaluations").glob("streets-dense_clip-seed0-*.csv")
    pixels = pd.read_csv(path)
    # The label map's stripes: 10 + 10 rows of road, 10 of car, 8 of bicycle; 10 rows have no class.
    assert (pixels.groupby("truth")["pixels"].sum() / SIDE).to_dict() == {0: 20, 1: 10, 2: 8}
    right = pixels.loc[pixels["truth"] == pixels["predicted"], "pixels"].sum()
    assert table.loc["Plain CLIP", "streets.pAcc"] == pytest.approx(100 * right / (38 * SIDE), abs=0.051)
