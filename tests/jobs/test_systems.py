"""Trained systems by the names that people give them, and the commands that take such a name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import systems
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from deop.cli import app
from deop.data.card import DatasetCard, LabelledClass
from deop.data.segmentation import Entry, write_card, write_label_map, write_split
from deop.errors import DeopError
from deop.jobs.plan import Plan
from deop.jobs.systems import find_system, list_systems
from deop.settings.files import read_profile
from deop.settings.methods import DeOPSettings
from deop.settings.system import Inference

NAMES = ["dog", "cow"]
SETTINGS = DeOPSettings(text_prompts="templates", templates=("a {}",))


@pytest.fixture
def plan(root, config, monkeypatch) -> Plan:
    """Of one table with two experiments, two seeds and two datasets, in the working directory."""
    (root / "config/config.yaml").write_text(yaml.safe_dump(config | {"seeds": [0, 1]}))
    rows = [{"label": name, "experiment": name} for name in ("deop", "baseline")]
    table = {"caption": "One", "rows": rows, "datasets": ["coco_stuff", "voc"], "metrics": ["hIoU"]}
    tables = yaml.safe_load((root / "config/tables.yaml").read_text())
    tables |= {"tables": {"one": table}, "figures": {}, "pictures": {}, "claims": []}
    (root / "config/tables.yaml").write_text(yaml.safe_dump(tables))
    (root / "config/other.yaml").write_text(yaml.safe_dump({"seeds": [5], "evaluation": {"short_side": 64}}))
    monkeypatch.chdir(root)
    return Plan(read_profile(Path()))


def train(plan: Plan, experiment: str, seed: int) -> Path:
    """A small system where the plan has that one."""
    job = plan.systems["es171", experiment, seed]
    segmenter = systems.build(SETTINGS)
    with torch.no_grad():
        segmenter.text_prompt.no_object.add_(seed)
    return systems.save(segmenter, Path(job.output), NAMES, inference=Inference(short_side=32))


def measure(plan: Plan, experiment: str, seed: int, **metrics: float | None) -> None:
    output = Path(plan.evaluations["es171", experiment, seed].output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"metrics": metrics}))


def deop(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def error_line(done: Result) -> str:
    assert done.exit_code == 1 and done.stderr.startswith("deop: "), done.output
    assert len(done.stderr.splitlines()) == 1
    return done.stderr.strip()


def test_all_systems_of_the_tables_are_listed_once(plan):
    found = list_systems(Path())
    assert [system.name for system in found] == [
        f"{dataset}/{experiment}{seed}"
        for experiment in ("deop", "baseline")
        for dataset in ("es171", "es20")
        for seed in ("", "/1")
    ]
    assert not any(system.trained or system.scores for system in found)
    assert [str(system.folder) for system in found] == [job.output for job in plan.systems.values()]
    assert len({system.folder for system in found}) == len(found)


def test_a_system_is_found_by_its_name_its_seed_or_its_folder(plan):
    folders = [train(plan, "deop", seed) for seed in (0, 1)]
    assert folders[0].name.startswith("es171-deop-seed0-")
    for name in ("es171/deop", "es171/deop/0"):
        found = find_system(name, Path())
        assert found.folder == folders[0] and found.evaluation == plan.evaluations["es171", "deop", 0]
    assert find_system("es171/deop/1", Path()).folder == folders[1]
    given = find_system(str(folders[1]), Path("elsewhere"))  # no configuration is needed for a folder
    assert given.folder == folders[1] and given.evaluation is None


@pytest.mark.parametrize(
    ("name", "message", "of_segment"),
    [
        (
            "es171/doep",
            r"neither a folder nor a system .*; trained: es171/deop, es171/deop/1 \(",
            "es171/doep: no system of that name; nearest: .*; trained here: es171/deop, es171/deop/1; bundled",
        ),
        ("es171/deop/2", "neither a folder nor a system", "es171/deop/2: no system of that name; nearest"),
        (
            "es20/deop",
            r"was not trained yet; `snakemake checkpoints/systems/es20-deop-\S+` trains",
            r"es20/deop: was not trained yet; `snakemake checkpoints/systems/es20-deop-\S+` trains",
        ),
        ("config", "the folder holds no config.json, so it is no trained system", "config: the folder holds no config"),
    ],
)  # fmt: skip
def test_what_is_no_trained_system_is_said_with_what_there_is(plan, name, message, of_segment, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for seed in (0, 1):
        train(plan, "deop", seed)
    with pytest.raises(DeopError, match=f"--system {name}: {message}"):
        find_system(name, Path())
    Image.new("RGB", (8, 8)).save("photo.png")
    line = error_line(deop("segment", "photo.png", "--system", name, "--output", "out"))
    assert re.search(of_segment, line)
    assert not Path("out").exists()


def test_the_target_that_is_named_for_training_is_one_of_the_workflow(plan):
    with pytest.raises(DeopError) as error:
        find_system("es20/baseline", Path())
    (target,) = re.findall(r"`snakemake (\S+)`", str(error.value))
    assert target == f"{plan.systems['es20', 'baseline', 0].output}/config.json"


def test_systems_prints_what_is_trained_and_its_scores(plan):
    folder = train(plan, "deop", 0)
    train(plan, "baseline", 1)
    measure(plan, "deop", 0, hIoU=0.3456, mIoU=0.5)
    measure(plan, "baseline", 1, hIoU=None, mIoU=0.25)  # without unseen classes there is no hIoU
    done = deop("systems")
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert lines["system"] == ["trained", "hIoU", "mIoU", "folder"]
    assert lines["es171/deop"] == ["yes", "34.6", "50.0", str(folder)]
    assert lines["es171/deop/1"] == ["no"]
    assert lines["es171/baseline/1"][:2] == ["yes", "25.0"]
    assert set(lines) == {"system", "deop-mini", *(system.name for system in list_systems(Path()))}


def test_the_scores_of_another_dataset_are_not_shown_for_a_systems_own(plan, root, edit):
    """A table of transfers adds the evaluation on a dataset that the system was not trained on."""
    edit(root / "config/tables.yaml", "tables", "one", "datasets", to=["voc20"])
    edit(root / "config/tables.yaml", "tables", "one", "trained_on", to="coco_stuff")
    found = list_systems(Path())
    assert found[0].name == "es171/deop"
    assert all(each.evaluation is None for each in found)


def test_another_profile_has_other_systems(plan):
    other = Plan(read_profile(Path(), Path("config/other.yaml")))
    folder = train(other, "deop", 5)
    assert "es171/deop/5" not in deop("systems").stdout
    assert re.search(
        rf"es171/deop/5 +yes +{folder}", deop("systems", "--profile", "config/other.yaml").stdout
    )
    found = find_system("es171/deop/5", Path(), [Path("config/other.yaml")])
    assert found.folder == folder
    assert "gone.yaml" in error_line(deop("systems", "--profile", "gone.yaml"))


def test_a_system_segments_and_travels_by_its_name(plan):
    folders = [train(plan, "deop", seed) for seed in (0, 1)]
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    Image.fromarray(pixels).save("photo.png")
    for name, output in (("es171/deop", "zero"), ("es171/deop/1", "one"), (str(folders[1]), "folder")):
        done = deop("segment", "photo.png", "--system", name, "--output", output, "--classes", "cat, dog")
        assert done.exit_code == 0, done.output
        assert Image.open(f"{output}/photo.png").size == (36, 24)
    told = {name: json.loads(Path(name, "classes.json").read_text()) for name in ("zero", "one", "folder")}
    assert told["one"] == told["folder"] and told["zero"]["weights"] != told["one"]["weights"]
    assert deop("pack", "packed", "--system", "es171/deop").exit_code == 0
    assert find_system("packed", Path()).trained


def test_the_evaluation_of_a_system_is_exported_by_its_name(plan):
    train(plan, "deop", 0)
    asked = ("export-coco", "results.json", "--system", "es171/deop")
    data = Path(plan.evaluations["es171", "deop", 0].inputs["data"])
    assert f"{data} is not there, the data of evaluate" in error_line(deop(*asked))
    (data / "images").mkdir(parents=True)
    entry = Entry(data / "images/7.png", data / "7.png", (0,))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)).save(entry.image)
    write_label_map(entry.label, np.zeros((24, 36), int), 255)
    write_card(data, DatasetCard(name="d", classes=tuple(LabelledClass(name=n, kind="thing") for n in NAMES)))
    write_split(data, "val", [entry])
    done = deop(*asked)
    assert done.exit_code == 0, done.output
    assert {result["image_id"] for result in json.loads(Path("results.json").read_text())} == {7}
