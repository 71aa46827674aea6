"""COCO results of drawn label maps and of an evaluation, read back and scored by pycocotools.

The scoring here knows nothing of how ``deop`` writes and counts.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import systems
import torch
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO
from typer.testing import CliRunner, Result

from deop.cli import app
from deop.data.card import DatasetCard, LabelledClass
from deop.data.class_lists import labelled_classes
from deop.data.coco_results import entries, image_ids, write_results
from deop.data.segmentation import Entry, write_card, write_label_map, write_split
from deop.evaluation.metrics import SegmentationMetrics
from deop.jobs.job import Job
from deop.methods.deop import DeOP
from deop.settings.methods import DeOPSettings
from deop.settings.stages import Evaluation
from deop.settings.system import Inference
from deop.stages import evaluate
from deop.tools import export_coco

CATEGORIES = (92, 7, 183, 1)
IMAGES = {139: (9, 14), 285: (16, 5), 632: (1, 1)}  # by id, height and width


def ground_truth(maps: dict[int, np.ndarray], categories: tuple[int, ...]) -> COCO:
    """Label maps by image id as COCO's annotations, run lengths counted here; negative labels are of no class."""
    annotations = []
    for image, label_map in maps.items():
        height, width = label_map.shape
        for label, category in enumerate(categories):
            runs = [(of, len(list(run))) for of, run in groupby((label_map == label).T.flatten())]
            counts = [length for _, length in runs]
            rle = {"size": [height, width], "counts": [0, *counts] if runs[0][0] else counts}
            if (label_map == label).any():
                annotation = {"id": len(annotations) + 1, "image_id": image, "category_id": category}
                annotations.append(annotation | {"segmentation": rle, "iscrowd": 1})
    coco = COCO()
    images = [{"id": image, "height": of.shape[0], "width": of.shape[1]} for image, of in maps.items()]
    kinds = [{"id": category, "name": str(category)} for category in categories]
    coco.dataset = {"images": images, "categories": kinds, "annotations": annotations}
    coco.createIndex()
    return coco


def scores(truth: COCO, results: COCO, convention: str) -> dict:
    """pAcc, mIoU and IoU by category from the areas of intersections of run-length encodings."""
    categories = truth.getCatIds()
    confusion = dict.fromkeys(((t, p) for t in categories for p in categories), 0)
    for image in truth.getImgIds():
        for expected in truth.imgToAnns[image]:
            for found in results.imgToAnns[image]:
                both = mask.merge([truth.annToRLE(expected), results.annToRLE(found)], intersect=True)
                confusion[expected["category_id"], found["category_id"]] += int(mask.area(both))
    iou = {}
    for category in categories:
        of_truth = sum(confusion[category, other] for other in categories)
        predicted = sum(confusion[other, category] for other in categories)
        union = of_truth + predicted - confusion[category, category]
        counts = of_truth if convention == "ground_truth" else union
        iou[category] = confusion[category, category] / union if counts else math.nan
    counted = [value for value in iou.values() if not math.isnan(value)]
    correct = sum(confusion[category, category] for category in categories)
    return {"pAcc": correct / sum(confusion.values()), "mIoU": sum(counted) / len(counted), "iou": iou}


@pytest.fixture
def maps() -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Truth, with pixels without a class (-1), and prediction of each image."""
    generator = np.random.default_rng(0)
    truth = {image: generator.integers(-1, 4, size) for image, size in IMAGES.items()}
    predicted = {image: np.where(generator.random(of.shape) < 0.6, of, 3) for image, of in truth.items()}
    return truth, {image: np.where(of < 0, 2, of) for image, of in predicted.items()}


def written(predicted: dict[int, np.ndarray], path: Path) -> Path:
    with path.open("w") as file:
        write_results((entries(of, image, CATEGORIES) for image, of in predicted.items()), file)
    return path


def test_label_maps_come_back_as_they_were(maps, tmp_path):
    truth, predicted = maps
    coco = ground_truth(truth, CATEGORIES)
    results = coco.loadRes(str(written(predicted, tmp_path / "results.json")))
    for image, expected in predicted.items():
        found = np.full(expected.shape, -1)
        for annotation in results.imgToAnns[image]:
            pixels = results.annToMask(annotation).astype(bool)
            assert pixels.any() and (found[pixels] == -1).all()  # masks do not overlap
            found[pixels] = CATEGORIES.index(annotation["category_id"])
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("convention", ["occurring", "ground_truth"])
def test_cocos_tools_find_the_scores_of_our_metrics(maps, tmp_path, convention):
    truth, predicted = maps
    metrics = SegmentationMetrics(4, [1], ignore=-1, convention=convention)
    for image in truth:
        metrics.update(*(torch.from_numpy(of[image])[None] for of in (predicted, truth)))
    ours = metrics.compute()
    coco = ground_truth(truth, CATEGORIES)
    theirs = scores(coco, coco.loadRes(str(written(predicted, tmp_path / "results.json"))), convention)
    assert theirs["pAcc"] == pytest.approx(ours.pacc) and theirs["mIoU"] == pytest.approx(ours.miou)
    assert [theirs["iou"][category] for category in CATEGORIES] == pytest.approx(ours.iou, nan_ok=True)


@pytest.mark.parametrize(
    ("table", "first", "last"), [("coco_stuff", 1, 182), ("ade20k_150", 1, 150), (None, 1, 2)]
)
def test_categories_are_the_owners_ids_counted_from_one(table, first, last):
    """COCO-Stuff's label maps hold its category ids less one; without ids of owners, labels are counted."""
    drawn = tuple(LabelledClass(name=name, kind="thing") for name in ("dog", "cow"))
    classes = drawn if table is None else labelled_classes(table, "cleaned")
    ids = export_coco.category_ids(DatasetCard(name="one", classes=classes))
    assert (ids[0], ids[-1], len(set(ids))) == (first, last, len(classes))


def test_a_file_without_entries_is_a_list_all_the_same():
    file = io.StringIO()
    write_results([[], []], file)
    assert json.loads(file.getvalue()) == []
    assert entries(np.full((2, 2), -1), 1, CATEGORIES) == []


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["000000000139.jpg", "000000581781.jpg"], [139, 581781]),
        (["COCO_val2014_000000000042.jpg", "7.png"], [42, 7]),
        (["ADE_val_00000001.jpg", "chair.jpg"], [1, 2]),
        (["2007_000032.jpg", "2007_000033.jpg", "2008_000032.jpg"], [1, 2, 3]),
    ],
)
def test_ids_are_the_numbers_of_files_where_those_tell_images_apart(names, ids):
    assert image_ids([Path("images/val") / name for name in names]) == ids


@pytest.fixture
def job(maps, tmp_path) -> Job:
    """An evaluation of a small random network on the images of above."""
    generator, root = np.random.default_rng(1), tmp_path / "data"
    (root / "images").mkdir(parents=True)
    files = []
    for image, label_map in maps[0].items():
        entry = Entry(root / f"images/{image:012d}.png", root / f"{image}.png", (0,))
        Image.fromarray(generator.integers(0, 256, (*label_map.shape, 3), np.uint8)).save(entry.image)
        write_label_map(entry.label, label_map, 255)
        files.append(entry)
    classes = tuple(
        LabelledClass(name=name, kind="thing", unseen=name == "cow", raw_id=category)
        for name, category in zip(("dog", "cow", "grass", "sky"), CATEGORIES)
    )
    write_card(root, DatasetCard(name="drawn", classes=classes))
    write_split(root, "val", files)
    segmenter = systems.build(DeOPSettings(text_prompts="templates", templates=("a {}",)))
    names = [entry.name for entry in classes]
    folder = systems.save(segmenter, tmp_path / "system", names, inference=Inference(short_side=32))
    return Job(
        stage="evaluate",
        key="k",
        output=str(tmp_path / "evaluation.json"),
        inputs={"data": str(root), "system": str(folder)},
        settings={"evaluation": Evaluation(short_side=32).model_dump()},
    )


def test_an_exported_evaluation_scores_as_the_evaluation_did(job, maps, tmp_path):
    evaluate.run(job)
    path = tmp_path / "new folder/results.json"
    export_coco.run(job, path)
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]
    truth = ground_truth(maps[0], CATEGORIES)
    theirs = scores(truth, truth.loadRes(str(path)), "occurring")
    ours = json.loads(Path(job.output).read_text())
    assert {name: theirs[name] for name in ("pAcc", "mIoU")} == pytest.approx(
        {name: ours["metrics"][name] for name in ("pAcc", "mIoU")}
    )
    found = [None if math.isnan(theirs["iou"][of]) else theirs["iou"][of] for of in CATEGORIES]
    assert found == pytest.approx(list(ours["per_class_iou"].values()))
    assert len({entry["category_id"] for entry in json.loads(path.read_text())}) > 1


@pytest.mark.faults(
    "`deop export-coco` is killed",
    "a rerun goes on from there, and gives the same file; the one before stays until then",
)
def test_an_export_that_was_killed_is_taken_up_where_it_was(job, tmp_path, monkeypatch):
    whole, path = tmp_path / "whole.json", tmp_path / "results.json"
    path.write_text("what an earlier export left")
    export_coco.run(job, whole)
    assert {entry["category_id"] for entry in json.loads(whole.read_text())} <= set(CATEGORIES)
    label, seen = DeOP.label, []

    def dies(self, images, *arguments):
        seen.append(images.shape)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return label(self, images, *arguments)

    monkeypatch.setattr(DeOP, "label", dies)
    with pytest.raises(KeyboardInterrupt):
        export_coco.run(job, path)
    assert path.read_text() == "what an earlier export left"
    (partial,) = tmp_path.glob("*.partial")
    with partial.open("a") as file:
        file.write('[{"image_id": 28')  # what a kill in the middle of a line leaves
    export_coco.run(job, path)
    assert len(seen) == 4  # two of three images after the one that was done
    assert path.read_bytes() == whole.read_bytes() and not list(tmp_path.glob("*.partial"))


def exported(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export-coco", *map(str, arguments)])


def test_a_system_in_a_folder_is_exported_on_the_dataset_that_is_named(job, tmp_path):
    by_job, by_command = tmp_path / "by_job.json", tmp_path / "by_command.json"
    export_coco.run(job, by_job)
    done = exported(by_command, "--system", job.inputs["system"], "--data", job.inputs["data"])
    assert done.exit_code == 0, done.output
    assert by_command.read_bytes() == by_job.read_bytes()


@pytest.mark.faults(
    "two processes are started at one job, export or archive",
    "the second waits, and does not repeat what the first finished",
)
def test_two_exports_of_a_system_do_not_write_at_once(job, tmp_path, monkeypatch):
    """Both would add their lines to one partial file."""
    locked = []

    def run(*_: object) -> None:
        with (Path(job.inputs["system"]) / "config.json").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                locked.append(True)

    monkeypatch.setattr(export_coco, "run", run)
    exported(tmp_path / "out.json", "--system", job.inputs["system"], "--data", job.inputs["data"])
    assert locked == [True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--system", "system"), "--data is needed: nothing says which validation set system is to be tried"),
        (("--system", "system", "--data", "gone"), "gone is not there, the data of evaluate"),
        (("--system", "data", "--data", "data"), "--system data: the folder holds no config.json"),
    ],
)
def test_what_is_not_there_is_named_in_one_line(job, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = exported("results.json", *arguments)
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert not list(tmp_path.glob("results*"))
