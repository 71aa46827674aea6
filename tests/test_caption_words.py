"""Captions of COCO and Localized Narratives, in their true formats, as words."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from deop.cli import app

nltk = pytest.importorskip("nltk", reason="captions are tagged with an extra: pip install 'deop[captions]'")

from nltk.tag import perceptron  # noqa: E402

SENTENCES = """the/DT brown/JJ dog/NN sleeps/VBZ on/IN the/DT green/JJ grass/NN ./.
a/DT cow/NN and/CC a/DT dog/NN ,/, and/CC a/DT cow/NN ./.
a/DT dog/NN and/CC a/DT cow/NN stand/VBP near/IN two/CD tall/JJ trees/NNS ./.
in/IN this/DT image/NN there/EX is/VBZ a/DT cow/NN ,/, and/CC in/IN the/DT background/NN there/EX is/VBZ sky/NN ./.
it/PRP runs/VBZ ./."""


@pytest.fixture
def tagger(tmp_path, monkeypatch):
    """NLTK's tagger, trained on the sentences above, as a file where NLTK looks for the downloaded one."""
    trained = perceptron.PerceptronTagger(load=False)
    pairs = [[tuple(word.rsplit("/", 1)) for word in line.split()] for line in SENTENCES.splitlines()]
    trained.train(pairs, nr_iter=20)
    folder = tmp_path / "nltk_data" / "taggers" / "averaged_perceptron_tagger_eng"
    folder.mkdir(parents=True)
    values = {
        "weights": trained.model.weights,
        "tagdict": trained.tagdict,
        "classes": sorted(trained.classes),
    }
    for name, value in values.items():
        (folder / f"averaged_perceptron_tagger_eng.{name}.json").write_text(json.dumps(value))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "train2017"
    folder.mkdir()
    for number in (9, 25):
        Image.new("RGB", (8, 8)).save(folder / f"{number:012d}.jpg")
    return folder


def coco(path):
    """As annotations/captions_train2017.json is."""
    files = [
        {"id": number, "file_name": f"{number:012d}.jpg", "height": 8, "width": 8} for number in (9, 25, 30)
    ]
    captions = [
        (9, "The brown dog sleeps on the green grass."),
        (9, "It runs."),
        (25, "A cow and a dog, and a COW."),
        (30, "A dog."),
    ]
    annotations = [{"id": i, "image_id": image, "caption": text} for i, (image, text) in enumerate(captions)]
    path.write_text(json.dumps({"info": {}, "licenses": [], "images": files, "annotations": annotations}))
    return path


def narratives(path):
    """As coco_train_localized_narratives-00000-of-00004.jsonl is."""
    narrative = {
        "dataset_id": "mscoco_train2017",
        "image_id": "25",
        "annotator_id": 93,
        "caption": "In this image there is a cow, and in the background there is sky.",
        "timed_caption": [{"utterance": "In this image", "start_time": 0.0, "end_time": 0.8}],
        "traces": [[{"x": 0.2, "y": 0.9, "t": 0.0}]],
        "voice_recording": "coco_train/coco_train_0_25_93.ogg",
    }
    path.write_text(json.dumps(narrative) + "\n")
    return path


def make(*arguments):
    return CliRunner().invoke(app, ["caption-words", *map(str, arguments)])


def test_nouns_and_adjectives_of_both_formats_are_written_beside_their_images(tagger, images, tmp_path):
    output = tmp_path / "captions" / "words.csv"
    sources = coco(tmp_path / "captions_train2017.json"), narratives(tmp_path / "narratives.jsonl")
    done = make(*sources, "--images", images, "--output", output)
    assert done.exit_code == 0, done.output
    assert "3 captions of 2 images; left out are 1 whose image is not in" in done.output
    assert "1 without a noun or adjective" in done.output
    table = pd.read_csv(output)
    assert list(table["words"]) == ["brown;dog;green;grass", "cow;dog", "image;cow;background;sky"]
    assert [(output.parent / image).resolve().name for image in table["image"]] == [
        "000000000009.jpg",
        "000000000025.jpg",
        "000000000025.jpg",
    ]
    assert all((output.parent / image).is_file() for image in table["image"])


def test_the_output_may_lie_behind_a_link(tagger, images, tmp_path):
    (tmp_path / "scratch/deep").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "scratch/deep")
    output = tmp_path / "data/words.csv"
    assert make(coco(tmp_path / "c.json"), "--images", images, "--output", output).exit_code == 0
    assert all((output.parent / image).is_file() for image in pd.read_csv(output)["image"])


def test_what_cannot_be_used_is_named_and_nothing_is_written(tagger, images, tmp_path):
    output = tmp_path / "words.csv"
    labels = tmp_path / "instances.json"
    labels.write_text(json.dumps({"images": [], "categories": []}))
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"image_id": "25", "capt')
    good = coco(tmp_path / "captions.json")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((labels, "--images", images), f"captions {labels} are neither COCO's"),
        ((torn, "--images", images), f"captions {torn} are neither COCO's"),
        ((tmp_path / "gone.json", "--images", images), "gone.json cannot be read: No such file"),
        ((good, "--images", tmp_path / "gone"), "gone cannot be read: No such file"),
        ((good, "--images", tmp_path / "empty"), "is of an image in"),
    ):
        done = make(*arguments, "--output", output)
        assert done.exit_code == 1 and message in done.output.replace("\n", " ")
        assert not output.exists()


def test_a_tagger_that_is_not_there_is_said_with_the_command_that_gets_it(images, tmp_path, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    done = make(coco(tmp_path / "c.json"), "--images", images, "--output", tmp_path / "words.csv")
    assert done.exit_code == 1
    assert "python -m nltk.downloader averaged_perceptron_tagger_eng" in done.output.replace("\n", " ")
