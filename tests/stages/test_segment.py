"""``deop segment`` with a small random network: label maps on disk against what the evaluation predicts in memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import systems
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from deop.api import result
from deop.cli import app
from deop.data.card import DatasetCard, LabelledClass
from deop.data.segmentation import Entry, SegmentationDataset, write_card, write_label_map, write_split
from deop.data.vocabulary import parse_names
from deop.errors import DeopError
from deop.methods.deop import DeOP
from deop.methods.masks import ClassScores, SegmenterOutput
from deop.reporting.overlay import legend_colours
from deop.settings.methods import DeOPSettings
from deop.settings.system import Inference
from deop.stages.evaluate import load_batch, predict
from deop.tools import segment
from deop.utils.files import file_hash

NAMES = ["dog", "cow", "grass", "sky"]
SHORT_SIDE = 32
SIZES = [(24, 36), (24, 36), (24, 36), (40, 20), (24, 36), (33, 33)]  # of images in order, height and width


CLASS_SCORES = DeOP.class_scores


def varied(output: SegmenterOutput) -> ClassScores:
    """A random network takes all proposals for one class; here each takes its own, so many for the next one."""
    scores, offset = CLASS_SCORES(output)
    of_each = [of_proposal.roll(query, -1) for query, of_proposal in enumerate(scores.unbind(1))]
    return ClassScores(torch.stack(of_each, 1), offset)


@pytest.fixture(scope="module")
def segmenter() -> DeOP:
    network = DeOPSettings(text_prompts="templates", templates=("a {}",))
    return systems.build(network, proposals={"queries": 8})


@pytest.fixture
def system(segmenter, tmp_path, monkeypatch) -> Path:
    """The folder of that system."""
    monkeypatch.setattr(DeOP, "class_scores", staticmethod(varied))
    inference = Inference(short_side=SHORT_SIDE)
    folder = tmp_path / "system"
    return systems.save(segmenter, folder, NAMES, inference=inference, proposals={"queries": 8})


@pytest.fixture
def data(tmp_path) -> Path:
    """A validation set of images of mixed sizes, in ``photos``."""
    generator, root = np.random.default_rng(0), tmp_path / "data"
    entries = []
    for index, size in enumerate(SIZES):
        entry = Entry(tmp_path / f"photos/{index // 4}/{index}.png", root / f"labels/{index}.png", (0,))
        for path in (entry.image, entry.label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(entry.image)
        write_label_map(entry.label, np.zeros(size, int), 255)
        entries.append(entry)
    classes = tuple(LabelledClass(name=name, kind="thing") for name in NAMES)
    write_card(root, DatasetCard(name="drawn", classes=classes, image_root=str(tmp_path)))
    write_split(root, "val", entries, tmp_path)
    return root


@pytest.fixture
def command(system, data):
    """``command(*arguments)``: ``deop segment`` with the system above."""
    return lambda *arguments: CliRunner().invoke(
        app, ["segment", "--system", str(system), *map(str, arguments)]
    )


def alike(labels: np.ndarray, others: np.ndarray) -> bool:
    """Equal but for a pixel or two, where two classes of a random network are level to the last digits."""
    return labels.shape == others.shape and (labels != others).sum() <= 2


def label_maps(folder: Path) -> dict[str, np.ndarray]:
    return {
        path.relative_to(folder).as_posix(): np.asarray(Image.open(path))
        for path in sorted(folder.rglob("*.png"))
    }


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def counted(monkeypatch, die_at: int | None = None) -> list[int]:
    """How many images each call of the network gets; the call ``die_at`` is where the user ends it."""
    encode, batches = DeOP.encode_images, []

    def count(self, images):
        batches.append(len(images))
        if len(batches) == die_at:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(DeOP, "encode_images", count)
    return batches


def expected(data: Path, segmenter: DeOP, names: list[str]) -> list[np.ndarray]:
    """What the evaluation predicts of the images, one by one."""
    dataset, found = SegmentationDataset(data, "val"), []
    for index in range(len(dataset)):
        images, labels = load_batch(dataset, range(index, index + 1), torch.device("cpu"))
        found.append(predict(segmenter, images, labels, names, SHORT_SIDE)[0][0].numpy())
    return found


@pytest.mark.parametrize(("batch_size", "batches"), [(1, [1] * 6), (2, [2, 1, 1, 1, 1]), (8, [3, 1, 1, 1])])
def test_labels_are_those_that_the_evaluation_measures(
    system, data, segmenter, tmp_path, monkeypatch, batch_size, batches
):
    truth = expected(data, segmenter, NAMES)
    assert len(np.unique(np.concatenate([label.ravel() for label in truth]))) > 1
    sizes = counted(monkeypatch)
    assert segment.run(str(system), [tmp_path / "photos"], tmp_path / "out", batch_size=batch_size) == {}
    assert sizes == batches
    found = label_maps(tmp_path / "out")
    assert list(found) == ["0/0.png", "0/1.png", "0/2.png", "0/3.png", "1/4.png", "1/5.png"]
    for label, of_evaluation in zip(found.values(), truth, strict=True):
        assert label.dtype == np.uint8 and alike(label, of_evaluation)
    written = json.loads((tmp_path / "out/classes.json").read_text())
    assert list(written["classes"].items()) == [(str(index), name) for index, name in enumerate(NAMES)]
    assert written["system"] == "small"
    assert written["weights"] == file_hash(system / "model.safetensors")


def test_any_names_will_do_and_can_be_looked_at(data, segmenter, command, tmp_path):
    names, file = ["red", "brick wall", "grass", "noise, of a kind"], tmp_path / "names.txt"
    file.write_text("\n".join(names))
    output = tmp_path / "out"
    done = command(tmp_path / "photos/0", "--output", output, "--classes", f"@{file}")
    assert done.exit_code == 0, done.output
    truth = expected(data, segmenter, names)[:4]
    assert len(np.unique(truth[0])) > 1
    assert all(alike(*pair) for pair in zip(label_maps(output).values(), truth, strict=True))
    assert list(json.loads((output / "classes.json").read_text())["classes"].values()) == names
    for index, label in enumerate(truth):
        picture = np.asarray(Image.open(output / f"{index}.overlay.jpg"))
        height, width = label.shape
        assert picture.shape[0] >= height and picture.shape[1] > width
        legend = picture[:, width:].reshape(-1, 3).astype(int)
        for colour in legend_colours(len(names))[np.unique(label)]:
            assert np.abs(legend - colour).sum(1).min() < 24  # but for what JPEG changes


@pytest.mark.faults(
    "`deop segment` is interrupted", "a rerun does what is not done yet, and gives the same results"
)
def test_an_interrupted_run_is_resumed_and_what_is_done_is_left_alone(
    system, data, segmenter, tmp_path, monkeypatch, injected
):
    injected(2)
    photos, whole, output = [tmp_path / "photos"], tmp_path / "whole", tmp_path / "out"
    segment.run(str(system), photos, whole, batch_size=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, die_at=2)
        segment.run(str(system), photos, output, batch_size=2)
    assert list(label_maps(output)) == ["0/0.png", "0/1.png"]

    def half(path, *_):
        path.write_bytes(b"\x89PNG")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(result, "write_label_map", half)
        segment.run(str(system), photos, output, batch_size=2)
    done = {path: path.stat().st_mtime_ns for path in output.rglob("*.png") if not path.name.startswith(".")}
    assert {path.name for path in done} == {"0.png", "1.png"}
    sizes = counted(monkeypatch)
    assert segment.run(str(system), photos, output, batch_size=2) == {}
    assert sum(sizes) == 4 and all(path.stat().st_mtime_ns == at for path, at in done.items())
    assert contents(output) == contents(whole)

    monkeypatch.setattr(segment, "_load", None)  # nothing is left that needs it
    assert segment.run(str(system), photos, output) == {}
    queries = {"queries": 8}
    resized = systems.save(
        segmenter, tmp_path / "resized", NAMES, inference=Inference(short_side=48), proposals=queries
    )
    inference = Inference(short_side=SHORT_SIDE)
    retrained = systems.build(segmenter.network, proposals=queries)
    retrained.text_prompt.no_object.data += 1
    retrained = systems.save(retrained, tmp_path / "retrained", NAMES, inference=inference, proposals=queries)
    for other, what in ((resized, "config"), (retrained, "weights")):
        with pytest.raises(DeopError, match=f"of other label maps, with other {what}; name another folder"):
            segment.run(str(other), photos, output)
    with pytest.raises(DeopError, match="with other classes; name another folder"):
        segment.run(str(system), photos, output, classes="cat")
    assert contents(output) == contents(whole)


def test_a_name_that_fits_no_network_leaves_the_folder_free_for_the_mended_one(data, tmp_path):
    photos, output = [tmp_path / "photos"], tmp_path / "out"
    prefix = {"prefix_tokens": 28}  # of a context of 32
    system = systems.save(
        systems.build(DeOPSettings(), prompts=prefix), tmp_path / "wordy", NAMES, prompts=prefix
    )
    with pytest.raises(DeopError, match="'striped dog' with 28 prefix tokens"):
        segment.run(str(system), photos, output, classes="cat, striped dog")
    assert segment.run(str(system), photos, output, classes="cat, dog") == {}


@pytest.mark.faults(
    "pictures for `deop segment` are damaged", "they are listed at the end, and the others are done"
)
def test_broken_images_are_listed_in_the_end_and_the_others_done(command, tmp_path, injected):
    injected(3)
    photos, output = tmp_path / "photos", tmp_path / "out"
    good = (photos / "0/0.png").read_bytes()
    (photos / "0/1.png").write_bytes(good[: len(good) // 2])
    (photos / "0/1b.jpg").write_text("no image")
    (photos / "1/4.png").write_bytes(b"")
    done = command(photos, "--output", output, "--batch-size", 3)
    assert done.exit_code == 1
    assert "deop: 3 of the images cannot be read, all others are done:" in done.stderr
    listed = done.stderr.splitlines()[-3:]
    assert [line.split(":")[0].strip() for line in listed] == [
        str(photos / name) for name in ("0/1.png", "0/1b.jpg", "1/4.png")
    ]
    assert "truncated" in listed[0] and "cannot identify" in listed[1]
    assert list(label_maps(output)) == ["0/0.png", "0/2.png", "0/3.png", "1/5.png"]
    for name in ("0/1.png", "0/1b.jpg", "1/4.png"):
        (photos / name).write_bytes(good)
    assert command(photos, "--output", output).exit_code == 0
    assert len(label_maps(output)) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone.jpg",), "gone.jpg is not there; valid: image files, and folders"),
        (("empty",), "empty has no image in it or below; valid: .jpg, .jpeg, .png, .webp"),
        (("notes.txt",), "notes.txt is no image by its name; valid: .jpg"),
        (("photos/0", "twin"), "photos/0/0.png and twin/0.jpg would both be written to out/0.png"),
        (("photos", "--classes", ""), "class names: '' has an empty name or none"),
        (("photos", "--classes", "cat,cat"), "has 'cat' twice"),
        (("photos", "--classes", "@gone.txt"), "file gone.txt cannot be read: No such file"),
        (("photos", "--output", "photos"), "photos/0/0.png is one of the images and would be overwritten"),
        (("photos", "--format", "bmp"), "--format bmp: valid: png, npz, coco"),
        (("photos", "--classes", "a", "--background", "2"), "background=2.0: a threshold is a probability"),
        (("photos", "--classes", "a", "--classes-file", "b"), "--classes and --classes-file are both given"),
        (
            ("photos", "--output", "photos", "--format", "npz"),
            "0.overlay.jpg would lie beside the image photos/0/0.png",
        ),
        (("photos", "twin/classes.jpg"), "out/classes.json would be the result of an image"),
        (
            ("photos", "--classes", ", ".join(["St. Bernard", *map(str, range(300))] * 2)),
            "has 'St. Bernard' twice",
        ),
        (("photos/0/0.png", "--output", "photos/0"), "0.png is one of the images and would be overwritten"),
        (
            ("photos", "--output", "notes.txt"),
            "notes.txt/classes.json cannot be written: File exists",
        ),
        (("photos", "--output", "foreign"), "foreign/0/0.png is there already, and no foreign/classes.json"),
        (("photos", "--output", "broken"), "broken/classes.json is not of this command"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_before_the_network_is_built(
    command, tmp_path, monkeypatch, arguments, message
):
    def load(*_):
        raise AssertionError("the network was built")

    monkeypatch.setattr(segment, "_load", load)
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("no image")
    for folder in ("empty", "twin", "foreign/0", "broken"):
        Path(folder).mkdir(parents=True)
    for image in ("twin/0.jpg", "twin/classes.jpg", "foreign/0/0.png"):
        Image.new("RGB", (4, 4)).save(image)
    Path("broken/classes.json").write_text("[]")
    before = contents(tmp_path)
    output = () if "--output" in arguments else ("--output", "out")
    said_in_one_line(command(*arguments, *output), message)
    assert contents(tmp_path) == before


def said_in_one_line(done: Result, message: str) -> None:
    assert done.exit_code == 1 and message in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("deop: ")


def test_standard_input_is_a_picture_or_names_one_a_line(system, command, tmp_path, monkeypatch):
    pictures = [tmp_path / "photos/0" / name for name in ("0.png", "2.png")]
    given = []

    def run(model, images, output, *, classes, **_):
        given.append((images[0].name, images[0].read_bytes(), classes and parse_names(classes)))
        return {}

    monkeypatch.setattr(segment, "run", run)
    for picture in pictures:
        done = CliRunner().invoke(app, ["segment", "-", "--system", str(system)], input=picture.read_bytes())
        assert done.exit_code == 0
    assert given[0][0] != given[1][0]  # so that the second is not taken for the first
    assert [content for _, content, _ in given] == [picture.read_bytes() for picture in pictures]
    names = "salt, pepper\n\n@home\n"
    arguments = ["segment", str(pictures[0]), "--system", str(system), "--classes-file", "-"]
    assert CliRunner().invoke(app, arguments, input=names).exit_code == 0
    assert given[-1][2] == ["salt, pepper", "@home"]


def test_systems_that_cannot_be_used_are_said(system, data, command, tmp_path):
    rest = [str(tmp_path / "photos"), "--output", str(tmp_path / "out")]
    none = CliRunner().invoke(app, ["segment", "--system", str(data), *rest])
    said_in_one_line(none, f"{data}: the folder holds no config.json, so it is no trained system")
    (system / "model.safetensors").unlink()
    said_in_one_line(command(*rest), f"{system / 'model.safetensors'}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("classes", "depth"), [(256, np.uint8), (300, np.uint16)])
def test_many_classes_make_deeper_label_maps(system, data, tmp_path, monkeypatch, classes, depth):
    def label_map(self, output, size):
        count = output.class_logits.shape[2] - 1
        assert count == classes
        return (
            (torch.arange(size[0] * size[1]) % count).view(1, *size).expand(len(output.mask_logits), -1, -1)
        )

    monkeypatch.setattr(DeOP, "label_map", label_map)
    names = ",".join(f"class {index}" for index in range(classes))
    segment.run(str(system), [tmp_path / "photos"], tmp_path / "out", classes=names)
    for found, (height, width) in zip(label_maps(tmp_path / "out").values(), SIZES, strict=True):
        assert found.dtype == depth and found.max() == classes - 1
        assert np.array_equal(found.ravel(), np.arange(height * width) % classes)


@pytest.mark.faults(
    "`deop segment` has no memory for a batch, or no room for its results",
    "one line with the picture (the error itself is simulated)",
)
def test_a_batch_too_large_and_a_full_disk_are_said(command, tmp_path, monkeypatch, injected):
    injected(2)

    def no_memory(*_):
        raise torch.OutOfMemoryError

    def full(*_):
        raise OSError(28, "No space left on device")

    for method, fails, message in (
        (
            (DeOP, "encode_images"),
            no_memory,
            "photos/0/0.png: no memory for 2 images of 24 x 36 pixels at once",
        ),
        ((result, "write_label_map"), full, "0/0.png cannot be written: No space left on device"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(*method, fails)
            done = command(tmp_path / "photos", "--output", tmp_path / "out", "--batch-size", 2)
        assert done.exit_code == 1 and message in done.stderr.splitlines()[-1]
