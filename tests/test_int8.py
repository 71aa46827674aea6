"""Graphs in int8: written if they are nearly as good as in float32, and not at all if they are not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import systems
from PIL import Image
from typer.testing import CliRunner, Result

import deop
from deop.cli import app
from deop.data.emoji import dataset as emoji_scenes
from deop.data.emoji.settings import EmojiScenes
from deop.data.segmentation import SegmentationDataset, write_split
from deop.methods.graph import GraphMetadata, Quantisation
from deop.settings.datasets import Vocabulary
from deop.settings.methods import DeOPSettings
from deop.settings.stages import Inference
from deop.tools import int8

THINGS = ("airplane", "cat", "dog", "umbrella", "pizza", "banana", "broccoli", "cow")
STUFF = ("grass", "sea", "brick wall")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """A prepared dataset of classes that the bundled system knows."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    vocabulary = Vocabulary(things=THINGS, stuff=STUFF, unseen=("cow", "cat", "pizza", "umbrella"))
    settings = EmojiScenes(style="twemoji", vocabulary=vocabulary, train=40, val=40, seed=7)
    emoji_scenes.write(folder, "scenes", settings)
    return folder


def export(model: str | Path, data: Path, output: Path, *more: str) -> Result:
    args = ["export", str(model), "--to", "openvino", "--int8", str(data), "--output", str(output)]
    return CliRunner().invoke(app, [*args, "--threads", "1", *more])


def alone(request) -> bool:
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    return request.getfixturevalue("in_own_process")


def test_a_good_graph_in_int8_is_written_with_what_it_costs(tmp_path, request, monkeypatch):
    if not alone(request):
        return
    monkeypatch.setattr(int8, "_WORST_FALL", 0.02)  # of so few scenes, half a point is within noise
    data = request.getfixturevalue("scenes")
    path = tmp_path / "mini.xml"
    done = export("deop-mini", data, path, "--calibration-images", "24", "--classes", "cat, dog, grass")
    assert done.exit_code == 0, done.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mini.bin", "mini.xml"]
    system, graph = deop.load("deop-mini", device="cpu"), deop.load(path)
    cost = graph.network.metadata.quantisation
    assert cost.summary() in done.output
    assert (cost.dataset, cost.calibration_images, cost.validation_images) == ("scenes", 24, 40)
    assert cost.float32.hIoU > 0.3 and cost.float32.hIoU - cost.int8.hIoU <= 0.02
    assert cost.agreement > 0.95
    validation = SegmentationDataset(data, "val")
    pictures = [validation[index].image.permute(1, 2, 0).numpy() for index in range(10)]
    names = ["cat", "dog", "grass"]
    equal = [(graph(picture).labels == system(picture, names).labels).mean() for picture in pictures]
    assert np.mean(equal) > 0.95
    assert 'element_type="i8"' in path.read_text()


def test_a_bad_graph_in_int8_is_refused(tmp_path, request):
    if not alone(request):
        return
    data = request.getfixturevalue("scenes")
    train = SegmentationDataset(data, "train")
    for entry in train.entries:  # black images calibrate nothing
        Image.new("RGB", (96, 96)).save(entry.image)
    write_split(data, "train", list(train.entries))
    output = tmp_path / "graphs/mini.xml"
    done = export("deop-mini", data, output, "--validation-images", "20")
    assert done.exit_code == 1
    (line,) = [line for line in done.output.splitlines() if line.startswith("deop: ")]
    assert "int8 takes hIoU on" in line and "more than 0.5 points; nothing was written" in line
    assert not list(output.parent.iterdir())

    untrained = systems.save(
        systems.build(DeOPSettings(text_prompts="templates", templates=("a {}",))),
        tmp_path / "untrained",
        [*THINGS, *STUFF],
        inference=Inference(short_side=64),
    )
    done = export(untrained, data, output, "--calibration-images", "4", "--validation-images", "20")
    assert done.exit_code == 1 and "no better than chance" in done.output
    assert not list(output.parent.iterdir())


def test_what_int8_needs_is_said_before_the_work(scenes, tmp_path, monkeypatch):
    output = tmp_path / "mini.xml"
    done = CliRunner().invoke(app, ["export", "deop-mini", "--int8", str(scenes)])
    assert done.exit_code == 1 and "valid with --int8: --to openvino" in done.output
    monkeypatch.setitem(sys.modules, "nncf", None)
    done = export("deop-mini", scenes, output)
    assert done.exit_code == 1 and done.output == "deop: int8 needs nncf: pip install 'deop[int8]'\n"
    monkeypatch.setitem(sys.modules, "nncf", sys)  # as if it were there
    done = export("deop-mini", tmp_path / "gone", output)
    assert done.exit_code == 1 and done.output.count("\n") == 1 and "gone/dataset.json" in done.output
    write_split(scenes, "train", [])
    done = export("deop-mini", scenes, output)
    assert done.exit_code == 1 and "train.csv lists no images" in done.output
    assert not list(tmp_path.iterdir())


def test_graphs_of_before_int8_are_read():
    metadata = {
        "system": "deop-mini",
        "config": {"name": "a", "sections": {}, "class_names": [], "seen_names": []},
        "names": None,
        "multiple_of": 8,
        "outputs": ["labels"],
        "provenance": {},
    }
    assert GraphMetadata.model_validate(metadata).quantisation is None


def test_without_unseen_classes_miou_counts():
    scores = {"hIoU": None, "mIoU": 0.5}
    cost = Quantisation(
        dataset="park",
        calibration_images=8,
        validation_images=9,
        float32=scores,
        int8=scores | {"mIoU": 0.498},
        agreement=0.99,
    )
    assert "mIoU on park from 50.00% to 49.80%" in cost.summary()
