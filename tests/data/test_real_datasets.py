"""Real datasets, drawn small in their owners' layouts: what is read, prepared, refused and taken up again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from real_layouts import LAYOUTS, class_ids

from deop.data.emoji import dataset as emoji_scenes
from deop.data.emoji.settings import EmojiScenes
from deop.data.prepare import prepare
from deop.data.readers.ade20k_full import read_object_map
from deop.data.segmentation import HIDDEN, IGNORE, SegmentationDataset, read_card, restore_raw
from deop.errors import DeopError
from deop.jobs.job import Job
from deop.settings.datasets import Vocabulary, dataset_opener, dataset_settings
from deop.stages import prepare_data

# settings, table of classes, ids without a class, bits of a prepared label map
CASES = {
    "coco_stuff": ({"kind": "coco_stuff"}, "coco_stuff", {255}, 8),
    "pascal_voc": ({"kind": "pascal_voc"}, "pascal_voc", {0, 255}, 8),
    "context-59": ({"kind": "pascal_context", "classes": 59}, "pascal_context_59", None, 8),
    "context-459": ({"kind": "pascal_context", "classes": 459}, "pascal_context_459", {0}, 16),
    "ade20k": ({"kind": "ade20k"}, "ade20k_150", {0}, 8),
    "ade20k_full": ({"kind": "ade20k_full"}, "ade20k_847", None, 16),
}


def settings(kind: str, **values):
    return dataset_settings(kind).model_validate({"kind": kind, "complete": False, **values})


def open_raw(settings, root: Path):
    return dataset_opener(settings.kind)(settings, root)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """All layouts below one data root, and the ids that are in their label maps."""
    root = tmp_path_factory.mktemp("raw")
    return root, {kind: write(root) for kind, write in LAYOUTS.items()}


@pytest.fixture
def coco(tmp_path):
    root = tmp_path / "raw"
    return root, LAYOUTS["coco_stuff"](root, train=4, val=2)


@pytest.mark.parametrize("case", CASES)
def test_label_maps_hold_the_owners_classes(raw, tmp_path, case):
    values, table, void, bits = CASES[case]
    root, truth = raw[0], raw[1][values["kind"]]
    card = prepare(tmp_path, case, settings(**values), root)
    assert read_card(tmp_path) == card and not (tmp_path / "unfinished").exists()
    ids = class_ids(table)
    assert card.images == {split: len(maps) for split, maps in truth.items()}
    seen_without_class = set()
    for split, maps in truth.items():
        dataset = SegmentationDataset(tmp_path, split)
        assert [entry.label.stem for entry in dataset.entries] == sorted(maps)
        for index, entry in enumerate(dataset.entries):
            expected = maps[entry.label.stem]
            image, label = dataset[index]
            label = label.numpy()
            for value in np.unique(expected):
                want = ids.index(value) if value in ids else IGNORE
                assert set(label[expected == value].tolist()) == {want}
                if value not in ids:
                    seen_without_class.add(int(value))
            assert entry.classes == tuple(sorted(set(np.unique(label).tolist()) - {IGNORE}))
            assert entry.image.is_relative_to(root) and image.shape[1:] == expected.shape
            assert Image.open(entry.label).mode == ("L" if bits == 8 else "I;16")
            kept = np.where(np.isin(expected, ids), expected, card.raw_ignore)
            assert np.array_equal(restore_raw(label, card), kept)
    assert seen_without_class == void if void else len(seen_without_class) > 1
    assert not list(tmp_path.rglob("*.jpg"))


def test_coco_stuff_goes_through_preparation_and_back_unchanged(coco, tmp_path):
    root, _ = coco
    card = prepare(tmp_path / "coco", "coco", settings("coco_stuff"), root)
    dataset = SegmentationDataset(tmp_path / "coco", "train")
    for index, entry in enumerate(dataset.entries):
        theirs = np.asarray(Image.open(root / f"coco/stuffthingmaps/train2017/{entry.label.name}"))
        assert np.array_equal(restore_raw(dataset[index].label.numpy(), card), theirs)


@pytest.mark.parametrize("case", CASES)
def test_every_id_is_a_class_or_ignored(raw, case):
    values, table, _, _ = CASES[case]
    source = open_raw(settings(**values), raw[0])
    ids = {entry.raw_id for entry in source.classes}
    assert ids == set(class_ids(table)) and not ids & source.ignored
    every = {
        "coco_stuff": {*range(182), 255},
        "pascal_voc": {*range(21), 255},
        "pascal_context": set(range(460)),
        "ade20k": set(range(151)),
        "ade20k_full": set(range(3689)),
    }
    assert ids | source.ignored == every[values["kind"]]


def test_voc_is_trained_on_with_its_own_masks_and_those_of_sbd(raw):
    source = open_raw(settings("pascal_voc"), raw[0])
    suffixes = [pair.label.suffix for pair in source.splits["train"]]
    assert suffixes == [".png"] * 4 + [".mat"] * 5
    assert not {pair.key for pair in source.splits["train"]} & {pair.key for pair in source.splits["val"]}
    only_tested = open_raw(settings("pascal_voc", splits=["val"]), raw[0])
    assert set(only_tested.splits) == {"val"}


def test_plain_grey_masks_are_read_like_palettes(raw, tmp_path):
    root = tmp_path / "raw"
    shutil.copytree(raw[0] / "VOCdevkit", root / "VOCdevkit")
    for path in (root / "VOCdevkit/VOC2012/SegmentationClass").iterdir():
        picture = Image.open(path)
        assert picture.mode == "P"
        Image.fromarray(np.asarray(picture)).save(path)
    for name, place in (("palette", raw[0]), ("grey", root)):
        prepare(tmp_path / name, "voc", settings("pascal_voc", splits=["val"]), place)
    assert tree(tmp_path / "palette/labels") == tree(tmp_path / "grey/labels")


def test_training_sees_no_unseen_class(coco, tmp_path):
    card = prepare(tmp_path / "out", "coco", settings("coco_stuff"), coco[0])
    whole = SegmentationDataset(tmp_path / "out", "train")
    train = SegmentationDataset(tmp_path / "out", "train", seen_only=True)
    assert len(train.names) == 156 and len(card.unseen) == 15
    by_image = {entry.image: index for index, entry in enumerate(whole.entries)}
    for index, entry in enumerate(train.entries):
        every, seen = whole[by_image[entry.image]].label, train[index].label
        assert torch.equal(seen == HIDDEN, torch.isin(every, torch.tensor(card.unseen)))
        assert torch.equal(seen == IGNORE, every == IGNORE)
        shown = seen >= 0
        assert [train.names[i] for i in seen[shown]] == [whole.names[i] for i in every[shown]]


def test_images_without_a_labelled_pixel_are_tested_on_and_not_trained_on(coco, tmp_path):
    root, truth = coco
    for split in ("train", "val"):
        path = root / f"coco/stuffthingmaps/{split}2017/{min(truth[split])}.png"
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)
    prepare(tmp_path / "out", "coco", settings("coco_stuff"), root)
    assert len(SegmentationDataset(tmp_path / "out", "val")) == 2
    assert len(SegmentationDataset(tmp_path / "out", "train", seen_only=True)) < 4


def test_number_of_processes_makes_no_difference(raw, tmp_path):
    for workers in (1, 2):
        done = []
        prepare(
            tmp_path / str(workers),
            "coco",
            settings("coco_stuff"),
            raw[0],
            workers=workers,
            progress=lambda count, total, done=done: done.append((count, total)),
        )
        assert sum(count for count, _ in done) == 12 and {total for _, total in done} == {12}
    assert tree(tmp_path / "1") == tree(tmp_path / "2")


_SLOWLY = """
import sys, time
from pathlib import Path
from deop.data import prepare as module
from deop.data.readers.coco_stuff import CocoStuff
module._CHUNK, convert = 1, module._Converter._convert
def slowly(*arguments):
    result = convert(*arguments)
    time.sleep(0.3)
    return result
module._Converter._convert = slowly
settings = CocoStuff(kind="coco_stuff", complete=False)
module.prepare(Path(sys.argv[1]), "coco", settings, Path(sys.argv[2]), workers=2)
"""


@pytest.mark.faults(
    "the preparation of a dataset is killed", "a rerun goes on from what is there, to the same files"
)
@pytest.mark.slow
def test_a_killed_preparation_goes_on_where_it_was(raw, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, "-c", _SLOWLY, killed, raw[0]])
    try:
        while len(list(killed.rglob("labels/*/*.png"))) < 3:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
    psutil.wait_procs(workers, timeout=60)  # they end by themselves, with the image that they are at
    before = {path: path.stat().st_mtime_ns for path in killed.rglob("labels/*/[!.]*.png")}
    assert 3 <= len(before) < 12 and not (killed / "dataset.json").exists()
    for folder in (killed, whole):
        prepare(folder, "coco", settings("coco_stuff"), raw[0])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert tree(killed) == tree(whole)


@pytest.mark.faults("a label map that is being prepared is cut short", "a rerun makes it again")
def test_a_label_map_cut_short_is_made_again(coco, tmp_path):
    prepare(tmp_path / "out", "coco", settings("coco_stuff"), coco[0])
    complete = tree(tmp_path / "out")
    label = next((tmp_path / "out/labels/train").iterdir())
    label.write_bytes(label.read_bytes()[:60])
    prepare(tmp_path / "out", "coco", settings("coco_stuff"), coco[0])
    assert tree(tmp_path / "out") == complete


def spoil_size(root: Path, key: str) -> None:
    Image.new("RGB", (50, 40)).save(root / f"coco/train2017/{key}.jpg")


def spoil_id(root: Path, key: str) -> None:
    path = root / f"coco/stuffthingmaps/train2017/{key}.png"
    ids = np.asarray(Image.open(path)).copy()
    ids[0, 0] = 200
    Image.fromarray(ids).save(path)


def spoil_label(root: Path, key: str) -> None:
    path = root / f"coco/stuffthingmaps/train2017/{key}.png"
    path.write_bytes(path.read_bytes()[:80])


def spoil_image(root: Path, key: str) -> None:
    (root / f"coco/train2017/{key}.jpg").write_bytes(b"<html>not found</html>")


def spoil_colours(root: Path, key: str) -> None:
    path = root / f"coco/stuffthingmaps/train2017/{key}.png"
    Image.open(path).convert("RGB").save(path)


@pytest.mark.faults(
    "a file of a published dataset is damaged, or does not fit the others",
    "it is named, the others are kept, and no dataset is published",
)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            spoil_size,
            r"stuffthingmaps/train2017/{key}\.png: is 72 x 96 pixels, its image \S*/{key}\.jpg is 50 x 40",
        ),
        (
            spoil_id,
            r"stuffthingmaps/train2017/{key}\.png: holds id 200, which is neither a class nor ignored",
        ),
        (spoil_label, r"stuffthingmaps/train2017/{key}\.png: can't be read \("),
        (spoil_image, r"/coco/train2017/{key}\.jpg: can't be read \("),
        (spoil_colours, r"stuffthingmaps/train2017/{key}\.png: is a picture of mode RGB"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_at_fault_is_named_and_the_others_are_kept(coco, tmp_path, spoil, message, workers):
    root, truth = coco
    key = min(truth["train"])
    spoil(root, key)
    with pytest.raises(DeopError, match=message.format(key=key)) as caught:
        prepare(tmp_path / "out", "coco", settings("coco_stuff"), root, workers=workers)
    assert "\n" not in str(caught.value)
    written = {path.stem for path in (tmp_path / "out").rglob("*.png")}
    assert written == {*truth["train"], *truth["val"]} - {key}
    assert not (tmp_path / "out/dataset.json").exists()


@pytest.mark.faults("files of a published dataset are missing", "they are named before anything is written")
def test_missing_files_are_named_before_anything_is_written(coco, tmp_path, injected):
    injected(3)
    root, truth = coco
    first, second = sorted(truth["train"])[:2]
    strict = settings("coco_stuff", complete=True)

    def problem() -> str:
        with pytest.raises(DeopError) as caught:
            prepare(tmp_path / "out", "coco", strict, root)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "coco/train2017: holds 4 images of this split, which has 118,287" in problem()
    (root / f"coco/train2017/{first}.jpg").rename(tmp_path / "image.jpg")
    assert f"coco/train2017: holds 3 of 4 images; none for {first} (" in problem()
    (tmp_path / "image.jpg").rename(root / f"coco/train2017/{first}.jpg")
    (root / f"coco/stuffthingmaps/train2017/{second}.png").unlink()
    assert f"stuffthingmaps/train2017: holds 3 of 4 label maps; none for {second} (" in problem()
    assert len(open_raw(settings("coco_stuff"), root).splits["train"]) == 3
    shutil.rmtree(root / "coco/stuffthingmaps/val2017")
    strict = settings("coco_stuff", splits=["val"], complete=True)
    assert "stuffthingmaps/val2017: no such folder (is data.root right" in problem()


def test_another_list_of_context_labels_is_refused(tmp_path):
    LAYOUTS["pascal_context"](tmp_path, train=1, val=1)
    path = tmp_path / "pascal_context/labels.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:80], "81: clothes  tree", *lines[81:]]))
    open_raw(settings("pascal_context", classes=59), tmp_path)
    path.write_text("\n".join(f"{i + 1}: {line.partition(': ')[2]}" for i, line in enumerate(sorted(lines))))
    with pytest.raises(DeopError, match=r"labels\.txt: is not the list of 459 labels"):
        open_raw(settings("pascal_context", classes=59), tmp_path)


@pytest.mark.faults("the images of a prepared dataset were moved", "the job ends with a path, and what to do")
def test_images_that_were_moved_are_named(coco, tmp_path):
    root, _ = coco
    prepare(tmp_path / "out", "coco", settings("coco_stuff"), root)
    dataset = SegmentationDataset(tmp_path / "out", "val")
    shutil.move(root, tmp_path / "elsewhere")
    for read in (lambda: dataset[1], lambda: SegmentationDataset(tmp_path / "out", "val")):
        with pytest.raises(DeopError, match=r"val2017/\d+\.jpg: no such image.*to have it prepared again"):
            read()


def test_object_ids_of_ade20k_are_in_two_channels(tmp_path):
    """Red 110, green 162 is object 2978, wall: red in tens counts 256."""
    Image.fromarray(np.array([[[110, 162, 9], [0, 0, 0]]], np.uint8)).save(tmp_path / "a_seg.png")
    assert read_object_map(tmp_path / "a_seg.png").tolist() == [[2978, 0]]


def test_generated_datasets_are_written_as_they_were(tmp_path):
    vocabulary = Vocabulary(things=("dog",), stuff=("grass",), unseen=("dog",))
    values = {"style": "twemoji", "vocabulary": vocabulary, "train": 1, "val": 1, "image_size": 16}
    emoji_scenes.write(tmp_path, "toy", EmojiScenes(**values))
    assert json.loads((tmp_path / "dataset.json").read_text()) == {
        "name": "toy",
        "classes": [
            {"name": "dog", "kind": "thing", "unseen": True},
            {"name": "grass", "kind": "stuff", "unseen": False},
        ],
        "ignore": 255,
    }
    with pytest.raises(DeopError, match="toy: its card has no original ids"):
        restore_raw(np.zeros((1, 1), int), read_card(tmp_path))


def test_stage_prepares_a_real_dataset_with_a_contact_sheet(coco, tmp_path):
    root, _ = coco
    output = tmp_path / "work/data/coco-0123"
    job = Job(
        stage="prepare_data",
        key="0123",
        output=str(output),
        settings={
            "dataset": {"kind": "coco_stuff", "splits": ["val"], "complete": False},
            "data": {"root": str(root)},
        },
    )
    prepare_data.run(job)
    assert read_card(output).name == "coco" and not (output / "train.csv").exists()
    sheet = np.asarray(Image.open(output / "contact_sheet.png"))
    upright = Image.open(sorted((root / "coco/val2017").iterdir())[0])
    assert upright.size == (72, 96)
    # a tile of 96 pixels holds the whole upright image, and white beside it
    assert (sheet[6:102, 6 + 72 : 102] == 255).all() and not (sheet[6:102, 6:78] == 255).all(-1).any(0).all()
