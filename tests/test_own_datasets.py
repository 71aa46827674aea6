"""A dataset that stands for none of the paper's: what its entry brings about, and what changes its key."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from pathlib import Path

import pytest
from park import write_park
from PIL import Image

from deop.data.segmentation import SegmentationDataset
from deop.errors import ConfigError, DeopError
from deop.jobs.job import Job
from deop.jobs.plan import Plan
from deop.stages import prepare_data

PARK = {
    "kind": "folder",
    "splits": {
        "train": {"images": "photos", "labels": "masks", "list": "training.txt"},
        "val": {"images": "photos", "labels": "masks", "list": "validation.txt"},
    },
    "label_suffixes": ["_mask.png"],
    "classes": [
        {"id": 1, "name": "bench", "kind": "thing"},
        {"id": 2, "name": "lawn"},
        {"id": 5, "name": "gravel path"},
        {"id": 7, "name": "fountain", "kind": "thing", "unseen": True},
    ],
    "ignore": [0, 255],
}
EMOJI = {"kind": "emoji_scenes", "style": "openmoji", "vocabulary": {"things": ["dog"]}, "train": 4, "val": 2}


@pytest.fixture
def park(tmp_path) -> dict:
    """The entry of a park that is there."""
    write_park(tmp_path / "somewhere/park")
    return copy.deepcopy(PARK) | {"root": str(tmp_path / "somewhere/park")}


def key(plan: Plan, dataset: str = "park") -> str:
    (found,) = {job.key for job in plan.jobs.values() if job.output.startswith(f"data/{dataset}-")}
    return found


def with_datasets(config: dict, **entries: dict) -> dict:
    return config | {"datasets": config["datasets"] | entries}


def test_an_entry_brings_a_table_of_its_own_and_nothing_else(root, config, park):
    before, after = Plan(config, root), Plan(with_datasets(config, park=park), root)
    assert Counter(stage for stage, _ in after.jobs.keys() - before.jobs.keys()) == {
        "prepare_data": 1,
        "learn_prompts": 1,
        "train_proposals": 1,
        "train_system": 2,
        "build_system": 3,
        "evaluate": 3,
        "table": 1,
    }
    assert before.jobs.keys() <= after.jobs.keys()
    table = after.tables["park"]
    assert table.output in after.outputs("table") and table.output == "results/park.json"
    assert set(table.inputs) == {f"{name}/park/0" for name in ("baseline", "simbaseline", "deop")}
    assert all(path.startswith("results/evaluations/park-") for path in table.inputs.values())


def test_a_dataset_that_is_only_tested_on_says_whose_systems(root, config, park):
    tested = park | {"splits": {"val": park["splits"]["val"]}}
    generated = EMOJI | {"train": 0}
    for trained_on in ("es171", "coco_stuff"):
        entries = {"park": tested, "own": generated}
        entries = {name: entry | {"trained_on": trained_on} for name, entry in entries.items()}
        plan = Plan(with_datasets(config, **entries), root)
        for name in entries:
            job = plan.jobs["evaluate", plan.tables[name].inputs[f"deop/{name}/0"].rpartition("-")[2][:12]]
            assert job.settings["transfer"] == {"trained_on": "es171"}
            assert job.inputs["segmentation"].startswith("checkpoints/segmentation/es171-")
            assert plan.tables[name].settings["table"]["datasets"][0]["trained_on"] == "es171"
    with pytest.raises(
        ConfigError,
        match=r"config: datasets: 'park' has no training images; .*datasets\.park\.trained_on .*es171",
    ):
        Plan(with_datasets(config, park=tested), root)


def test_its_name_does_wherever_a_dataset_is_named(root, config, edit):
    """In a profile's own tables, figures and pictures, and in the files that all profiles share."""
    config = with_datasets(config, own=EMOJI) | {
        "experiments": {"deop_own": {"severance": {"kind": "gps"}, "anchors": {"kind": "query"}}},
        "tables": {
            "mine": {
                "caption": "Mine",
                "rows": [{"label": "A", "experiment": "deop_own"}, {"label": "B", "experiment": "deop"}],
                "datasets": ["own", "voc"],
                "metrics": ["mIoU", "FPS"],
            },
            "abroad": {
                "caption": "Abroad",
                "trained_on": "own",
                "rows": [{"label": "A", "experiment": "deop"}],
                "datasets": ["es171"],
                "metrics": ["mIoU"],
            },
            "table3": {"datasets": ["coco_stuff", "voc", "own"]},
        },
        "figures": {
            "mine": {"kind": "per_class_iou", "title": "M", "experiments": ["deop_own"], "dataset": "own"}
        },
        "pictures": {"seen": {"kind": "scene", "experiment": "deop_own", "dataset": "own"}},
    }
    claim = {
        "claim": "C",
        "table": "mine",
        "better": "deop",
        "worse": "deop_own",
        "datasets": ["own"],
        "metric": "mIoU",
    }
    edit(root / "config/tables.yaml", "claims", to=[claim])
    plan = Plan(config, root)
    assert {"mine", "abroad", "own", "table3"} <= plan.tables.keys()
    assert {"deop_own/own/0", "deop_own/es20/0", "speed/own"} <= plan.tables["mine"].inputs.keys()
    assert "baseline_plus/own/0" in plan.tables["table3"].inputs
    abroad = plan.tables["abroad"].inputs["deop/es171/0"]
    by_output = {job.output: job for job in plan.jobs.values()}
    assert by_output[abroad].inputs["segmentation"].startswith("checkpoints/segmentation/own-")
    assert plan.named["picture"]["seen"].inputs["data"].startswith("data/own-")
    assert set(plan.named["figure"]["mine"].inputs) == {"deop_own/own/0"}
    (compared,) = plan.named["claims"]["claims"].settings["claims"]["claims"]
    assert (compared["dataset"], compared["place"], compared["reported"]) == ("own", "own", None)


def own(**values: object) -> dict:
    return {"datasets": {"own": EMOJI | values}}


def table(name: str, **values: object) -> dict:
    return {"tables": {name: values}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (own(trained_on="es17"), r"datasets\.own\.trained_on: unknown dataset 'es17'; valid: .*es171"),
        (own(trained_on="om20"), r"own\.trained_on: 'om20' has no training images; valid: es171, es20"),
        (own(trained_on=["es171"]), r"trained_on: the name of a dataset is needed \(got \['es171'\]\)"),
        ({"datasets": {"my park": EMOJI}}, r"'my park' cannot name files; valid: letters, digits, - and _"),
        ({"datasets": {"speed": EMOJI}}, r"datasets\.speed: results/speed\.csv is another result"),
        ({"datasets": {"claims": EMOJI}}, r"datasets\.claims: results/claims\.csv is another result"),
        ({"datasets": {"voc": EMOJI}}, r"'voc' is what tables call a dataset of the paper .*stands_for: voc"),
        (
            table("table3", datasets=["coco_stuff", "es171"]),
            r"config: tables\.table3\.datasets: 'coco_stuff' and 'es171' are the same dataset",
        ),
        (
            table("table3", datasets=["om20"]),
            r"config: tables\.table3\.datasets: 'om20' has no training images; .*datasets\.om20\.trained_on",
        ),
        (
            table("table2", trained_on="om20"),
            r"config: tables\.table2\.trained_on: 'om20' has no training images; valid: es171, es20",
        ),
        (table("table3", metrics=["IoU"]), r"config: tables\.table3\.metrics\.0: unknown value 'IoU'"),
        (
            {"pictures": {"confusion": {"kind": "scene", "experiment": "deop", "dataset": "es171"}}},
            r"config: pictures\.confusion: results/figures/confusion\.png is a figure; choose another name",
        ),
        (
            {"experiments": {"mine": {"severence": {}}}},
            r"config: experiments\.mine: unknown key 'severence'; valid: .*severance",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_line(root, config, changes, message):
    merged = config | {name: config.get(name, {}) | values for name, values in changes.items()}
    with pytest.raises(ConfigError, match=message) as caught:
        Plan(merged, root)
    assert "\n" not in str(caught.value)


def test_a_profile_may_add_an_experiment_that_a_picture_alone_shows(root, config):
    mine = {"anchors": {"kind": "query"}, "visual_prompts": True}
    picture = {"kind": "anchors", "experiment": "mine", "dataset": "es171"}
    plan = Plan(config | {"experiments": {"mine": mine}, "pictures": {"own": picture}}, root)
    assert plan.named["picture"]["own"].settings["network"]["visual_prompts"]


def test_two_datasets_that_results_could_not_tell_apart_are_refused(root, config, park):
    """They are named by the names and sizes of their files."""
    elsewhere = Path(park["root"]).parent / "copy"
    shutil.copytree(park["root"], elsewhere)
    two = with_datasets(config, park=park, other=park | {"root": str(elsewhere)})
    with pytest.raises(ConfigError, match=r"datasets\.other: .* same names and sizes as those of 'park'"):
        Plan(two, root)
    # Two names of the same files are one dataset.
    again = Plan(with_datasets(config, park=park, other=copy.deepcopy(park)), root)
    assert len([job for job in again.jobs.values() if job.output.startswith("data/park-")]) == 1


def test_a_profile_takes_out_what_the_shared_files_have(root, config):
    plan = Plan(config | {"tables": {"tableS3": None}, "figures": {"severance_depth": None}}, root)
    assert "tableS3" not in plan.tables and "severance_depth" not in plan.named["figure"]


def test_the_key_follows_the_files_and_not_their_place(root, config, park, tmp_path):
    top = Path(park["root"])
    config = with_datasets(config, park=park)
    keys = [key(Plan(config, root))]

    def changed() -> bool:
        keys.append(key(Plan(config, root)))
        return keys[-1] not in keys[:-1]

    # Another spelling of the same list, and another place: neither is another dataset.
    names = (top / "validation.txt").read_text().split()
    (top / "validation.txt").write_text("\n\n".join(f"{name}.jpg" for name in reversed(names)))
    assert not changed()
    top.rename(tmp_path / "moved")
    config["datasets"]["park"]["root"] = "moved"  # relative to the folder of config/
    assert not changed()
    top = tmp_path / "moved"

    # A list of other images; an image that no list names; a label map and an image that are changed.
    (top / "validation.txt").write_text("\n".join(names[1:]))
    assert changed()
    unlisted = top / "photos/2023/unlisted.jpg"
    Image.new("RGB", (4, 4)).save(unlisted)
    assert not changed()
    Image.new("L", (80, 64), 2).save(top / f"masks/{names[1]}_mask.png")
    assert changed()
    Image.new("RGB", (80, 64)).save(top / f"photos/{names[1]}.jpg")
    assert changed()
    # Without a list all images count.
    unlisted.unlink()
    del config["datasets"]["park"]["splits"]["val"]["list"]
    assert changed()
    for folder, name in (("photos", "new.jpg"), ("masks", "new_mask.png")):
        Image.new("L", (8, 8), 2).save(top / folder / name)
    assert changed()

    # Classes in a CSV file: its content counts, not its name or layout.
    classes = config["datasets"]["park"]["classes"]
    config["datasets"]["park"]["classes"] = "classes.csv"
    rows = [
        "id,name,kind,unseen",
        *(f"{c['id']},{c['name']},{c.get('kind', '')},{c.get('unseen', '')}" for c in classes),
    ]
    (top / "classes.csv").write_text("\n".join(rows))
    assert not changed()
    (top / "classes.csv").write_text("\n".join(rows).replace("lawn", "meadow"))
    assert changed()


def test_missing_files_are_said_before_any_job_by_key_and_path(root, config, park):
    top = Path(park["root"])

    def refused(message: str, **values: object) -> None:
        with pytest.raises(ConfigError, match=f"config: datasets.park.{message}") as caught:
            Plan(with_datasets(config, park=park | values), root)
        assert "\n" not in str(caught.value)

    name = (top / "validation.txt").read_text().split()[0]
    (top / f"masks/{name}_mask.png").unlink()
    refused(
        rf"splits\.val: .*park/masks: holds 3 of 4 label maps; none for {name} \(add it, or .*validation",
        splits={"val": park["splits"]["val"]},
        trained_on="es171",
    )
    (top / f"masks/{name}_mask.png").symlink_to(top / "moved.png")
    refused(r"splits\.train\.labels: .*_mask\.png: a link to a file that is not there")
    (top / f"masks/{name}_mask.png").unlink()
    (top / "validation.txt").write_bytes("caf\xe9".encode("latin-1"))
    refused(r"splits\.val\.list: .*validation\.txt: is not a text in UTF-8")
    (top / "validation.txt").unlink()
    refused(r"splits\.val\.list: .*park/validation\.txt: no such file")
    (top / "photos").rename(top / "pictures")
    refused(r"splits\.train\.images: .*park/photos: no such folder")
    refused(r"root: .*nowhere: no such folder", root=str(top / "nowhere"))


def test_files_that_change_after_planning_are_not_prepared_under_the_old_key(root, config, park, monkeypatch):
    monkeypatch.chdir(root)
    plan = Plan(with_datasets(config, park=park), root)
    job = plan.jobs["prepare_data", key(plan)]
    (Path(park["root"]) / "validation.txt").write_text("2023/img_0000\n")
    with pytest.raises(
        DeopError, match="park: its files changed after this run was planned; run the same command"
    ):
        prepare_data.run(job)
    plan = Plan(with_datasets(config, park=park), root)
    job = Job.model_validate_json(plan.jobs["prepare_data", key(plan)].model_dump_json())
    prepare_data.run(job)
    dataset = SegmentationDataset(job.output, "val")
    assert [dataset.image_name(index) for index in range(len(dataset))] == ["photos/2023/img_0000.jpg"]
