"""What changed on disk since it was made is never used: one line says which file, and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from deop.data.segmentation import SegmentationDataset
from deop.errors import DeopError
from deop.jobs.artifacts import artifact
from deop.jobs.integrity import write_sealed
from deop.jobs.job import Job
from deop.models.weight_files import checked_weights, save_weights


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def blacken(path: Path) -> None:
    with Image.open(path) as image:
        Image.new("RGB", image.size).save(path)


def remove(path: Path) -> None:
    path.unlink()


def garble(path: Path) -> None:
    path.write_bytes(b"\xff\xfe{" + path.read_bytes())


def lose_a_row(path: Path) -> None:
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def rename_a_class(path: Path) -> None:
    path.write_text(path.read_text().replace('"dog"', '"wolf"'))


def unmark_unseen(path: Path) -> None:
    path.write_text(path.read_text().replace("true", "false"))


def strip_hashes(path: Path) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: values[key] for key in values.keys() - {"sha256", "files"}}))


@pytest.mark.faults(
    "an image of a prepared dataset is changed, truncated, empty or gone", "the job ends with its path"
)
@pytest.mark.parametrize("damage", [flip, truncate, empty, blacken, remove])
@pytest.mark.parametrize("split", ["train", "val"])
def test_of_an_image(scenes, training, refused, damage: Callable, split):
    image = sorted((scenes / "images" / split).iterdir())[1]
    damage(image)
    if split == "train":
        assert str(image) in refused(training())
    else:
        dataset = SegmentationDataset(scenes, "val")
        with pytest.raises(DeopError, match=str(image)):
            list(dataset[index] for index in range(2))


@pytest.mark.faults(
    "a label map of a prepared dataset is changed",
    "the job ends with its path, before training if it was changed before",
)
def test_of_a_label_map_while_a_job_runs(scenes):
    """After all of them were checked at its start."""
    dataset = SegmentationDataset(scenes, "val").check_labels()
    flip(dataset.entries[1].label)
    with pytest.raises(DeopError, match=str(dataset.entries[1].label)):
        dataset[1]


@pytest.mark.faults(
    "an image was damaged before its dataset was prepared", "the job that reads it ends with its path"
)
def test_of_an_image_that_was_damaged_before_it_was_prepared(scenes):
    from deop.data.segmentation import write_split

    dataset = SegmentationDataset(scenes, "val")
    truncate(dataset.entries[1].image)
    write_split(scenes, "val", list(dataset.entries))
    with pytest.raises(DeopError, match=rf"{dataset.entries[1].image}: cannot be read as an image"):
        SegmentationDataset(scenes, "val")[1]


@pytest.mark.faults(
    "`dataset.json`, `provenance.json` or a split file of a dataset is edited, truncated, not UTF-8 or gone",
    "the job does not start, and names the file",
)
@pytest.mark.parametrize(
    "name, damage",
    [
        ("dataset.json", rename_a_class),
        ("dataset.json", unmark_unseen),
        ("dataset.json", truncate),
        ("dataset.json", garble),
        ("dataset.json", remove),
        ("train.csv", lose_a_row),
        ("train.csv", flip),
        ("train.csv", garble),
        ("train.csv", empty),
        ("val.csv", lose_a_row),
        ("val.csv", remove),
        ("provenance.json", strip_hashes),
        ("provenance.json", truncate),
        ("provenance.json", garble),
        ("provenance.json", empty),
        ("provenance.json", remove),
    ],
)
def test_of_a_list_or_card_of_a_dataset(scenes, training, refused, name, damage: Callable):
    damage(scenes / name)
    told = refused(training())
    assert str(scenes / name) in told and f"remove {scenes}" in told


def edit_a_score(path: Path) -> None:
    path.write_text(path.read_text().replace("0.25", "0.75"))


def edit_pixels(path: Path) -> None:
    beside = path.with_suffix(".csv")
    beside.write_text(beside.read_text().replace("9", "8"))


def remove_pixels(path: Path) -> None:
    path.with_suffix(".csv").unlink()


@pytest.mark.faults(
    "an evaluation, or the CSV beside it, is edited, truncated or gone", "no table is made from it"
)
@pytest.mark.parametrize(
    "damage", [edit_a_score, edit_pixels, remove_pixels, strip_hashes, truncate, garble, empty, remove]
)
def test_of_an_evaluation(tmp_path, refused, damage: Callable):
    path, beside = tmp_path / "deop-0.json", tmp_path / "deop-0.csv"
    beside.write_text("image,truth,predicted,pixels\n0,1,1,9\n")
    write_sealed(path, {"metrics": {"hIoU": 0.25}, "pair": (1, 2), "provenance": {}}, beside=(beside,))
    damage(path)
    job = Job(stage="table", key="t", output=str(tmp_path / "t.json"), inputs={"deop/es20/0": str(path)})
    told = refused(job)
    assert (str(beside) if "pixels" in damage.__name__ else str(path)) in told and f"remove {path}" in told


@pytest.mark.faults(
    "the provenance of weights has no hashes, is truncated or is gone", "the weights are not loaded"
)
@pytest.mark.parametrize("damage", [strip_hashes, truncate, garble, empty, remove])
def test_of_the_provenance_of_weights(tmp_path, damage: Callable):
    import torch

    output = tmp_path / "network"
    with artifact(Job(stage="toy", key="0" * 12, output=str(output))) as workspace:
        save_weights({"weight": torch.zeros(2)}, workspace.path)
    checked_weights(output)
    damage(output / "provenance.json")
    with pytest.raises(DeopError, match=str(output / "provenance.json")):
        checked_weights(output)
